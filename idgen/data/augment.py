"""Random changes to batches of crops, on tensors, so that a recogniser or detector learns what stays."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def photometric(images: Tensor, strength: float = 1.0) -> Tensor:
    """Brightness, contrast, colour cast, grey, softness, noise: pictures (batch, 3, h, w) in [-1, 1], each on its own."""
    batch, device = len(images), images.device

    def draw(low: float, high: float) -> Tensor:
        return torch.rand(batch, 1, 1, 1, device=device) * (high - low) + low

    cast = 1 + strength * 0.1 * torch.randn(batch, 3, 1, 1, device=device)
    x = (images * draw(1 - 0.35 * strength, 1 + 0.35 * strength) + draw(-0.25, 0.25) * strength + 1) * cast - 1
    grey = x.mean(1, keepdim=True)
    saturation = torch.where(draw(0, 1) < 0.12 * strength, torch.zeros_like(grey[:, :, :1, :1]), draw(0.7, 1.3))
    x = grey + (x - grey) * saturation
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, soft, draw(-0.6, 1.0).clamp_min(-0.4))
    coarse = F.interpolate(F.avg_pool2d(x, 2), x.shape[-2:], mode="bilinear", align_corners=False)
    x = torch.where(draw(0, 1) < 0.2 * strength, coarse, x)
    x = x + torch.randn_like(x) * draw(0, 0.06 * strength)
    return x.clamp(-1, 1)


def erase(images: Tensor, share: float = 0.3) -> Tensor:
    """Covers a random rectangle with grey in a `share` of the pictures (batch, 3, h, w)."""
    batch, _, height, width = images.shape
    device = images.device
    centre, half = torch.rand(2, batch, 1, device=device), torch.rand(2, batch, 1, device=device) * 0.17 + 0.06
    rows = torch.linspace(0, 1, height, device=device)[None]
    columns = torch.linspace(0, 1, width, device=device)[None]
    inside = ((rows - centre[0]).abs() < half[0])[:, :, None] & ((columns - centre[1]).abs() < half[1])[:, None, :]
    chosen = torch.rand(batch, 1, 1, device=device) < share
    return torch.where((inside & chosen)[:, None], torch.rand(batch, 3, 1, 1, device=device) * 2 - 1, images)


def jitter_landmarks(landmarks: Tensor, share: float = 0.03) -> Tensor:
    """Moves landmarks (batch, 5, 2) by about `share` of the distance between the eyes, as a detector would."""
    distance = (landmarks[:, 1] - landmarks[:, 0]).norm(dim=1)[:, None, None]
    together = torch.randn(len(landmarks), 1, 2, device=landmarks.device)
    return landmarks + share * distance * (0.5 * torch.randn_like(landmarks) + 0.5 * together)
