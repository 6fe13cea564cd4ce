"""The ways of showing a UNet references that ReF-LDM compares CacheKV with (table 2): beside the photo, on channels or in space.

A UNet has to be trained for either. `channel` has room for a fixed number of references, between which it can not move
anything; `spatial` lays them beside the noisy latents, so that all of the UNet computes over them in every step.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor

from idgen.errors import IdgenError

Conditioning = Literal["cachekv", "channel", "spatial"]
CONDITIONINGS: tuple[Conditioning, ...] = ("cachekv", "channel", "spatial")


def predict_beside(
    unet: UNet2DModel,
    conditioning: Conditioning,
    noisy: Tensor,
    timestep: Tensor | float,
    lq: Tensor,
    references: Tensor | None,
) -> Tensor:
    """The UNet's prediction for the noisy latents.

    Args:
        noisy, lq: (rows, channels, h, w).
        references: (rows, references, channels, h, w) latents, or None.

    Raises:
        IdgenError: more references than the UNet has channels for.
    """
    sample = torch.cat([noisy, lq], 1)
    if conditioning == "channel":
        room = unet.config["in_channels"] - sample.shape[1]
        beside = sample[:, :0] if references is None else references.flatten(1, 2)
        if beside.shape[1] > room:
            channels = noisy.shape[1]
            raise IdgenError(
                f"{beside.shape[1] // channels} references, and this model has channels for {room // channels}: pass fewer"
            )
        padding = (0, 0, 0, 0, 0, room - beside.shape[1])  # references that are not there are zeros
        return unet(torch.cat([sample, F.pad(beside, padding)], 1), timestep).sample
    if references is not None:
        row = torch.cat([references, torch.zeros_like(references)], 2)  # zeros in the place of the photo
        sample = torch.cat([sample, *row.unbind(1)], 3)  # (rows, 2 * channels, h, (1 + references) * w)
    return unet(sample, timestep).sample[..., : noisy.shape[3]]


class GuidedBeside:
    """`sampling.GuidedUNet` with references beside the photo: `guided(latents, t)`.

    Args:
        lq: (photos, channels, h, w) latents of the photos to restore.
        references: (photos, references, channels, h, w) latents.
        scale: how far the references are followed, against ones whose latents are zero; 1 takes one pass without those.
    """

    def __init__(
        self, unet: UNet2DModel, conditioning: Conditioning, lq: Tensor, references: Tensor, scale: float = 1.5
    ) -> None:
        self.unet, self.conditioning, self.scale = unet, conditioning, scale
        self.guided = scale != 1
        self.lq = lq.repeat(2, 1, 1, 1) if self.guided else lq
        self.references = torch.cat([torch.zeros_like(references), references]) if self.guided else references

    def __call__(self, latents: Tensor, timestep: Tensor | float) -> Tensor:
        """
        Args:
            latents: (photos, channels, h, w), noisy.
        """
        noisy = latents.repeat(2, 1, 1, 1) if self.guided else latents
        predicted = predict_beside(self.unet, self.conditioning, noisy, timestep, self.lq, self.references)
        if not self.guided:
            return predicted
        without, with_references = predicted.chunk(2)
        return without + self.scale * (with_references - without)


def with_channels(unet: UNet2DModel, references: int) -> UNet2DModel:
    """A copy with input channels for so many references, which it starts by ignoring: they are zero."""
    config = dict(unet.config)
    channels = (2 + references) * config["out_channels"]
    state = unet.state_dict()
    weight = state["conv_in.weight"]
    if weight.shape[1] > channels:
        raise IdgenError(f"this UNet takes {weight.shape[1]} channels, more than {references} references need")
    state["conv_in.weight"] = F.pad(weight, (0, 0, 0, 0, 0, channels - weight.shape[1]))
    widened = UNet2DModel.from_config(config | {"in_channels": channels})
    widened.load_state_dict(state)
    if widened.dtype != unet.dtype:
        widened.to(unet.dtype)
    return widened.train(unet.training)
