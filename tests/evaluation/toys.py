"""People made of coloured squares, and recognisers that see squares: evaluations whose outcome is known, in milliseconds.

A picture is 112 px with the landmarks of an aligned face, so that alignment changes nothing: 14 x 14 squares of 8 px. A
person is a pattern of squares, a photo the pattern with noise on each. A recogniser is a random linear map of the squares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from idgen.errors import IdgenError
from idgen.faces import FaceEncoder
from idgen.faces.align import ARCFACE_TEMPLATE
from idgen.faces.detection import Face

GRID, SQUARE = 14, 8
SEEDS = {"judge": 1, "mini": 2, "other": 3, "judge_renamed": 1}


def pattern(person: int) -> np.ndarray:
    """(14, 14, 3): who a toy person is."""
    return np.random.default_rng((7, person)).normal(128, 35, (GRID, GRID, 3))


def photo(person: int, shot: int, noise: float = 22.0) -> np.ndarray:
    """(112, 112, 3) uint8."""
    rng = np.random.default_rng((person, shot))
    return draw(pattern(person) + rng.normal(0, noise, (GRID, GRID, 3)))


def draw(squares: np.ndarray) -> np.ndarray:
    """Squares (14, 14, 3) as a picture."""
    return np.rint(squares).clip(0, 255).astype(np.uint8).repeat(SQUARE, 0).repeat(SQUARE, 1)


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, compress_level=1)


def write_people(folder: Path, people: int = 12, photos: int = 8) -> Path:
    """NAME/0.png ...: photos of toy people."""
    for person in range(people):
        for shot in range(photos):
            save(folder / name_of(person) / f"{shot}.png", photo(person, shot))
    return folder


def write_generated(folder: Path, people: int = 12, images: int = 4) -> Path:
    """What an honest generator makes: new photos of the people."""
    for person in range(people):
        for image in range(images):
            save(folder / f"{name_of(person)}_{image}.png", photo(person, 100 + image))
    return folder


def name_of(person: int) -> str:
    return f"toy{person:02d}"


def projection(name: str) -> torch.Tensor:
    """(588, 48): what the recogniser of that name does to the squares."""
    generator = torch.Generator().manual_seed(SEEDS[name])
    return torch.randn(GRID * GRID * 3, 48, generator=generator) / 24


class Network:
    """A toy recogniser."""

    def __init__(self, name: str) -> None:
        self.module = torch.nn.Linear(GRID * GRID * 3, 48, bias=False)
        self.module.weight.data = projection(name).T.contiguous()
        self.embedded = 0

    def embed(self, crops: np.ndarray) -> torch.Tensor:
        return self.forward(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1)

    @torch.no_grad()
    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        self.embedded += len(crops)
        squares = torch.nn.functional.adaptive_avg_pool2d(crops, GRID).permute(0, 2, 3, 1).flatten(1)
        return self.module(squares)


def detector(image: np.ndarray) -> list[Face]:
    """A face in every picture that is not all black, at the landmarks of an aligned one."""
    if not image.any():
        return []
    scale = image.shape[0] / 112
    return [Face(np.array([0, 0, 111, 111], np.float32) * scale, (ARCFACE_TEMPLATE * scale).astype(np.float32), 0.9)]


def toy_encoder(name: str) -> FaceEncoder:
    return FaceEncoder(detector, Network(name), name)


def with_toys(monkeypatch: pytest.MonkeyPatch) -> dict[str, FaceEncoder]:
    """Let `FaceEncoder.from_pretrained` give toy recognisers; returns those that were asked for."""
    made: dict[str, FaceEncoder] = {}

    def load(name: Any, **_: Any) -> FaceEncoder:
        if str(name) not in SEEDS:
            raise IdgenError(f"no face encoder {str(name)!r}")
        return made.setdefault(str(name), toy_encoder(str(name)))

    monkeypatch.setattr(FaceEncoder, "from_pretrained", load)
    return made
