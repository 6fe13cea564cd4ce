"""Aspect buckets: photos of unlike shapes are trained on in shapes of about equal area, those of one shape together."""

from __future__ import annotations

import math

from idgen.errors import IdgenError

Size = tuple[int, int]  # height, width


def bucket_sizes(resolution: int, step: int = 64, longest: float = 2.0) -> list[Size]:
    """Shapes whose sides are multiples of `step` and whose area is at most that of the square.

    Args:
        resolution: side of the square.
        step: what the model asks for: 64 for Stable Diffusion at 512 and more, 8 times a power of two otherwise.
        longest: most that one side may be longer than the other.

    Raises:
        IdgenError: the square's side is no multiple of `step`.
    """
    if resolution % step:
        near = max(step, resolution // step * step)
        raise IdgenError(
            f"resolution {resolution} is no multiple of {step}, as aspect_ratio_buckets need it: take {near} or {near + step}"
        )
    sizes = {(resolution, resolution)}
    for width in range(step, int(resolution * math.sqrt(longest)) + 1, step):
        height = resolution * resolution // width // step * step
        if height >= step and max(height, width) <= longest * min(height, width):
            sizes |= {(height, width), (width, height)}
    # Of shapes that are alike the larger is enough.
    best: dict[float, Size] = {}
    for size in sorted(sizes, key=lambda one: one[0] * one[1]):
        best[round(math.log(size[1] / size[0]), 2)] = size
    return sorted(best.values(), key=lambda one: one[1] / one[0])


def nearest_bucket(height: int, width: int, sizes: list[Size]) -> Size:
    """The shape that a photo loses least in."""
    return min(sizes, key=lambda size: abs(math.log(size[1] / size[0] * height / width)))
