"""Filled ellipses, pixel for pixel as OpenCV draws them (`ellipse2Poly` at steps of one degree, then `fillConvexPoly`).

OpenCV rounds an ellipse to a polygon of whole pixels, draws its outline with Bresenham lines that it first cuts at the
border, and fills each row between two edges kept in 16.16 fixed point. Other libraries round elsewhere: PIL's polygon
differs in a few pixels of every fifth limb. Facts from opencv `modules/imgproc/src/drawing.cpp`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# OpenCV's table of sines: float32, from seven decimals. Cosines are read 90 degrees further on.
SINE = np.array([round(math.sin(math.radians(degree)), 7) for degree in range(451)], np.float32).astype(np.float64)
ONE = 1 << 16  # in fixed point

Point = tuple[int, int]


def ellipse_polygon(x: int, y: int, half_width: int, half_height: int, angle: int) -> np.ndarray:
    """(n, 2) int64: whole pixels (x, y) around an ellipse, one per degree, repetitions left out.

    Args:
        x, y: centre.
        half_width, half_height: half-axes in pixels, before the turn; `half_height` at least 1.
        angle: turn in whole degrees, from the x axis towards y.
    """
    degrees = np.arange(361)
    along, across = half_width * SINE[450 - degrees], half_height * SINE[degrees]
    cosine, sine = SINE[450 - angle % 360], SINE[angle % 360]
    points = np.stack([x + along * cosine - across * sine, y + along * sine + across * cosine], -1)
    points = np.rint(points).astype(np.int64)
    new = (points[1:] != points[:-1]).any(1)
    return points[np.concatenate([[True], new])]


def fill_convex(canvas: np.ndarray, polygon: np.ndarray, colour: Sequence[int]) -> None:
    """Draw a convex polygon, outline and inside, into `canvas` (height, width, channels), in place.

    Args:
        polygon: (n, 2) whole pixels (x, y) in order, at least three; any part may lie beyond the border.
    """
    height, width = canvas.shape[:2]
    for start, end in zip(np.roll(polygon, 1, 0).tolist(), polygon.tolist(), strict=True):
        xs, ys = _line(start, end, (width, height))
        canvas[ys, xs] = colour
    one, other = _edge(polygon, height), _edge(polygon[::-1], height)
    top, bottom = int(polygon[:, 1].min()), int(polygon[:, 1].max())
    for row in range(max(top, 0), min(bottom, height)):  # the bottom row is outline only
        left, right = sorted((int(one[row]), int(other[row])))
        canvas[row, max(_round(left), 0) : max(_round(right) + 1, 0)] = colour


def _edge(polygon: np.ndarray, height: int) -> np.ndarray:
    """(height,) fixed-point x, at each row, of the side of the polygon that leads downwards."""
    edge = np.zeros(height, np.int64)
    for (x0, y0), (x1, y1) in zip(polygon.tolist(), np.roll(polygon, -1, 0).tolist(), strict=True):
        drop = y1 - y0
        if drop > 0:
            step = _divide((x1 - x0) * 2 * ONE + drop, 2 * drop)
            rows = np.arange(max(y0, 0), min(y1, height))
            edge[rows] = x0 * ONE + (rows - y0) * step
    return edge


def _line(start: Sequence[int], end: Sequence[int], size: Point) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels of a line, from its left end to its right."""
    inside = _clip(start, end, size)
    if inside is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    start, end = sorted(inside, key=lambda point: point[0])
    (dx, dy), steps = np.subtract(end, start), max(abs(np.subtract(end, start)))
    k = np.arange(steps + 1)
    # Along the longer axis a pixel a step; along the other the nearest, a tie stays behind.
    x, y = (-((steps - 2 * abs(d) * k) // max(2 * steps, 1)) * np.sign(d) for d in (dx, dy))
    return start[0] + x, start[1] + y


def _clip(start: Sequence[int], end: Sequence[int], size: Point) -> tuple[list[int], list[int]] | None:
    """The part of a line within the canvas, ends rounded towards zero; None when it misses the canvas."""
    ends = list(start), list(end)
    for axis in (1, 0):
        if _beyond(*ends, size):
            return None
        for point in ends:
            side = _side(point, axis, size)
            if side:
                border = size[axis] - 1 if side > 0 else 0
                run, rise = (ends[1][a] - ends[0][a] for a in (axis, 1 - axis))
                point[1 - axis] += _divide((border - point[axis]) * rise, run)
                point[axis] = border
    return None if _beyond(*ends, size) else ends


def _beyond(start: Sequence[int], end: Sequence[int], size: Point) -> bool:
    return any(_side(start, axis, size) * _side(end, axis, size) > 0 for axis in (0, 1))


def _side(point: Sequence[int], axis: int, size: Point) -> int:
    """-1 before the canvas, 0 within it, 1 after it."""
    return (point[axis] >= size[axis]) - (point[axis] < 0)


def _divide(a: int, b: int) -> int:
    """Whole division towards zero, as in C."""
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _round(fixed: int) -> int:
    return (fixed + ONE // 2) >> 16
