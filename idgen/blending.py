"""Made pixels where they meet a photo's: no seam along the edge of a hole."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Relaxations at each size: a slope across half the picture is met to within three grey levels; 48 would make it one.
SWEEPS = 12
# The largest difference, as a length over the colours, that may be one of light; what is more is of things: a shirt at a chin.
LIGHT = 0.3
REACH = 1 / 32  # of the picture's longer side: how far from the edge things still show


def fill_seamlessly(photo: Tensor, made: Tensor, hole: Tensor) -> Tensor:
    """What was made in the hole, the photo to the bit elsewhere, and no edge between them.

    How the two differ around the hole is carried on into it as smoothly as can be and added: what was made keeps its detail and
    takes the photo's light at the edge (Perez et al., "Poisson Image Editing", SIGGRAPH 2003, eq. 7: a membrane). Differences
    too large to be of light fade away near the edge, or a shirt would tint the face above it.

    Args:
        photo, made: (n, c, height, width) in [-1, 1].
        hole: (n, 1, height, width) bool; a row that is all hole is left as it was made.

    Returns:
        float32 of that shape; within the hole it may overshoot the range.
    """
    photo, made = photo.float(), made.float()
    difference = photo - made
    light = difference * (LIGHT / difference.norm(dim=1, keepdim=True).clamp(min=LIGHT))
    reach = REACH * max(photo.shape[-2:])
    carried = membrane(light, hole) + membrane(difference - light, hole, 1 / reach**2)
    return torch.where(hole, made + carried, photo)


def membrane(values: Tensor, hole: Tensor, pull: float = 0.0) -> Tensor:
    """Values as given outside the hole, and smooth in it: solved at half the size, then relaxed (cascadic multigrid).

    Args:
        pull: towards 0, of each pixel beside its four neighbours: values fade by e over 1 / sqrt(pull) pixels; 0 is harmonic.
    """
    if not hole.any():
        return values
    known = (~hole).to(values)
    height, width = values.shape[-2:]
    if height == width == 1:
        return values * known
    weight = _halved(known)
    coarse = membrane(_halved(values * known) / weight.clamp(min=1e-6), weight == 0, 4 * pull)
    relaxed = torch.where(hole, F.interpolate(coarse, size=(height, width), mode="bilinear"), values)
    for _ in range(SWEEPS):
        around = F.pad(relaxed, (1, 1, 1, 1), mode="replicate")  # nothing is known beyond the picture: it goes on level
        rows = around[..., :-2, 1:-1] + around[..., 2:, 1:-1]
        columns = around[..., 1:-1, :-2] + around[..., 1:-1, 2:]
        relaxed = torch.where(hole, (rows + columns) / (4 + pull), relaxed)
    return relaxed


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
