"""The timestep-scaled identity loss (ReF-LDM: Hsiao et al., NeurIPS 2024, arXiv 2412.05043, section 3.3).

The clean picture that a noise prediction stands for is decoded and shown to a recogniser. At high noise that picture is a
blur of nobody in particular, so the loss is scaled with the share of the picture that is left in the noisy latents. What is
wanted is the autoencoder's reconstruction of the photo, the best that can be decoded, rather than the photo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from idgen.errors import IdgenError
from idgen.faces.align_torch import norm_crop_torch

# Scales by name, of alphas_cumprod[t] and t: the published one, and those it was compared with (tables 3 and 4).
WEIGHTINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sqrt_abar": lambda abar, t: abar.sqrt(),
    "t_lt_500": lambda abar, t: (t < 500).to(abar),
    "t_lt_100": lambda abar, t: (t < 100).to(abar),
    "unscaled": lambda abar, t: torch.ones_like(abar),
}

IdentitySchedule = Literal["scaled", "naive", "window"]

# The share of a 512 px FFHQ crop that is face, on both axes.
REGION = (0.0625, 0.9375)
RECOGNISER_SIZE = 112


@dataclass(frozen=True)
class RestorationLosses:
    """Scalars: the noise prediction's squared error, the scaled identity distance (before its weight), and their sum."""

    noise: Tensor
    identity: Tensor
    total: Tensor


def restoration_losses(
    prediction: Tensor, noise: Tensor, distances: Tensor, weights: Tensor, identity_weight: float = 0.1
) -> RestorationLosses:
    """What ReF-LDM trains with.

    Args:
        prediction, noise: (batch, channels, h, w) the predicted and the added noise.
        distances: (batch,) from `identity_distances`.
        weights: (batch,) from `timestep_weights`.
    """
    error = F.mse_loss(prediction.float(), noise.float())
    identity = (weights * distances).mean()
    return RestorationLosses(error, identity, error + identity_weight * identity)


def timestep_weights(alphas_cumprod: Tensor, timesteps: Tensor, kind: str = "sqrt_abar") -> Tensor:
    """The identity loss's scale at each timestep, (batch,) in [0, 1].

    Args:
        alphas_cumprod: (train timesteps,) of the scheduler.
        timesteps: (batch,) int64.
        kind: a name in `WEIGHTINGS`.

    Raises:
        IdgenError: no such kind.
    """
    if kind not in WEIGHTINGS:
        raise IdgenError(f"no timestep weighting {kind!r}: there are {', '.join(WEIGHTINGS)}")
    return WEIGHTINGS[kind](alphas_cumprod.to(timesteps.device)[timesteps], timesteps)


def schedule_weights(schedule: IdentitySchedule, alphas_cumprod: Tensor, timesteps: Tensor, window: int) -> Tensor:
    """The identity loss's scale at each timestep for a training of any family, (batch,) in [0, 1].

    Args:
        schedule: `"scaled"`: the published square root of the signal's share; `"naive"`: 1 at every timestep;
            `"window"`: 1 below `window`, 0 from there on.
        alphas_cumprod, timesteps: as in `timestep_weights`.
        window: the first timestep at which the predicted picture shows nobody.
    """
    if schedule == "window":
        return (timesteps < window).to(alphas_cumprod.dtype)
    return timestep_weights(alphas_cumprod, timesteps, "sqrt_abar" if schedule == "scaled" else "unscaled")


def scheduled_identity(
    embed: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    clean: Tensor,
    landmarks: Tensor,
    targets: Tensor,
    weights: Tensor,
    most: int,
) -> Tensor:
    """The weighed distance of predicted pictures to who they should show, a mean over those that count.

    Args:
        embed: aligned faces (n, 3, 112, 112) in [-1, 1] -> embeddings (n, dim).
        decode: scaled latents -> pictures (n, 3, height, width) in [-1, 1].
        clean: (batch, channels, h, w) what the predictions stand for.
        landmarks: (batch, 5, 2) px of the photos that they are of.
        targets: (batch, dim) embeddings.
        weights: (batch,) from `schedule_weights`, times 0 for samples that do not count.
        most: so many of those that count are decoded; the rest is not looked at.
    """

    def see(pictures: Tensor, rows: Tensor) -> Tensor:
        # Half precision would place the crop's pixels wrongly.
        with torch.autocast(pictures.device.type, enabled=False):
            crops = norm_crop_torch(pictures, landmarks[rows])
        return embed(crops)

    return weighed_distance(see, decode, clean, targets, weights, most)


def weighed_distance(
    see: Callable[[Tensor, Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    clean: Tensor,
    targets: Tensor,
    weights: Tensor,
    most: int,
) -> Tensor:
    """`scheduled_identity` for any way of looking at pictures.

    Args:
        see: pictures (n, 3, height, width) in [-1, 1], and which rows of the batch they are (n,) -> embeddings (n, dim).
        decode, clean, targets, weights, most: as there.
    """

    def distances(pictures: Tensor, rows: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(see(pictures, rows).float(), targets[rows].float())

    return weighed_loss(distances, decode, clean, weights, most)


def weighed_loss(
    losses: Callable[[Tensor, Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    clean: Tensor,
    weights: Tensor,
    most: int,
) -> Tensor:
    """The weighed mean of a loss of pictures, over the first `most` samples that count.

    Args:
        losses: pictures (n, 3, height, width) in [-1, 1], and which rows of the batch they are (n,) -> losses (n,).
        decode, clean, weights, most: as in `scheduled_identity`.
    """
    chosen = weights.nonzero()[:, 0][:most]
    if not len(chosen):
        return clean.sum() * 0
    return (weights[chosen] * losses(decode(clean[chosen]).float(), chosen)).mean()


def clean_latents(noisy: Tensor, prediction: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """The clean latents that a noise prediction stands for, like `noisy` (batch, channels, h, w)."""
    abar = alphas_cumprod.to(noisy.device)[timesteps].view(-1, 1, 1, 1)
    return noisy / abar.sqrt() - (1 / abar - 1).sqrt() * prediction


def identity_distances(recogniser: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor) -> Tensor:
    """1 - cosine of the embeddings, (batch,) in [0, 2]; gradients reach `images` only.

    Args:
        recogniser: aligned faces (batch, 3, 112, 112) in [-1, 1] -> embeddings (batch, dim).
        images: (batch, 3, height, width) in [-1, 1], faces aligned as in FFHQ.
        targets: like `images`.
    """
    with torch.no_grad():
        wanted = recogniser(face_region(targets))
    return 1 - F.cosine_similarity(recogniser(face_region(images)), wanted)


def face_region(images: Tensor) -> Tensor:
    """The face of FFHQ-aligned pictures (batch, 3, height, width) as recognisers see it, (batch, 3, 112, 112)."""
    rows, columns = (slice(*(int(share * length) for share in REGION)) for length in images.shape[-2:])
    return F.interpolate(images[..., rows, columns], (RECOGNISER_SIZE, RECOGNISER_SIZE), mode="area")
