"""Deterministic sampling that gradients can go through: diffusers' DDIM steps without a pipeline around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from idgen.errors import IdgenError

# (noisy latents (batch, channels, h, w), timestep () int64) -> the model's answer, like the latents, in float32.
Denoise = Callable[[Tensor, Tensor], Tensor]


class Chain:
    """The steps from noise to clean latents (Song et al., arXiv 2010.02502, eta 0), of a model that predicts v, the noise or x0.

    Args:
        scheduler: any diffusers scheduler of the model; its noise schedule and prediction type are taken over.
        steps: how many.

    Raises:
        IdgenError: fewer than one step.
    """

    def __init__(self, scheduler: Any, steps: int) -> None:
        if steps < 1:
            raise IdgenError(f"{steps} sampling steps: at least 1 is needed")
        # Clipping belongs to models of pixels; a clipped value has no gradient.
        self.scheduler = DDIMScheduler.from_config(scheduler.config, clip_sample=False, thresholding=False)
        self.scheduler.set_timesteps(steps)
        self.timesteps: Tensor = self.scheduler.timesteps.cpu()  # (steps,), falling

    def __len__(self) -> int:
        return len(self.timesteps)

    def step(self, answer: Tensor, index: int, latents: Tensor) -> Tensor:
        """The latents after step `index` (0 is the noisiest), given the model's answer to those before it."""
        return self.scheduler.step(answer, self.timesteps[index], latents).prev_sample

    def clean(self, answer: Tensor, index: int, latents: Tensor) -> Tensor:
        """The clean latents that the answer at step `index` stands for."""
        return self.scheduler.step(answer, self.timesteps[index], latents).pred_original_sample

    def noisy(self, clean: Tensor, noise: Tensor, index: int) -> Tensor:
        """Clean latents noised to where step `index` begins."""
        return self.scheduler.add_noise(clean, noise, self.timesteps[index].to(clean.device).expand(len(clean)))

    def walk(self, denoise: Denoise, latents: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Steps `first` to `last` (exclusive; all by default), with gradients where they are enabled."""
        for index in range(first, len(self) if last is None else last):
            latents = self.step(self.ask(denoise, latents, index), index, latents)
        return latents

    def ask(self, denoise: Denoise, latents: Tensor, index: int) -> Tensor:
        """The model's answer at step `index`."""
        return denoise(latents, self.timesteps[index].to(latents.device))

    @torch.no_grad()
    def sample(self, denoise: Denoise, noise: Tensor) -> Tensor:
        """Clean latents, without gradients."""
        return self.walk(denoise, noise)
