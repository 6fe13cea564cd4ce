"""The denoising loss for models that predict v or the noise, by default at all times alike; min-SNR weights where asked for.

Min-SNR: Hang et al., arXiv 2303.09556. Of a model that predicts v and is sampled from pure noise (Lin et al., arXiv 2305.08891)
they all but leave out the first steps, where it is decided whose face it is, and which way it looks: the mini family, trained
with them, drew its first step no better than the mean of all pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.training_utils import compute_snr
from torch import Tensor


@dataclass(frozen=True)
class Noised:
    """Latents at a random time: what the model sees and what it must answer."""

    noisy: Tensor  # (batch, channels, h, w)
    target: Tensor  # like noisy
    timesteps: Tensor  # (batch,) int64
    weights: Tensor  # (batch,), of mean 1 over all times


def add_noise(scheduler: Any, latents: Tensor, gamma: float = math.inf) -> Noised:
    """Draws times (one stratum each, so that every batch covers them all) and noise from torch's global generator."""
    batch, device = len(latents), latents.device
    places = (torch.randperm(batch, device=device) + torch.rand(batch, device=device)) / batch
    last = scheduler.config.num_train_timesteps - 1
    timesteps = (places * (last + 1)).long().clamp_max(last)  # float32 may round the last place up to 1
    return noised_at(scheduler, latents, torch.randn_like(latents), timesteps, gamma)


def noised_at(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor, gamma: float = math.inf) -> Noised:
    """`add_noise` with times (batch,) and noise (like `latents`) that are given; an infinite gamma weighs all times alike.

    Args:
        scheduler: any with `alphas_cumprod` and a `prediction_type`, also one that is meant for sampling. Its own `add_noise` is
            not asked: those of the solvers know only the times that they sample at, and Euler's leaves the latents unscaled.
    """
    abar = scheduler.alphas_cumprod.to(latents)[timesteps].view(-1, 1, 1, 1)
    signal, spread = abar**0.5, (1 - abar) ** 0.5
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = signal * noise - spread * latents if velocity else noise
    return Noised(signal * latents + spread * noise, target, timesteps, _weights(scheduler, timesteps, gamma))


def denoising_loss(prediction: Tensor, noised: Noised) -> Tensor:
    """Weighted mean squared error."""
    errors = (prediction.float() - noised.target).pow(2).mean((1, 2, 3))
    return (errors * noised.weights).mean()


def predicted_latents(scheduler: Any, prediction: Tensor, noised: Noised) -> Tensor:
    """The clean latents that a prediction stands for, by the scheduler's `prediction_type`."""
    alpha = scheduler.alphas_cumprod.to(prediction.device)[noised.timesteps].view(-1, 1, 1, 1)
    if scheduler.config.prediction_type == "v_prediction":
        return alpha.sqrt() * noised.noisy - (1 - alpha).sqrt() * prediction.float()
    return (noised.noisy - (1 - alpha).sqrt() * prediction.float()) / alpha.sqrt().clamp_min(1e-4)


def _weights(scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """Min-SNR weights (batch,), 1 in the mean over all times: gamma does not change the learning rate."""
    if math.isinf(gamma):
        return torch.ones(len(timesteps), device=timesteps.device)
    snr = compute_snr(scheduler, torch.arange(len(scheduler.alphas_cumprod), device=timesteps.device))
    # v-prediction: the loss in v already carries SNR + 1 of the loss in x0; the loss in the noise carries SNR.
    carried = snr + 1 if scheduler.config.prediction_type == "v_prediction" else snr.clamp_min(1e-8)
    weights = snr.clamp_max(gamma) / carried
    return (weights / weights.mean())[timesteps]
