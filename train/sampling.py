"""Pictures for the grids of a training: a plain guided DDIM loop without a pipeline around it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def sample(
    unet: Any, vae: Any, scheduler: Any, context: Tensor, empty: Tensor, guidance: float, steps: int = 20
) -> Tensor:
    """Pictures (batch, 3, h, w) in [-1, 1] for contexts (batch, tokens, dim), always from the same noise.

    Args:
        empty: (1, tokens, dim), the context of "no condition".
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    size = unet.config.sample_size
    shape = (len(context), unet.config.in_channels, size, size)
    latents = torch.randn(shape, generator=generator).to(context.device)
    both = torch.cat([empty.expand(len(context), -1, -1), context])
    for time in scheduler.timesteps:
        out = unet(torch.cat([latents, latents]), time, both).sample.float()
        without, conditioned = out.chunk(2)
        latents = scheduler.step(without + guidance * (conditioned - without), time, latents).prev_sample
    return vae.decode(latents / vae.config.scaling_factor).sample
