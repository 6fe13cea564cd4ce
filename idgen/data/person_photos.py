"""A folder of photos of one person, made ready for a training: cut square around the face, with a caption and the face's place.

A photo that can not be read never ends a training: it is left out, and named in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from idgen.errors import IdgenError
from idgen.faces.detection import MIN_SIDE, Face
from idgen.imageio import load_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
Faceless = Literal["skip", "mask", "error"]


@dataclass(frozen=True, eq=False)
class PersonPhoto:
    """One photo, ready to train on.

    Attributes:
        name: of the file.
        original: (height, width, 3) uint8, the whole photo.
        pixels: (size, size, 3) uint8, what is trained on.
        box: (4,) float32 the face in `pixels`: left, top, right, bottom; None where none was found.
        landmarks: (5, 2) float32 px of `pixels`; None with the box.
        caption: what it shows.
    """

    name: str
    original: np.ndarray
    pixels: np.ndarray
    box: np.ndarray | None
    landmarks: np.ndarray | None
    caption: str


@dataclass
class PhotoReport:
    """What became of the files of a folder.

    Attributes:
        used: names of the photos that are trained on.
        unreadable: names of those that could not be read, and why.
        faceless: names of those without a face that can be used.
        policy: what was done with those: left out, or kept with nothing marked as face.
    """

    policy: str
    used: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    faceless: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """What a person should know, a line each."""
        left = {"skip": "left out", "mask": "kept, with no face marked"}.get(self.policy, "")
        found = [f"{name} is left out: {reason}" for name, reason in self.unreadable.items()]
        found += [f"{name} shows no face: {left}" for name in self.faceless]
        return [*found, f"{len(self.used)} photos are trained on"]


def read_photos(
    folder: Path,
    detect: Callable[[np.ndarray], Sequence[Face]],
    size: int,
    *,
    caption: str = "",
    faceless: Faceless = "skip",
    crop: float | None = None,
) -> tuple[list[PersonPhoto], PhotoReport]:
    """Read every photo of a folder, in the order of their names.

    Args:
        detect: finds the faces of a photo, the largest first.
        size: pixels of the square to train on.
        caption: of every photo; `{}` in it is replaced by the text of the file of the photo's name ending in .txt, if there is
            one. A caption without `{}` gives way to that text.
        faceless: what to do with a photo without a face.
        crop: side of the square in heights of the face; by default the largest square of the photo.

    Raises:
        IdgenError: no folder, no photo in it, a face in none of them, or (`"error"`) a photo without; or an empty caption.
    """
    files = _files(folder)
    photos, report = [], PhotoReport(faceless)
    for file in files:
        try:
            original = np.asarray(load_image(file))
        except IdgenError as error:
            report.unreadable[file.name] = str(error).removeprefix(f"{file} ").removeprefix("is ")
            continue
        face = next(iter(detect(original)), None)
        if face is None or max(face.size) < MIN_SIDE:
            if faceless == "error":
                raise IdgenError(f"no face found in {file}: take it away, or set data.faceless to skip or mask")
            report.faceless.append(file.name)
            if faceless == "skip":
                continue
            face = None
        pixels, box, landmarks = _square(original, face, size, crop)
        photos.append(PersonPhoto(file.name, original, pixels, box, landmarks, _caption(file, caption)))
        report.used.append(file.name)
    if not any(photo.box is not None for photo in photos):
        raise IdgenError(_nothing(folder, len(files), report))
    return photos, report


def face_masks(photos: Sequence[PersonPhoto], cells: int, margin: float = 1.3, background: float = 0.0) -> Tensor:
    """How much each place counts: (photos, 1, cells, cells) float32, 1 on the face and `background` elsewhere.

    Args:
        cells: per side, of the latents.
        margin: the detector's box ends at brows and chin; it is enlarged so many times around its middle.
    """
    masks = torch.full((len(photos), 1, cells, cells), float(background))
    for mask, photo in zip(masks, photos, strict=True):
        if photo.box is None:
            continue
        left, top, right, bottom = photo.box * (cells / photo.pixels.shape[0])
        across, down = (
            _covered(
                (start + end) / 2 - (end - start) / 2 * margin, (start + end) / 2 + (end - start) / 2 * margin, cells
            )
            for start, end in ((left, right), (top, bottom))
        )
        mask[0] += (1 - background) * down[:, None] * across[None, :]
    return masks


def _covered(start: float, end: float, cells: int) -> Tensor:
    """(cells,) share of each cell between two places."""
    edges = torch.arange(cells + 1, dtype=torch.float32)
    return (edges[1:].clamp(max=float(end)) - edges[:-1].clamp(min=float(start))).clamp(0, 1)


def _files(folder: Path) -> list[Path]:
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise IdgenError(
            f"cannot read the folder {folder}: {error.strerror}; put 3 to 10 photos of one person there"
        ) from None
    if not files:
        raise IdgenError(f"no photos in {folder}: put 3 to 10 of one person there ({', '.join(SUFFIXES)})")
    return files


def _caption(file: Path, template: str) -> str:
    side = file.with_suffix(".txt")
    try:
        words = " ".join(side.read_text(encoding="utf-8").split()) if side.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise IdgenError(f"cannot read the caption {side}: {error}") from None
    if "{}" in template:
        # "photo of a id person, {}" without words of its own does not end in a comma
        text = template.replace("{}", words) if words else template.replace("{}", "").strip(" ,")
    else:
        text = words or template
    if not text.strip():
        raise IdgenError(f"{file} has an empty caption: write one into {side.name}, or set data.caption")
    return text


def _square(
    original: np.ndarray, face: Face | None, size: int, crop: float | None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The square around the face that the photo holds, and the face's box and landmarks in it."""
    height, width = original.shape[:2]
    side = float(min(height, width))
    if face is None:
        centre = np.array([width / 2, height / 2])
    else:
        centre = (face.box[:2] + face.box[2:] + 1) / 2
        if crop is not None:
            side = min(side, crop * max(face.size))
    corner = np.clip(centre - side / 2, 0, np.array([width, height]) - side)
    left, top = float(corner[0]), float(corner[1])
    area = (left, top, left + side, top + side)
    resized = Image.fromarray(original).resize((size, size), Image.Resampling.LANCZOS, box=area)
    if face is None:
        return np.asarray(resized), None, None
    # From pixels counted at their centres to places, and back.
    box = (face.box + 0.5 - np.tile(corner, 2)) * (size / side)
    landmarks = (face.landmarks + 0.5 - corner) * (size / side) - 0.5
    return np.asarray(resized), box.astype(np.float32), landmarks.astype(np.float32)


def _nothing(folder: Path, files: int, report: PhotoReport) -> str:
    if len(report.unreadable) == files:
        name, reason = next(iter(report.unreadable.items()))
        return f"none of the {files} photos in {folder} can be read ({name}: {reason})"
    return (
        f"no face found in any of the {files - len(report.unreadable)} photos in {folder} that can be read: use photos"
        " that show it larger, sharper or more from the front"
    )
