"""Pictures made worse on purpose, by how much is known: pairs for a preference head without anybody's vote.

ID-Aligner (Chen et al., arXiv 2404.15449, section 3.3) makes its structure set so: people with twisted limbs against people as
they are. Here faces have their parts moved, and carry the artefacts that rewarded models are known to grow: fine grids, doubled
edges, blotches, burnt colours, blur.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def distort(images: Tensor, landmarks: Tensor, severity: Tensor, kinds: Tensor | None = None) -> Tensor:
    """Each picture made worse in one way; randomness from torch's global generator.

    Args:
        images: (batch, 3, h, w) in [-1, 1].
        landmarks: (batch, 5, 2) px.
        severity: (batch,) in [0, 1]; 0 leaves the picture as it is.
        kinds: (batch,) int64, places in `KINDS`; at random by default, half of them moved parts.

    Returns:
        Like `images`.
    """
    if kinds is None:
        moved = torch.rand(len(images), device=images.device) < 0.5
        others = torch.randint(1, len(KINDS), (len(images),), device=images.device)
        kinds = torch.where(moved, torch.zeros_like(others), others)
    result = images
    for place, make in enumerate(KINDS.values()):
        worse = make(images, landmarks, severity.view(-1, 1, 1, 1))
        result = torch.where((kinds == place).view(-1, 1, 1, 1), worse, result)
    return torch.where(severity.view(-1, 1, 1, 1) > 0, result.clamp(-1, 1), images)


def move_parts(images: Tensor, landmarks: Tensor, severity: Tensor) -> Tensor:
    """Eyes, nose and corners of the mouth shift, each its own way, by up to a third of the distance between the eyes."""
    batch, _, height, width = images.shape
    grid = _pixels(images)  # (h, w, 2)
    eyes = (landmarks[:, 1] - landmarks[:, 0]).norm(dim=-1).view(-1, 1, 1)  # (batch, 1, 1)
    angle = torch.rand(batch, 5, 1, device=images.device) * 2 * torch.pi
    shift = torch.cat([angle.cos(), angle.sin()], -1) * eyes * 0.33 * severity.view(-1, 1, 1)  # (batch, 5, 2)
    # Not every part: a face whose parts all shift the same way is only elsewhere.
    shift = shift * (torch.rand(batch, 5, 1, device=images.device) < 0.6)
    offsets = grid[None, None] - landmarks.view(batch, 5, 1, 1, 2)
    near = (-0.5 * offsets.pow(2).sum(-1) / (0.3 * eyes.view(-1, 1, 1, 1)).pow(2)).exp()  # (batch, 5, h, w)
    moved = grid - torch.einsum("bkhw,bkc->bhwc", near, shift)
    points = (moved * 2 + 1) / torch.tensor([width, height], device=images.device) - 1
    return F.grid_sample(images, points, "bilinear", "border", align_corners=False)


def fine_grid(images: Tensor, landmarks: Tensor, severity: Tensor) -> Tensor:
    """Stripes across and down with a period of 3 to 9 px."""
    period = _uniform(images, 3.0, 9.0)
    x, y = _pixels(images).unbind(-1)
    wave = (2 * torch.pi * x / period).sin() * (2 * torch.pi * y / period).sin()
    return images + 0.25 * severity * wave


def ghost(images: Tensor, landmarks: Tensor, severity: Tensor) -> Tensor:
    """The picture laid over itself, shifted by a few pixels."""
    width = images.shape[-1]
    by = max(1, width // 24)
    shifted = torch.roll(images, (int(torch.randint(-by, by + 1, ())), by), (-2, -1))
    return images.lerp(shifted, 0.5 * severity)


def blotches(images: Tensor, landmarks: Tensor, severity: Tensor) -> Tensor:
    """Soft stains of colour."""
    cells = torch.randn(len(images), 3, 6, 6, device=images.device)
    return images + 0.35 * severity * F.interpolate(cells, images.shape[-2:], mode="bicubic")


def burn(images: Tensor, landmarks: Tensor, severity: Tensor) -> Tensor:
    """Colours and contrast driven up."""
    grey = images.mean(1, keepdim=True)
    return (grey + (images - grey) * (1 + 1.5 * severity)) * (1 + severity)


def blur(images: Tensor, landmarks: Tensor, severity: Tensor) -> Tensor:
    """Fine detail lost."""
    coarse = F.interpolate(F.avg_pool2d(images, 4), images.shape[-2:], mode="bilinear")
    return images.lerp(coarse, severity)


KINDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "moved parts": move_parts,
    "fine grid": fine_grid,
    "ghost": ghost,
    "blotches": blotches,
    "burnt colours": burn,
    "blur": blur,
}


def _pixels(images: Tensor) -> Tensor:
    """(h, w, 2) x, y."""
    y, x = torch.meshgrid(*(torch.arange(size, device=images.device) for size in images.shape[-2:]), indexing="ij")
    return torch.stack([x, y], -1).to(images.dtype)


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    return torch.rand(len(images), 1, 1, 1, device=images.device) * (high - low) + low
