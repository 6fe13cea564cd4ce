"""Parts of a face as masks: boxes around landmarks, as CelebAHQ-IDI draws them, and free-form strokes.

Xu et al., WACV 2024 (github.com/AtlantixJJ/PVA-CelebAHQ-IDI): the box of a region's landmarks, 1.2 times as large and at least a
fifth of the picture's side, cut off at the edge. Free-form strokes follow Yu et al., ICCV 2019 (arXiv 1806.03589).
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from idgen.errors import IdgenError
from idgen.faces.align import similarity_matrix

GROWTH, LEAST = 1.2, 0.2

# Which of the 68 iBUG landmarks make a region.
POINTS: dict[str, list[int]] = {
    "lowerface": list(range(1, 16)),
    "eyes": list(range(36, 48)),
    "brows": [*range(17, 27), *range(36, 48)],
    "whole": list(range(68)),
}
# Where they lie in ArcFace's 112 px crop (left, top, right, bottom), for faces of which five points are known: the mean over
# renders of 48 people. `tests/data/test_regions.py` measures it again.
BOXES = {
    "lowerface": (15.5, 65.5, 95.5, 115.5),
    "eyes": (31.0, 49.0, 81.0, 54.5),
    "brows": (25.0, 38.0, 86.5, 54.5),
    "whole": (14.0, 38.0, 97.0, 115.5),
}
REGIONS = (*POINTS, "random")

Box = tuple[int, int, int, int]  # top, left, bottom, right, as slices count


def region_box(region: str, landmarks: np.ndarray, size: tuple[int, int]) -> Box:
    """The box of a region in a picture.

    Args:
        region: one of `REGIONS` but `"random"`.
        landmarks: (68, 2) iBUG points or a detector's (5, 2), pixels (x, y).
        size: (width, height) of the picture.
    Raises:
        IdgenError: an unknown region, other landmarks, or a region that lies outside the picture.
    """
    points = _points(region, np.asarray(landmarks, np.float64))
    low, high = points.min(0), points.max(0)
    least = LEAST * min(size)
    edges = []
    for middle, extent, end in zip((low + high) / 2, high - low, size, strict=True):
        length = int(max(GROWTH * extent, least))
        edges.append((max(int(middle - length / 2), 0), min(int(middle + length / 2), end)))
    (left, right), (top, bottom) = edges
    if left >= right or top >= bottom:
        raise IdgenError(f"the face's {region} lies outside the picture: use a picture that shows it")
    return top, left, bottom, right


def region_mask(
    region: str, landmarks: np.ndarray, size: tuple[int, int], rng: np.random.Generator | None = None
) -> np.ndarray:
    """(height, width) bool, True in the hole.

    Args:
        region: as `region_box`, or `"random"`: strokes, and with them one of the other regions, as PVA trains.
        rng: for `"random"`.
    """
    width, height = size
    mask = np.zeros((height, width), bool)
    if region == "random":
        rng = rng or np.random.default_rng()
        mask |= strokes(size, rng)
        region = str(rng.choice(list(POINTS)))
    top, left, bottom, right = region_box(region, landmarks, size)
    mask[top:bottom, left:right] = True
    return mask


def strokes(size: tuple[int, int], rng: np.random.Generator, most: int = 4) -> np.ndarray:
    """(height, width) bool: up to `most` brush strokes that turn as they go, drawn with round ends."""
    side = min(size)
    picture = Image.new("1", size)
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, most + 1))):
        x, y = rng.random(2) * size
        heading = rng.random() * 2 * math.pi
        thickness = side * (0.04 + 0.08 * rng.random())
        for _ in range(int(rng.integers(2, 7))):
            heading += rng.normal() * 0.8
            length = side * (0.05 + 0.2 * rng.random())
            to = (
                float(np.clip(x + length * math.cos(heading), 0, size[0])),
                float(np.clip(y + length * math.sin(heading), 0, size[1])),
            )
            draw.line([(x, y), to], fill=1, width=round(thickness))
            for end in ((x, y), to):
                draw.ellipse(
                    [end[0] - thickness / 2, end[1] - thickness / 2, end[0] + thickness / 2, end[1] + thickness / 2], 1
                )
            x, y = to
    return np.asarray(picture)


def _points(region: str, landmarks: np.ndarray) -> np.ndarray:
    if region not in POINTS:
        raise IdgenError(f"unknown region {region!r}: use one of {', '.join(REGIONS)}")
    if landmarks.shape == (68, 2) and np.isfinite(landmarks).all():
        return landmarks[POINTS[region]]
    if landmarks.shape != (5, 2):
        raise IdgenError(f"a region needs 68 or 5 finite landmarks, got shape {list(landmarks.shape)}")
    left, top, right, bottom = BOXES[region]
    corners = np.array([[left, top], [left, bottom], [right, top], [right, bottom]])
    matrix = similarity_matrix(landmarks)
    return (corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
