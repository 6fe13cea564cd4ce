"""Faces found in a photo, and which of them is meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from idgen.errors import IdgenError

# Below this an aligned crop is six times larger than what the photo shows of the face: nothing there to recognise.
MIN_SIDE = 20
SELECTIONS = ("largest", "centre", "best", "only")


@dataclass(frozen=True, eq=False)
class Face:
    """One detected face; pixels (x, y) of the photo, the centre of the top-left pixel at (0, 0).

    Attributes:
        box: (4,) float32: left, top, right, bottom.
        landmarks: (5, 2) float32: left eye as seen, right eye, nose, left and right mouth corner.
        score: the detector's certainty in [0, 1].
    """

    box: np.ndarray
    landmarks: np.ndarray
    score: float

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in pixels."""
        return float(self.box[2] - self.box[0]), float(self.box[3] - self.box[1])

    @property
    def area(self) -> float:
        return self.size[0] * self.size[1]


# (H, W, 3) uint8 RGB -> the faces in it, in any order.
Detector = Callable[[np.ndarray], list[Face]]


def by_size(faces: Sequence[Face]) -> list[Face]:
    """Largest first."""
    return sorted(faces, key=lambda face: -face.area)


def rival(faces: Sequence[Face]) -> float:
    """The area of the second largest face as a share of the largest one's; 0 where there is no second."""
    largest = by_size(faces)[:2]
    return largest[1].area / largest[0].area if len(largest) > 1 else 0.0


def select_face(faces: Sequence[Face], select: str | int, image_size: tuple[int, int], name: str) -> Face:
    """The face that is meant.

    Args:
        faces: all faces of one photo.
        select: `"largest"`, `"centre"` (of the photo), `"best"` (highest score), `"only"` (several are an error), or a
            number, counted from 0 in order of size.
        image_size: (width, height) of the photo.
        name: what to call the photo in errors.

    Raises:
        IdgenError: no face, several with `"only"`, no face of that number, the face is too small, an unknown `select`.
    """
    check_selection(select)
    if not faces:
        raise IdgenError(
            f"no face found in {name}: use a photo that shows the face larger, sharper or more from the front"
        )
    ordered = by_size(faces)
    if isinstance(select, int):
        if select >= len(ordered):
            raise IdgenError(f"face {select} of {name} asked for, but it shows {len(ordered)}, counted from 0 by size")
        face = ordered[select]
    elif select == "only" and len(ordered) > 1:
        raise IdgenError(
            f"{name} shows {len(ordered)} faces where one is asked for: crop it, or select 'largest', 'centre', 'best'"
            " or a number counted from 0 by size"
        )
    elif select == "centre":
        middle = np.array(image_size) / 2
        face = min(ordered, key=lambda face: float(np.hypot(*((face.box[:2] + face.box[2:]) / 2 - middle))))
    elif select == "best":
        face = max(ordered, key=lambda face: face.score)
    else:
        face = ordered[0]
    width, height = face.size
    if max(width, height) < MIN_SIDE:
        raise IdgenError(
            f"the face in {name} is too small: {width:.0f} x {height:.0f} px, at least {MIN_SIDE} are needed; use a larger photo"
        )
    return face


def check_selection(select: str | int) -> None:
    """Raise IdgenError unless `select` is one of the words or a number >= 0."""
    number = isinstance(select, int) and not isinstance(select, bool) and select >= 0
    good = number or (isinstance(select, str) and select in SELECTIONS)
    if not good:
        raise IdgenError(
            f"select={select!r} is unknown: use {', '.join(map(repr, SELECTIONS))} or a number counted from 0"
        )
