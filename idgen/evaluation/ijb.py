"""IJB-B and IJB-C 1:1 as insightface's evaluation reads them: lists in meta/, pictures in loose_crop/."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from idgen.errors import IdgenError
from idgen.faces.align import norm_crop
from idgen.imageio import load_array

BLOCK = 100_000


@dataclass(frozen=True, eq=False)
class CroppedFace:
    """A picture and where its face is."""

    path: Path
    landmarks: np.ndarray  # (5, 2)

    def pixels(self) -> np.ndarray:
        """(112, 112, 3) uint8, aligned."""
        return norm_crop(load_array(self.path), self.landmarks)

    def digest(self) -> bytes:
        try:
            return hashlib.sha256(self.path.read_bytes() + self.landmarks.tobytes()).digest()
        except OSError as error:
            raise IdgenError(f"cannot read {self.path}: {error.strerror}") from None


@dataclass(frozen=True)
class TemplatePairs:
    """A 1:1 protocol.

    Attributes:
        faces: (images) the pictures.
        score: (images,) the detector's certainty; weighs a picture in its template.
        template, media: (images,) numbers.
        first, second: (pairs,) numbers of templates.
        same: (pairs,) bool.
    """

    faces: list[CroppedFace]
    score: Tensor
    template: Tensor
    media: Tensor
    first: Tensor
    second: Tensor
    same: Tensor


def read_ijb(folder: Path, name: str) -> TemplatePairs:
    """Read meta/NAME_face_tid_mid.txt, NAME_name_5pts_score.txt and NAME_template_pair_label.txt.

    Args:
        folder: holds meta/ and loose_crop/.
        name: `ijbb` or `ijbc`.

    Raises:
        IdgenError: a list is missing or a line of it is not what it should be.
    """
    meta = folder / "meta"
    faces, scores = [], []
    for line, words in _lines(meta / f"{name}_name_5pts_score.txt", 12):
        try:
            numbers = np.array(words[1:], np.float32)
        except ValueError:
            raise IdgenError(
                f"{meta / f'{name}_name_5pts_score.txt'}, line {line}: needs a name and eleven numbers"
            ) from None
        faces.append(CroppedFace(folder / "loose_crop" / words[0], numbers[:10].reshape(5, 2)))
        scores.append(float(numbers[10]))
    placed = _numbers(meta / f"{name}_face_tid_mid.txt", 3, skip=1)
    pairs = _numbers(meta / f"{name}_template_pair_label.txt", 3)
    if len(placed) != len(faces):
        raise IdgenError(
            f"the lists in {meta} are of {len(faces)} and {len(placed)} pictures: they belong to different sets"
        )
    known = set(placed[:, 0].tolist())
    absent = sorted(set(pairs[:, :2].flatten().tolist()) - known)
    if absent:
        raise IdgenError(
            f"{meta / f'{name}_template_pair_label.txt'} names template {absent[0]}, of which there is no picture"
        )
    same = pairs[:, 2] == 1
    if bool(same.all()) or not bool(same.any()):
        raise IdgenError(f"all pairs in {meta} have one label: verification needs pairs of one person and of two")
    return TemplatePairs(faces, torch.tensor(scores), placed[:, 0], placed[:, 1], pairs[:, 0], pairs[:, 1], same)


def pair_cosines(templates: Tensor, numbers: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(pairs,): cosine of each two templates (templates, dim) of unit length, named by their ascending `numbers`."""
    left, right = torch.searchsorted(numbers, first), torch.searchsorted(numbers, second)
    parts = [(templates[a] * templates[b]).sum(1) for a, b in zip(left.split(BLOCK), right.split(BLOCK), strict=True)]
    return torch.cat(parts)


def _numbers(file: Path, columns: int, skip: int = 0) -> Tensor:
    rows = []
    for line, words in _lines(file, columns):
        try:
            rows.append([int(word) for word in words[skip:]])
        except ValueError:
            raise IdgenError(f"{file}, line {line}: needs {columns - skip} whole numbers") from None
    return torch.tensor(rows)


def _lines(file: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    try:
        with open(file, encoding="utf-8") as stream:
            empty = True
            for number, line in enumerate(stream, 1):
                words = line.split()
                if len(words) != columns:
                    raise IdgenError(f"{file}, line {number}: needs {columns} columns, has {len(words)}")
                empty = False
                yield number, words
    except FileNotFoundError:
        raise IdgenError(
            f"no {file}: --references is the folder with meta/ and loose_crop/ of insightface's IJB"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise IdgenError(f"cannot read {file}: {error}") from None
    if empty:
        raise IdgenError(f"{file} is empty")
