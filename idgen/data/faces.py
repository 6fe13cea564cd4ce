"""A folder of labelled faces (`idgen synth` writes it) as arrays in memory.

Training on two cores is faster than decoding PNGs, so the pictures are decoded once into a memory-mapped array beside
the folder's metadata and read from there ever after.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from idgen.console import progress
from idgen.errors import IdgenError
from idgen.files import atomic_write
from idgen.imageio import open_image

CACHE = ".idgen-cache"
METADATA = "metadata.jsonl"
LAYOUT = "`idgen synth` writes it of every photo (plain photos are for photos.path of train/adapter.py)"


@dataclass(frozen=True)
class FaceFolder:
    """Photos of people with what is known of them.

    Attributes:
        folder: where they came from.
        images: uint8 (n, size, size, 3), sRGB.
        masks: uint8 (n, size, size), classes of `idgen.synthetic.PARSING_CLASSES`.
        landmarks: float32 (n, 5, 2) px.
        people: int64 (n,), numbers 0 .. people - 1 in the order of first appearance.
        rows: the metadata, one dict a photo.
    """

    folder: Path
    images: np.ndarray
    masks: np.ndarray
    landmarks: np.ndarray
    people: np.ndarray
    rows: list[dict[str, Any]]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> FaceFolder:
        """Reads a folder with metadata.jsonl, and makes its cache the first time.

        Raises:
            IdgenError: no such folder, no metadata, a line that is not JSON or lacks something, or a picture that is missing,
                broken or of another size than the first.
        """
        folder = Path(folder)
        rows = _read_rows(folder / METADATA)
        labels = [_labels(folder, rows, place) for place in range(len(rows))]
        images, masks = _cached(folder, rows)
        numbers: dict[int, int] = {}
        people = np.array([numbers.setdefault(person, len(numbers)) for person, _ in labels], np.int64)
        return cls(folder, images, masks, np.stack([points for _, points in labels]), people, rows)

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, photo: int) -> str:
        """What a photo is called in reports: its file, or in arrays whose photo it is."""
        row = self.rows[photo]
        return str(row.get("file_name", f"person {row['person']}, shot {row.get('shot', photo)}"))

    @cached_property
    def captions(self) -> list[str]:
        """What each photo shows.

        Raises:
            IdgenError: one has no caption.
        """
        return self.column("caption")

    def column(self, name: str) -> list[Any]:
        """What the metadata say of each photo under `name`, for what only some uses need.

        Raises:
            IdgenError: a line lacks it.
        """
        return [_value(self.folder, self.rows, place, name) for place in range(len(self.rows))]

    @cached_property
    def shots(self) -> list[np.ndarray]:
        """For every person the indices of the photos."""
        order = np.argsort(self.people, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.people))[:-1])

    @cached_property
    def _table(self) -> np.ndarray:
        """(people, most) photos of each person, -1 where there are fewer."""
        table = np.full((len(self.shots), max(map(len, self.shots))), -1, np.int64)
        for person, numbers in enumerate(self.shots):
            table[person, : len(numbers)] = numbers
        return table

    def shots_of(self, people: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """(people, count) random photos of people (people,); those with fewer photos come again."""
        table = self._table[people]
        there = table >= 0
        order = np.argsort(np.where(there, rng.random(table.shape), 2.0), axis=1)
        places = np.arange(count)[None] % there.sum(1, keepdims=True)
        return np.take_along_axis(table, np.take_along_axis(order, places, 1), 1)

    def others(self, chosen: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The other photos of the people in photos `chosen` (batch,), shuffled.

        Returns:
            Numbers (batch, most), the others first, and how many of them are others (batch,).

        Raises:
            IdgenError: one of the people has a single photo.
        """
        table = self._table[self.people[chosen]]
        other = (table >= 0) & (table != chosen[:, None])
        counts = other.sum(1)
        if not counts.all():
            raise IdgenError(f"{self.folder} has people of a single photo: nothing is left to be their reference")
        order = np.argsort(np.where(other, rng.random(table.shape), 2.0), axis=1)
        return np.take_along_axis(table, order, 1), counts


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise IdgenError(f"no metadata.jsonl in {path.parent}: make the data with `idgen synth --out {path.parent}`")
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            raise IdgenError(
                f"{path}, line {number} is not JSON: run the same `idgen synth` again to mend it"
            ) from None
    if not rows:
        raise IdgenError(f"{path} is empty: run the same `idgen synth` again")
    return rows


def _value(folder: Path, rows: list[dict[str, Any]], place: int, name: str) -> Any:
    row = rows[place]
    if not isinstance(row, dict) or name not in row:
        raise IdgenError(f"{folder / METADATA}, line {place + 1} lacks {name}: {LAYOUT}")
    return row[name]


def _labels(folder: Path, rows: list[dict[str, Any]], place: int) -> tuple[int, np.ndarray]:
    """Who a photo shows, and float32 (5, 2)."""
    person, landmarks = (_value(folder, rows, place, name) for name in ("person", "landmarks5"))
    with suppress(TypeError, ValueError):
        number, points = int(person), np.array(landmarks, np.float32)
        if points.shape == (5, 2):
            return number, points
    raise IdgenError(
        f"{folder / METADATA}, line {place + 1}: person is a whole number, landmarks5 are five points [x, y]"
    )


def _cached(folder: Path, rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    # `idgen synth --format arrays` leaves them beside the metadata.
    for place in (folder, folder / CACHE):
        images_file, masks_file = place / "images.npy", place / "masks.npy"
        if images_file.exists() and masks_file.exists():
            images, masks = np.load(images_file, mmap_mode="r"), np.load(masks_file, mmap_mode="r")
            if len(images) == len(masks) == len(rows):
                return images, masks
    if "file_name" not in rows[0]:
        raise IdgenError(f"{folder} lacks the arrays of its {len(rows)} pictures: run the same `idgen synth` again")
    size = _picture(folder / rows[0]["file_name"]).shape[0]
    images = np.empty((len(rows), size, size, 3), np.uint8)
    masks = np.empty((len(rows), size, size), np.uint8)
    for i in progress(range(len(rows)), len(rows), "reading pictures"):
        for name, array in (("file_name", images), ("mask_file_name", masks)):
            file = folder / str(_value(folder, rows, i, name))
            picture = _picture(file, keep=array is masks)
            if picture.shape != array.shape[1:]:
                raise IdgenError(
                    f"{file} has the shape {picture.shape} and not {array.shape[1:]}: photos and masks are squares of one"
                    " size, masks of one channel"
                )
            array[i] = picture
    for file, array in ((images_file, images), (masks_file, masks)):
        with atomic_write(file) as temporary, temporary.open("wb") as handle:
            np.save(handle, array)
    return np.load(images_file, mmap_mode="r"), np.load(masks_file, mmap_mode="r")


def _picture(path: Path, keep: bool = False) -> np.ndarray:
    try:
        with open_image(path) as image:
            return np.asarray(image if keep else image.convert("RGB"))
    except Exception as error:  # each of Pillow's decoders fails in its own way
        raise IdgenError(f"cannot read {path} ({error}): run the same `idgen synth` again") from None
