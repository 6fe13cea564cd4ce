"""What an identity adapter is trained on: renders with all that is known of them, or photos of people as they lie around."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from idgen.data.faces import FaceFolder
from idgen.data.prepared import Prepared, Preparer, groups
from idgen.errors import IdgenError


@dataclass(frozen=True)
class Drawn:
    """Samples of one batch.

    Attributes:
        ids: names in reports.
        latents: (batch, channels, h, w).
        vectors: (batch, dim) who each shows, by other photos of the person: unit length, or zeros for nobody.
        targets: (batch, dim) likewise by all other photos, for the recogniser of a loss of identity.
        landmarks: (batch, 5, 2) px.
        captions: what each shows.
    """

    ids: list[str]
    latents: Tensor
    vectors: Tensor
    targets: Tensor | None
    landmarks: Tensor
    captions: list[str]


class Samples(Protocol):
    """Draws samples; `people` are unit embeddings (people, dim) and captions to make grids of."""

    def draw(self, rng: np.random.Generator, count: int, most: int) -> Drawn: ...


class RenderSamples:
    """A folder of `idgen synth`.

    Args:
        latents: of all photos.
        vectors, targets: (photos, dim) unit embeddings by the conditioning recogniser, and by that of the loss.

    Raises:
        IdgenError: nobody has two photos.
    """

    def __init__(self, data: FaceFolder, latents: np.ndarray, vectors: Tensor, targets: Tensor | None) -> None:
        self.data, self.latents, self.vectors, self.targets = data, latents, vectors, targets
        counts = np.bincount(data.people)[data.people]
        self.photos = np.flatnonzero(counts >= 2)
        if not len(self.photos):
            raise IdgenError(f"nobody in {data.folder} has two photos: one is drawn, the others say who it is")

    def draw(self, rng: np.random.Generator, count: int, most: int) -> Drawn:
        chosen = rng.choice(self.photos, count, replace=len(self.photos) < count)
        vectors, targets = [], []
        for photo in chosen:
            own = self.data.shots[self.data.people[photo]]
            others = own[own != photo]
            some = rng.choice(others, min(len(others), int(rng.integers(1, most + 1))), replace=False)
            vectors.append(F.normalize(self.vectors[some].mean(0), dim=0))
            if self.targets is not None:
                targets.append(self.targets[others].mean(0))
        return Drawn(
            [self.data.name(int(photo)) for photo in chosen],
            torch.from_numpy(self.latents[chosen]).float(),
            torch.stack(vectors),
            torch.stack(targets) if targets else None,
            torch.from_numpy(self.data.landmarks[chosen]),
            [self.data.rows[photo]["caption"] for photo in chosen],
        )


class PhotoSamples:
    """Photos that `idgen.data.prepared` made ready; every batch is of one shape.

    Args:
        own: a person's only photo may say who is on it.

    Raises:
        IdgenError: nobody can be told by another photo.
    """

    def __init__(self, photos: list[Prepared], preparer: Preparer, source: Path | str, own: bool) -> None:
        self.photos, self.preparer, self.own = photos, preparer, own
        self.people = groups(photos)
        usable = [
            number
            for number, photo in enumerate(photos)
            if photo.vector is None or own or len(self.people[photo.person]) >= 2
        ]
        if not any(photos[number].vector is not None for number in usable):
            raise IdgenError(
                f"nobody in {source} has two photos with a face: one is drawn, the others say who it is; put those of one"
                " person into a folder of their own, or set own_photo true"
            )
        self.shapes: dict[tuple[int, int], list[int]] = {}
        for number in usable:
            self.shapes.setdefault(photos[number].size, []).append(number)
        self.units = [None if photo.vector is None else F.normalize(photo.vector.float(), dim=0) for photo in photos]

    def draw(self, rng: np.random.Generator, count: int, most: int) -> Drawn:
        sizes = np.array([len(numbers) for numbers in self.shapes.values()], np.float64)
        numbers = list(self.shapes.values())[rng.choice(len(sizes), p=sizes / sizes.sum())]
        chosen = rng.choice(numbers, count, replace=len(numbers) < count)
        nobody = torch.zeros_like(next(unit for unit in self.units if unit is not None))
        crops, vectors, targets = [], [], []
        for number in chosen:
            photo = self.photos[number]
            crops.append(self.preparer.draw(photo, int(rng.integers(self.preparer.config.crops))))
            others = [other for other in self.people.get(photo.person, []) if other != number]
            if photo.vector is None:
                others = []
            elif not others:
                others = [int(number)]
            some = rng.choice(others, min(len(others), int(rng.integers(1, most + 1))), replace=False) if others else []
            vectors.append(F.normalize(self._mean(list(some)), dim=0) if len(some) else nobody)
            targets.append(self._mean(others) if others else nobody)
        return Drawn(
            [self.photos[number].name for number in chosen],
            torch.stack([latents for latents, _ in crops]),
            torch.stack(vectors),
            torch.stack(targets),
            torch.stack([landmarks for _, landmarks in crops]),
            [self.photos[number].caption for number in chosen],
        )

    def _mean(self, numbers: list[int]) -> Tensor:
        return torch.stack([unit for number in numbers if (unit := self.units[number]) is not None]).mean(0)
