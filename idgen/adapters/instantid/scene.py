"""Who is where in the pictures of a call: people, their masks, and where their faces are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from idgen.adapters.embeddings import Person
from idgen.adapters.instantid.keypoints import draw_keypoints
from idgen.adapters.masks import as_mask
from idgen.errors import IdgenError
from idgen.identity import Identity

# A head and shoulders: how far the five points reach, and how low their middle lies, in a picture of side 1.
REACH = 0.2
MIDDLE = 0.42

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def people_of(identity: Person | Sequence[Person | Sequence[Person]]) -> list[list[Person]]:
    """The people of each picture.

    Args:
        identity: one person; a list of them, one to a picture; or a list of lists, several to a picture.
    Raises:
        IdgenError: nobody, or pictures with different numbers of people.
    """
    listed: list[Any] = list(identity) if isinstance(identity, (list, tuple)) else [identity]
    pictures = [list(one) if isinstance(one, (list, tuple)) else [one] for one in listed]
    counts = sorted({len(people) for people in pictures})
    if not counts or counts[0] == 0:
        raise IdgenError(
            "no identity given: pass an Identity, a list of them, or a list of lists for several in a picture"
        )
    if len(counts) > 1:
        raise IdgenError(
            f"pictures of one call need the same number of people, got {counts[0]} to {counts[-1]}: make two calls"
        )
    return pictures


def person_masks(mask: Any | None, pictures: int, people: int) -> list[Tensor | None]:
    """One mask (1 or pictures, height, width) for each of the people of a picture.

    Args:
        mask: as `Adapter.condition` takes it; where a picture has several people, a list of one for each of them.
    Raises:
        IdgenError: several people and not a mask for each.
    """
    masks = [mask]
    if people > 1:
        masks = [] if mask is None else list(mask)
        if len(masks) != people:
            raise IdgenError(
                f"{people} people in one picture need a mask each, mask=[first, second], got {len(masks) or 'none'}"
            )
    made = [as_mask(one, pictures, 1, False) for one in masks]
    return [None if one is None else one[:, 0] for one in made]


def draw_faces(
    pictures: Sequence[Sequence[Person]], landmarks: Any | None, masks: Sequence[Tensor | None], size: tuple[int, int]
) -> Tensor:
    """(pictures, 3, height, width) in [0, 1]: every picture's key points.

    Args:
        landmarks: (5, 2), or with one more axis for the pictures, or for the people of all pictures, or both: pixels of the
            pictures to be made. Default: each identity's own, those of its first reference, made as large as a portrait's and
            put in the middle of the picture, or of the person's mask.
        masks: as `person_masks` gives them.
        size: (height, width).
    Raises:
        IdgenError: an identity without landmarks, landmarks for another number of people or pictures.
    """
    people = len(pictures[0])
    given = None if landmarks is None else _as_landmarks(landmarks, len(pictures), people)
    drawn = []
    for index, picture in enumerate(pictures):
        if given is not None:
            faces = given[index % len(given)]
        else:
            boxes = [_box(mask, index, size) for mask in masks]
            faces = np.stack([place(_own(person), box) for person, box in zip(picture, boxes, strict=True)])
        drawn.append(np.asarray(draw_keypoints(faces, (size[1], size[0]))))
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255


def place(landmarks: np.ndarray, box: Box) -> np.ndarray:
    """Landmarks (5, 2) of a photo -> the same face, as it is turned, as large and high up in a box as in a portrait.

    An identity does not know how large its photo was, and how large the face is to be is the picture's matter anyway.
    """
    low, high = landmarks.min(0), landmarks.max(0)
    extent = (high - low).max()
    if not extent > 0:
        raise IdgenError("the five landmarks are one point: detect the face again, or pass landmarks=")
    left, top, right, bottom = box
    factor = REACH * min(right - left, bottom - top) / extent
    middle = np.array([left + (right - left) / 2, top + MIDDLE * (bottom - top)], landmarks.dtype)
    return (landmarks - (low + high) / 2) * factor + middle


def size_of(image: Any, what: str) -> tuple[int, int]:
    """(height, width) of a picture in any form that diffusers takes: PIL, array (..., height, width, channels), tensor
    (..., channels, height, width), or a list of them.

    Raises:
        IdgenError: none of these.
    """
    first = image[0] if isinstance(image, (list, tuple)) and image else image
    if isinstance(first, Image.Image):
        return first.height, first.width
    if isinstance(first, Tensor) and first.ndim >= 3:
        return first.shape[-2], first.shape[-1]
    if isinstance(first, np.ndarray) and first.ndim >= 3:
        return first.shape[-3], first.shape[-2]
    raise IdgenError(f"{what} is a PIL image, an array or a tensor, or a list of them, not {type(first).__name__}")


def _as_landmarks(landmarks: Any, pictures: int, people: int) -> np.ndarray:
    """(1 or pictures, people, 5, 2)."""
    try:
        given = points = np.asarray(landmarks)
    except ValueError as error:
        raise IdgenError("landmarks are five points (x, y) for each face, and these differ in number") from error
    if points.ndim == 2:
        points = points[None]
    if points.ndim == 3:
        points = points[:, None] if people == 1 else points[None]
    if points.ndim != 4 or points.shape[1:] != (people, 5, 2) or len(points) not in (1, pictures):
        raise IdgenError(
            f"landmarks of shape {list(given.shape)} do not fit {pictures} pictures of {people} people:"
            f" expected {[people, 5, 2]} for all, or {[pictures, people, 5, 2]}"
        )
    return points


def _own(person: Person) -> np.ndarray:
    if not isinstance(person, Identity) or person.landmarks is None:
        raise IdgenError(
            "IdentityNet needs to know where the face is, and this identity has no landmarks: embed the photos with"
            " FaceEncoder, or pass landmarks= or keypoints_image="
        )
    return person.landmarks[0].numpy()


def _box(mask: Tensor | None, index: int, size: tuple[int, int]) -> Box:
    """Where the mask is white, in pixels of the picture; all of it without a mask, or where it is black throughout."""
    height, width = size
    if mask is not None:
        white = mask[index % len(mask)] > 0.5
        rows, columns = white.any(1).nonzero().flatten(), white.any(0).nonzero().flatten()
        if len(rows):
            down, across = height / white.shape[0], width / white.shape[1]
            return (
                float(columns[0]) * across,
                float(rows[0]) * down,
                float(columns[-1] + 1) * across,
                float(rows[-1] + 1) * down,
            )
    return 0.0, 0.0, float(width), float(height)
