"""A small network that says which of two pictures looks better made: the mini family's preference head.

Trained by `train/preference.py` with the Bradley-Terry loss. Published heads for photographs are in `idgen.rewards.published`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgen.checkpoint import load_strict, load_weights
from idgen.models.registry import read_config

ARCHITECTURE = "preference_net"
SIZE = 128  # pixels per side at which pictures are read


class PreferenceNet(nn.Module):
    """Whole pictures (batch, 3, height, width) in [-1, 1] -> scores (batch,); well-made pictures have mean 0 and deviation 1.

    Args:
        widths: channels at 32, 16 and 8 px.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, widths: Sequence[int] = (64, 96, 128)) -> None:
        super().__init__()
        self.widths = list(widths)
        # Overlapping patches: artefacts that repeat with the patches' period must not hide between them.
        self.stem = nn.Conv2d(3, widths[0], 8, 4, 2)
        stages: list[nn.Module] = [_Block(widths[0])]
        for before, width in pairwise(widths):
            stages += [nn.Conv2d(before, width, 3, 2, 1), _Block(width)]
        self.stages = nn.Sequential(*stages)
        # The worst place of a picture tells as much as the mean of all.
        self.head = nn.Linear(2 * widths[-1], 1)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    @property
    def config(self) -> dict[str, Any]:
        """What config.json beside the weights holds."""
        return {"architecture": ARCHITECTURE, "widths": self.widths}

    def forward(self, pictures: Tensor) -> Tensor:
        if pictures.shape[-2:] != (SIZE, SIZE):
            pictures = F.interpolate(pictures, (SIZE, SIZE), mode="bilinear", antialias=True)
        features = self.stages(self.stem(pictures))  # (batch, widths[-1], 8, 8)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        return (self.head(pooled)[:, 0].float() - self.mean) / self.deviation

    @torch.no_grad()
    def calibrate(self, scores: Tensor) -> None:
        """Makes the scores (n,) of well-made pictures, given as they are now, have mean 0 and deviation 1."""
        self.mean += scores.mean() * self.deviation
        self.deviation *= scores.std().clamp_min(1e-3)


def load_preference(folder: Path, device: torch.device | str = "cpu") -> PreferenceNet:
    """The network in a folder with config.json and model.safetensors, frozen and in eval mode.

    Raises:
        IdgenError: the folder or a file of it is missing, damaged or of something else.
    """
    config: Mapping[str, Any] = read_config(folder)
    network = PreferenceNet(config.get("widths", (64, 96, 128)))
    load_strict(network, load_weights(folder / "model.safetensors"), f"the preference head in {folder}")
    return network.to(device).eval().requires_grad_(False)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, 1, 1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
