"""The denoising loss with min-SNR weights (Hang et al., arXiv 2303.09556), for models that predict v or the noise."""

from __future__ import annotations

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
    weights: Tensor  # (batch,)


def add_noise(scheduler: Any, latents: Tensor, gamma: float = 5.0) -> Noised:
    """Draws times (one stratum each, so that every batch covers them all) and noise from torch's global generator."""
    batch, device = len(latents), latents.device
    places = (torch.randperm(batch, device=device) + torch.rand(batch, device=device)) / batch
    timesteps = (places * scheduler.config.num_train_timesteps).long()
    return noised_at(scheduler, latents, torch.randn_like(latents), timesteps, gamma)


def noised_at(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor, gamma: float = 5.0) -> Noised:
    """`add_noise` with times (batch,) and noise (like `latents`) that are given."""
    snr = compute_snr(scheduler, timesteps)
    # v-prediction: the loss in v already carries SNR + 1 of the loss in x0; the loss in the noise carries SNR.
    if scheduler.config.prediction_type == "v_prediction":
        target, weights = scheduler.get_velocity(latents, noise, timesteps), snr.clamp_max(gamma) / (snr + 1)
    else:
        target, weights = noise, snr.clamp_max(gamma) / snr.clamp_min(1e-8)
    return Noised(scheduler.add_noise(latents, noise, timesteps), target, timesteps, weights)


def denoising_loss(prediction: Tensor, noised: Noised) -> Tensor:
    """Weighted mean squared error, normalised so that the weights' mean does not change the learning rate."""
    errors = (prediction.float() - noised.target).pow(2).mean((1, 2, 3))
    return (errors * noised.weights).mean() / noised.weights.mean()


def predicted_latents(scheduler: Any, prediction: Tensor, noised: Noised) -> Tensor:
    """The clean latents that a prediction stands for, by the scheduler's `prediction_type`."""
    alpha = scheduler.alphas_cumprod.to(prediction.device)[noised.timesteps].view(-1, 1, 1, 1)
    if scheduler.config.prediction_type == "v_prediction":
        return alpha.sqrt() * noised.noisy - (1 - alpha).sqrt() * prediction.float()
    return (noised.noisy - (1 - alpha).sqrt() * prediction.float()) / alpha.sqrt().clamp_min(1e-4)
