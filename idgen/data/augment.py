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


def vary_references(images: Tensor) -> Tensor:
    """Another shot of the same, as ReF-LDM varies references (arXiv 2412.05043, section 4.1; `ldm/data/ir.py`).

    Brightness, contrast and saturation by a fifth, hue by a fiftieth; turned by 2 degrees, shifted and scaled by a twentieth,
    in another perspective, half of them mirrored. Pictures (batch, 3, h, w) in [-1, 1]; black where a picture ends.
    """
    batch, device = len(images), images.device

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(batch, *shape, device=device) * (high - low) + low

    light = (images.float() + 1) / 2 * draw(0.8, 1.2, 1, 1, 1)
    luma = torch.tensor(_LUMA, device=device).view(3, 1, 1)
    mean = (light * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    light = mean + (light - mean) * draw(0.8, 1.2, 1, 1, 1)
    grey = (light * luma).sum(1, keepdim=True)
    light = (grey + (light - grey) * draw(0.8, 1.2, 1, 1, 1)).clamp(0, 1)
    light = torch.einsum("bij,bjhw->bihw", _hue_turns(draw(-0.02, 0.02)), light).clamp(0, 1)

    turn = torch.deg2rad(draw(-2, 2))
    across, up = torch.cos(turn), torch.sin(turn)
    matrix = torch.stack([torch.stack([across, -up], 1), torch.stack([up, across], 1)], 1) / draw(0.95, 1.05, 1, 1)
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], device=device)
    seen = corners * (1 - draw(0, 0.2, 4, 2))  # a corner moves inwards by up to a fifth of half a side
    seen = torch.einsum("bij,bcj->bci", matrix, seen) + draw(-0.1, 0.1, 1, 2)  # twice a twentieth: sides are 2 long
    seen[..., 0] *= torch.where(draw(0, 1, 1) < 0.5, -1.0, 1.0)
    return _through_window(light, corners, seen) * 2 - 1


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


_LUMA = (0.299, 0.587, 0.114)
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def _hue_turns(share: Tensor) -> Tensor:
    """(batch, 3, 3) that turn the hue of RGB by shares (batch,) of the colour circle."""
    yiq = torch.tensor(_YIQ, device=share.device)
    cos, sin = torch.cos(2 * torch.pi * share), torch.sin(2 * torch.pi * share)
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    return torch.linalg.inv(yiq) @ turn @ yiq


def _through_window(images: Tensor, corners: Tensor, seen: Tensor) -> Tensor:
    """Pictures whose corners (4, 2), in -1 .. 1, show what is at `seen` (batch, 4, 2); black beyond their edge."""
    x, y = corners.T.expand(len(seen), 2, 4).unbind(1)
    u, v = seen.unbind(-1)  # (batch, 4)
    zero, one = torch.zeros_like(u), torch.ones_like(u)
    rows = [
        torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1),
        torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1),
    ]
    solved = torch.linalg.solve(torch.cat(rows, 1), torch.cat([u, v], 1))  # the eight numbers of a homography
    matrix = torch.cat([solved, one[:, :1]], 1).view(-1, 3, 3)
    height, width = images.shape[2:]
    plane = F.affine_grid(torch.eye(2, 3, device=images.device)[None], [1, 1, height, width], align_corners=False)
    points = torch.einsum("bij,hwj->bhwi", matrix, F.pad(plane[0], (0, 1), value=1.0))
    return F.grid_sample(images, points[..., :2] / points[..., 2:], "bilinear", "zeros", align_corners=False)
