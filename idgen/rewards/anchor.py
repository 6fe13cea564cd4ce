"""What holds a rewarded model to its base: the distance of their answers to the same noisy latents."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

Anchor = Literal["mse", "kl"]


def anchor_loss(answer: Tensor, base: Tensor, timesteps: Tensor, scheduler: Any, kind: Anchor = "mse") -> Tensor:
    """The mean distance of the model from its base, a scalar.

    Args:
        answer, base: (batch, channels, h, w) what both predict of the same noisy latents; gradients reach `answer` only.
        timesteps: (batch,) int64.
        scheduler: with `alphas_cumprod` and a `prediction_type`.
        kind: `"mse"` of the answers; `"kl"`: of the distributions that one ancestral step draws from (DDPM: Ho et al.,
            arXiv 2006.11239), per latent value: half of what the step gains in signal-to-noise ratio, times the squared
            difference of the clean latents (Kingma et al., arXiv 2107.00630, eq. 13). The first timestep
            draws nothing and counts 0.
    """
    difference = answer.float() - base.detach().float()
    errors = difference.pow(2).mean((1, 2, 3))
    if kind == "mse":
        return errors.mean()
    abar = scheduler.alphas_cumprod.to(answer.device)
    now, before = abar[timesteps], abar[(timesteps - 1).clamp_min(0)]
    gained = before / (1 - before) - now / (1 - now)
    if scheduler.config.prediction_type == "v_prediction":
        clean = (1 - now) * errors
    else:
        clean = (1 - now) / now.clamp_min(1e-8) * errors
    return (0.5 * torch.where(timesteps > 0, gained, torch.zeros_like(gained)) * clean).mean()
