"""A text-to-image UNet as an inpainting one."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel


def inpainting_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy that also takes a mask (1 channel) and the masked picture's latents; it starts by ignoring both.

    As Stable Diffusion's inpainting models began: the new input channels of the first convolution are zero. A UNet that
    has them already is copied as it is.
    """
    config = dict(unet.config)
    old, channels = config["in_channels"], 2 * config["out_channels"] + 1
    widened = UNet2DConditionModel.from_config(config | {"in_channels": channels})
    state = unet.state_dict()
    if old != channels:
        weight = state["conv_in.weight"]
        wide = torch.zeros(len(weight), channels, *weight.shape[2:], dtype=weight.dtype)
        wide[:, :old] = weight
        state["conv_in.weight"] = wide
    widened.load_state_dict(state)
    return widened.to(unet.dtype)
