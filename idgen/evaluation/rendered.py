"""Photos of numbered synthetic people, rendered when first asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import idgen.synthetic
from idgen.data.faces import FaceFolder
from idgen.errors import IdgenError
from idgen.files import atomic_write

# Who is whom among the numbers of seed 0; nobody's number is in two sets.
TRAINING, JUDGE, VALIDATION, TEST, EXAMPLE = 0, 100_000, 200_000, 300_000, 900_000
WORDS = ("captions", "wording", "writer", "layouts", "samples", "workers")  # modules that change no pixel
CHUNK = 8  # people per task of a worker
BATCH = 16  # images per render call


@dataclass(frozen=True)
class Photos:
    """Shots of people, in the order asked for.

    Attributes:
        images: (people, shots, size, size, 3) uint8 RGB.
        landmarks: (people, shots, 5, 2) float32 pixels (x, y).
        pose: (people, shots, 3) float32 degrees: yaw, pitch, roll.
    """

    images: Tensor
    landmarks: Tensor
    pose: Tensor

    def shots(self, index: slice) -> Photos:
        """Some of the shots of everybody."""
        return Photos(self.images[:, index], self.landmarks[:, index], self.pose[:, index])

    @property
    def flat(self) -> Tensor:
        """(people * shots, size, size, 3): all images in a row."""
        return self.images.flatten(0, 1)


def take_photos(
    people: Sequence[int],
    shots: Sequence[int],
    *,
    variant: int | None = None,
    seed: int = 0,
    size: int = 128,
    cache: Path | None = None,
    workers: int | None = None,
) -> Photos:
    """Render people x shots, or read them from `cache` where the same were rendered by the same code before.

    Args:
        people, shots: numbers.
        variant: in place of each person the `same_appearance` variant of this number: another head shape, the same
            skin, hair, brows, eyes, clothes, light and expression in each shot.
        workers: processes; by default as many as the machine has cores.
    """
    request = (tuple(people), tuple(shots), variant, seed, size)
    file = cache / f"photos-{_digest(request)}.npz" if cache else None
    if file is not None and file.exists():
        with np.load(file, allow_pickle=False) as stored:
            return Photos(*(torch.from_numpy(stored[name]) for name in ("images", "landmarks", "pose")))
    chunks = [list(people[start : start + CHUNK]) for start in range(0, len(people), CHUNK)]
    workers = min(workers or os.cpu_count() or 1, len(chunks))
    tasks = [(chunk, tuple(shots), variant, seed, size) for chunk in chunks]
    if workers > 1 and len(people) * len(shots) > 100:
        # Spawned: a fork of a process whose torch has run threads may hang.
        with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread) as pool:
            parts = list(pool.map(_render, tasks))
    else:
        parts = [_render(task) for task in tasks]
    arrays = [np.concatenate(kind) for kind in zip(*parts, strict=True)]
    if file is not None:
        with atomic_write(file) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, images=arrays[0], landmarks=arrays[1], pose=arrays[2])
    return Photos(*(torch.from_numpy(array) for array in arrays))


def training_photos(people: int, folder: Path | None, **kept: Any) -> Tensor:
    """(people, 2, size, size, 3) uint8: the first two shots of the first training people of the mini family.

    Args:
        folder: what `idgen synth` wrote for the training, read instead of rendering; None renders.
        kept: `cache` and `workers` of `take_photos`.

    Raises:
        IdgenError: the folder does not begin with these people.
    """
    if folder is None:
        return take_photos(range(TRAINING, TRAINING + people), range(2), **kept).images
    data = FaceFolder.open(folder)
    if len(data.shots) < people or data.rows[0]["person"] != TRAINING:
        raise IdgenError(
            f"{folder} holds people from {data.rows[0]['person']} on, {len(data.shots)} of {people} asked for"
        )
    chosen = np.stack([shots[:2] for shots in data.shots[:people]])  # (people, 2)
    return torch.from_numpy(data.images[chosen])


def attributes_of(people: Sequence[int], shots: Sequence[int], seed: int = 0) -> list[list[dict[str, Any]]]:
    """What can be said of each person's shots: [person][shot] -> attribute dict. Renders nothing."""
    from idgen.synthetic import attributes, sample_person, sample_shot

    found = []
    for number in people:
        person = sample_person(seed, number)
        found.append([dict(attributes(person, sample_shot(seed, person, shot))) for shot in shots])
    return found


def _render(task: tuple[list[int], tuple[int, ...], int | None, int, int]) -> tuple[np.ndarray, ...]:
    from idgen.synthetic import Renderer, same_appearance, sample_person, sample_shot

    people, shots, variant, seed, size = task
    originals = [sample_person(seed, number) for number in people]
    who = [person if variant is None else same_appearance(person, seed, variant) for person in originals]
    pairs = [
        (look, sample_shot(seed, person, shot)) for look, person in zip(who, originals, strict=True) for shot in shots
    ]
    renderer = Renderer("cpu")
    parts = []
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        rendered = renderer.render([person for person, _ in batch], [shot for _, shot in batch], size=size)
        parts.append([np.asarray(part) for part in (rendered.images, rendered.landmarks5, rendered.pose)])
    shape = (len(people), len(shots))
    return tuple(np.concatenate(kind).reshape(*shape, *kind[0].shape[1:]) for kind in zip(*parts, strict=True))


def _one_thread() -> None:
    torch.set_num_threads(1)


def _digest(request: tuple[Any, ...]) -> str:
    """Names a request and the code and data that decide its pixels."""
    digest = hashlib.sha256(repr(request).encode())
    folder = Path(idgen.synthetic.__file__).parent
    for file in [*sorted(folder.glob("*.py")), folder.parent / "assets" / "head.npz"]:
        if file.stem not in WORDS:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:20]
