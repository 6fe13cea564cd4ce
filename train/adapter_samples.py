"""What an identity adapter is trained on: renders with all that is known of them, or photos of people as they lie around."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
        vectors: (batch, dim) who each shows, by other photos of the person, as `Subject.read` gives it; zeros for nobody.
        targets: (batch, dim) the mean unit embedding of all other photos, for the recogniser of a loss of identity.
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
        vectors, targets: (photos, dim) raw embeddings by the conditioning recogniser, and unit ones by that of the loss.
        read: `Subject.read`.

    Raises:
        IdgenError: nobody has two photos.
    """

    def __init__(
        self,
        data: FaceFolder,
        latents: np.ndarray,
        vectors: Tensor,
        targets: Tensor | None,
        read: Callable[[Tensor], Tensor],
    ) -> None:
        self.data, self.latents, self.vectors, self.targets, self.read = data, latents, read(vectors), targets, read
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
            vectors.append(self.read(self.vectors[some].mean(0)))
            if self.targets is not None:
                targets.append(self.targets[others].mean(0))
        return Drawn(
            [self.data.name(int(photo)) for photo in chosen],
            torch.from_numpy(self.latents[chosen]).float(),
            torch.stack(vectors),
            torch.stack(targets) if targets else None,
            torch.from_numpy(self.data.landmarks[chosen]),
            [self.data.captions[photo] for photo in chosen],
        )


class PhotoSamples:
    """Photos that `idgen.data.prepared` made ready; every batch is of one shape.

    Args:
        own: a person's only photo may say who is on it.
        read: `Subject.read`.

    Raises:
        IdgenError: nobody can be told by another photo.
    """

    def __init__(
        self,
        photos: list[Prepared],
        preparer: Preparer,
        source: Path | str,
        own: bool,
        read: Callable[[Tensor], Tensor],
    ) -> None:
        self.photos, self.preparer, self.own, self.read = photos, preparer, own, read
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
        raw = {number: photo.vector.float() for number, photo in enumerate(photos) if photo.vector is not None}
        self.rows = {number: read(vector) for number, vector in raw.items()}
        self.units = {number: F.normalize(vector, dim=0) for number, vector in raw.items()}

    def draw(self, rng: np.random.Generator, count: int, most: int) -> Drawn:
        sizes = np.array([len(numbers) for numbers in self.shapes.values()], np.float64)
        numbers = list(self.shapes.values())[rng.choice(len(sizes), p=sizes / sizes.sum())]
        chosen = rng.choice(numbers, count, replace=len(numbers) < count)
        nobody = torch.zeros_like(next(iter(self.rows.values())))
        crops, vectors, targets = [], [], []
        for number in chosen:
            photo = self.photos[number]
            crops.append(self.preparer.draw(photo, int(rng.integers(self.preparer.config.crops))))
            others = [other for other in self.people.get(photo.person, []) if other != number]
            if photo.vector is None:
                others = []
            elif not others:
                others = [int(number)]
            if others:
                some = rng.choice(others, min(len(others), int(rng.integers(1, most + 1))), replace=False)
                vectors.append(self.read(_mean(self.rows, some)))
            else:
                vectors.append(nobody)
            targets.append(_mean(self.units, others) if others else nobody)
        return Drawn(
            [self.photos[number].name for number in chosen],
            torch.stack([latents for latents, _ in crops]),
            torch.stack(vectors),
            torch.stack(targets),
            torch.stack([landmarks for _, landmarks in crops]),
            [self.photos[number].caption for number in chosen],
        )


def _mean(rows: Mapping[int, Tensor], numbers: Iterable[int]) -> Tensor:
    return torch.stack([rows[int(number)] for number in numbers]).mean(0)
