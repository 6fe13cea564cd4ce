"""PVA's training step, which its three trainings share: stage 1, stage 2, and the few steps for one person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel

from idgen.adapters.embeddings import RawEmbeddings
from idgen.adapters.pva.adapter import PVAAdapter
from idgen.adapters.pva.prompt import PersonPrompts, encode_prompts
from idgen.losses.diffusion import Noised, denoising_loss, noised_at


@dataclass(frozen=True, repr=False)
class HoleBatch:
    """Pictures with a hole, in latents, and whose they are.

    Attributes:
        latents, masked: (batch, channels, h, w) scaled latents of the whole pictures, and with the hole painted grey.
        mask: (batch, 1, h, w), 1 in the hole.
        references: (batch, references, dim) raw embeddings.
        prompts: one for each picture, or one for all.
        shown: (batch,) bool, whose references are looked at; all by default.
    """

    latents: Tensor
    masked: Tensor
    mask: Tensor
    references: Tensor
    prompts: PersonPrompts
    shown: Tensor | None = None

    def repeat(self, times: int) -> HoleBatch:
        """The batch so many times over, as one."""

        def often(rows: Tensor) -> Tensor:
            return torch.cat([rows] * times)

        prompts = self.prompts
        if len(prompts.input_ids) > 1:
            prompts = PersonPrompts(often(prompts.input_ids), often(prompts.mask))
        latents, masked, mask, references = map(often, (self.latents, self.masked, self.mask, self.references))
        return HoleBatch(latents, masked, mask, references, prompts, None if self.shown is None else often(self.shown))


class PVADenoiser(nn.Module):
    """UNet over text and visual tokens: (noisy latents with hole, times, prompts, references) -> prediction.

    The adapter is injected: it trains where it will act. What is frozen is no part of the module, so that checkpoints
    hold no base model.
    """

    def __init__(self, unet: nn.Module, adapter: PVAAdapter, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.frozen: dict[str, nn.Module] = {}
        for name, module in (("unet", unet), ("adapter", adapter), ("text_encoder", text_encoder)):
            if any(parameter.requires_grad for parameter in module.parameters()):
                self.add_module(name, module)
            else:
                self.frozen[name] = module

    def part(self, name: str) -> Any:
        """`"unet"`, `"adapter"` or `"text_encoder"`, trained or frozen."""
        return self.frozen[name] if name in self.frozen else getattr(self, name)

    def forward(
        self, given: Tensor, timesteps: Tensor, prompts: PersonPrompts, references: Tensor, shown: Tensor | None = None
    ) -> Tensor:
        unet, adapter = self.part("unet"), self.part("adapter")
        context = encode_prompts(self.part("text_encoder"), prompts, adapter.modifier)
        people = [RawEmbeddings(rows, adapter.config.recogniser) for rows in references]
        kwargs = adapter.condition(people, guidance=False, shown=shown).kwargs
        return unet(given, timesteps, context.expand(len(given), -1, -1), cross_attention_kwargs=kwargs).sample


def make_holes(vae: Any, pictures: Tensor, holes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, masked latents and the mask at their size, of pictures (batch, 3, H, W) in [-1, 1] and holes (batch, 1, H, W).

    A variational autoencoder's latents are drawn from torch's global generator.
    """
    with torch.no_grad():
        encoded = vae.encode(torch.cat([pictures, pictures * (holes < 0.5)]))
        drawn = encoded.latent_dist.sample() if hasattr(encoded, "latent_dist") else encoded.latents
        latents, masked = (drawn * vae.config.scaling_factor).chunk(2)
    return latents, masked, F.interpolate((holes >= 0.5).to(latents), latents.shape[-2:])


def stratified_times(scheduler: Any, batch: int, bins: int, device: torch.device) -> Tensor:
    """(bins, batch) int64: each row of a batch at one random time of every stratum, from torch's global generator."""
    width = scheduler.config.num_train_timesteps // bins
    inside = torch.randint(0, width, (bins, batch), device=device)
    return inside + width * torch.arange(bins, device=device)[:, None]


def predict_hole(
    denoiser: Any, scheduler: Any, batch: HoleBatch, timesteps: Tensor, noise: Tensor
) -> tuple[Tensor, Noised]:
    """What the model answers at given times, and what it should.

    Args:
        denoiser: a `PVADenoiser`, or what accelerate made of it.
        timesteps: (batch,) int64.
        noise: like the latents.
    """
    noised = noised_at(scheduler, batch.latents, noise, timesteps)
    given = torch.cat([noised.noisy, batch.mask, batch.masked], 1)
    return denoiser(given, timesteps, batch.prompts, batch.references, batch.shown), noised


def train_on_bins(
    denoiser: PVADenoiser,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    batch: HoleBatch,
    timesteps: Tensor,
    noise: Tensor,
    accumulate: int,
    more: Callable[[Tensor, Noised], Tensor] | None = None,
) -> Tensor:
    """The pictures once at every stratum of time, one backward pass each, and a step of the optimiser after so many.

    Args:
        timesteps: (bins, batch) int64.
        noise: (bins, batch, channels, h, w).
        accumulate: backward passes per step; `bins` is a multiple of it.
        more: what is added to the denoising loss, of the prediction and what was asked.
    Returns:
        (bins,) losses.
    """
    losses = []
    for index, (times, one) in enumerate(zip(timesteps, noise, strict=True), 1):
        prediction, noised = predict_hole(denoiser, scheduler, batch, times, one)
        loss = denoising_loss(prediction, noised)
        if more is not None:
            loss = loss + more(prediction, noised)
        (loss / accumulate).backward()
        losses.append(loss.detach())
        if index % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return torch.stack(losses)
