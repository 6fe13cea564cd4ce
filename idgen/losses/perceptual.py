"""The distance between two pictures as a network sees them, in the middle of it rather than at its end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_distance(made: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """LPIPS without its learned weights (Zhang et al. 2018, arXiv 1801.03924, equation 1): (n,) in [0, 4 per map].

    Args:
        made: feature maps (n, channels, height, width), one per depth, of the pictures.
        wanted: the same of the pictures that they should look like; no gradient passes.
    """
    parts = [
        (F.normalize(a.float(), dim=1) - F.normalize(b.detach().float(), dim=1)).pow(2).sum(1).mean((1, 2))
        for a, b in zip(made, wanted, strict=True)
    ]
    return torch.stack(parts).sum(0)
