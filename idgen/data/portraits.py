"""Portraits of people with regions to paint over: what PVA trains on, from whichever data set they come."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from idgen.console import progress
from idgen.data.faces import CACHE, FaceFolder
from idgen.data.regions import region_mask
from idgen.files import atomic_write

# Pictures (n, 3, size, size) in [-1, 1] and their numbers in the data set -> raw embeddings (n, dim).
Embed = Callable[[Tensor, np.ndarray], Tensor]


class Portraits(Protocol):
    """Aligned square pictures, numbered from 0.

    Attributes:
        people: for every person the numbers of the pictures.
        cache: a folder for what is computed once.
    """

    people: list[np.ndarray]
    cache: Path

    def __len__(self) -> int: ...

    def picture(self, index: int) -> np.ndarray:
        """uint8 (size, size, 3), sRGB."""

    def hole(self, index: int, rng: np.random.Generator | None) -> np.ndarray:
        """bool (size, size): some of the face, free-form strokes too; without `rng` the whole face."""

    def caption(self, index: int) -> str:
        """What the picture shows, or nothing."""


class SynthPortraits:
    """A folder of `idgen synth`.

    Raises:
        IdgenError: a photo lacks landmarks68; and `caption`, where one lacks its caption.
    """

    def __init__(self, data: FaceFolder) -> None:
        self.data, self.people, self.cache = data, data.shots, data.folder / CACHE
        self.landmarks68 = np.array(data.column("landmarks68"), np.float32)

    def __len__(self) -> int:
        return len(self.data)

    def picture(self, index: int) -> np.ndarray:
        return self.data.images[index]

    def hole(self, index: int, rng: np.random.Generator | None) -> np.ndarray:
        size = self.data.images.shape[2], self.data.images.shape[1]
        return region_mask("random" if rng else "whole", self.landmarks68[index], size, rng)

    def caption(self, index: int) -> str:
        return str(self.data.captions[index])


def embed_portraits(data: Portraits, embed: Embed, name: str, device: torch.device, batch: int = 32) -> np.ndarray:
    """Raw embeddings (pictures, dim) float32, computed once and kept beside the data under `name`."""
    path = data.cache / f"{name}.npy"
    if path.exists():
        stored = np.load(path)
        if len(stored) == len(data):
            return stored
    parts = []
    starts = range(0, len(data), batch)
    with torch.no_grad():
        for start in progress(starts, len(starts), "identities"):
            numbers = np.arange(start, min(start + batch, len(data)))
            pictures = as_tensor(np.stack([data.picture(int(index)) for index in numbers]), device)
            parts.append(embed(pictures, numbers).float().cpu().numpy())
    result = np.concatenate(parts)
    with atomic_write(path) as temporary, temporary.open("wb") as handle:
        np.save(handle, result)
    return result


def mirrored_caption(caption: str) -> str:
    """What a caption says of the mirrored picture: left is right."""
    return re.sub(r"\b(left|right)\b", lambda side: "right" if side[0] == "left" else "left", caption)


def as_tensor(pictures: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (n, h, w, 3) -> float (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
