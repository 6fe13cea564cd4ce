"""How much the images of one person differ from each other, to be divided by the same figure of real photos.

A generator that pastes one picture for every seed has a perfect identity; the ratio of its spread to the
spread of as many real photos of the same people shows it. All figures are per person, then averaged.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor


def pose_spread(pose: Tensor) -> Tensor:
    """(people,) degrees: standard deviation within a person of (people, images, 3) yaw, pitch, roll.

    The three variances are summed, so the figure is the typical distance from the person's mean pose.
    """
    return pose.double().var(1, unbiased=True).sum(-1).sqrt()


def expression_spread(probabilities: Tensor) -> Tensor:
    """(people,): the same of expression probabilities (people, images, classes) by the probe, in 0..1."""
    return probabilities.double().var(1, unbiased=True).sum(-1).sqrt()


def light_of(crops: Tensor) -> Tensor:
    """(n, 3): how aligned faces (n, height, width, 3) uint8 are lit: mean luma, and its slope across and down the face.

    All in 0..1; the slopes are those of the least-squares plane through the luma of the inner face, so that a light from the
    side shows as a slope and a brighter one as a higher mean. Skin and background differ between people, not within one.
    """
    size = crops.shape[1]
    inner = slice(size // 4, size - size // 4)
    luma = (crops[:, inner, inner].double() / 255 * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)).sum(-1)
    steps = torch.linspace(-0.5, 0.5, luma.shape[1], dtype=torch.float64)
    weight = (steps**2).mean()
    across = (luma.mean(1) * steps).mean(1) / weight
    down = (luma.mean(2) * steps).mean(1) / weight
    return torch.stack([luma.mean((1, 2)), across, down], 1)


def light_spread(light: Tensor) -> Tensor:
    """(people,): standard deviation within a person of (people, images, 3) readings of `light_of`."""
    return light.double().var(1, unbiased=True).sum(-1).sqrt()


def pixel_spread(images: Tensor) -> Tensor:
    """(people,): root mean square pixel difference over all pairs of a person's images.

    Args:
        images: (people, images, height, width, 3), uint8 or floats in 0..1; the result is in 0..1.
    """
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    per_person = []
    for person in images:
        pixels = person.float() / scale  # (images, height, width, 3)
        squares = [((pixels[a] - pixels[b]) ** 2).mean() for a, b in combinations(range(len(pixels)), 2)]
        per_person.append(torch.stack(squares).mean().sqrt())
    return torch.stack(per_person).double()
