"""The CPU shader: one numba loop over the samples of a picture, with edges smoothed by four samples a pixel."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np

from idgen.synthetic import parameters as P
from idgen.synthetic.lighting import developed, shadow_edge
from idgen.synthetic.ops import clamp, colour_at, mix3, scale3, unit3, where
from idgen.synthetic.shading import surface
from idgen.synthetic.surfaces import background, glasses_over

CHANNELS = 9
APART = 0.09  # decimetres: samples of one pixel whose depths differ by more are shaded one by one
BACKGROUND_CLASS = 0
GLASSES_CLASS = 11
_SOURCES = ("kernel", "lighting", "ops", "parameters", "shading", "skin", "surfaces")


@lru_cache(maxsize=1)
def shade_kernel() -> Any:
    """The compiled shader. It is kept on disk and compiled again when one of its source files has changed."""
    return _make_kernel(_fingerprint())


def _fingerprint() -> str:
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / f"{name}.py").read_bytes() for name in _SOURCES)).hexdigest()


def _make_kernel(fingerprint: str) -> Any:
    @numba.njit(cache=True, nogil=True, error_model="numpy")
    def shade(  # type: ignore[no-untyped-def]
        seen, nearest, xy, depth, corners, materials, points, normals, attributes, q, volume, light, image, parsing
    ):
        """seen, nearest (2H, 2W): what the four samples of each pixel see; writes image (H, W, 3) and parsing (H, W)."""
        _ = fingerprint  # part of the key under which numba keeps the compiled code
        height, width = parsing.shape
        a = np.empty(CHANNELS)
        for y in range(height):
            for x in range(width):
                red, green, blue, best, label = 0.0, 0.0, 0.0, 0, 0
                done = 0
                for s in range(4):
                    if done & (1 << s):
                        continue
                    sy, sx = 2 * y + s // 2, 2 * x + s % 2
                    triangle = seen[sy, sx]
                    here = nearest[sy, sx]
                    material = materials[triangle] if triangle >= 0 else -1
                    count, mx, my = 1, float(sx), float(sy)
                    for other in range(s + 1, 4):
                        oy, ox = 2 * y + other // 2, 2 * x + other % 2
                        t = seen[oy, ox]
                        same = (materials[t] if t >= 0 else -1) == material
                        if same and (triangle < 0 or abs(nearest[oy, ox] - here) < APART):
                            done |= 1 << other
                            count += 1
                    u, v = (sx + 0.5) / (2 * width), (sy + 0.5) / (2 * height)
                    if triangle < 0:
                        colour = background(q, volume, u, v)
                        kind = BACKGROUND_CLASS
                        px, py, pz = (u - 0.5) * 9, (0.5 - v) * 9, -3.0
                    else:
                        i, j, k = corners[triangle, 0], corners[triangle, 1], corners[triangle, 2]
                        ax, ay, bx, by, cx, cy = xy[i, 0], xy[i, 1], xy[j, 0], xy[j, 1], xy[k, 0], xy[k, 1]
                        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
                        wa = ((bx - mx) * (cy - my) - (by - my) * (cx - mx)) / area
                        wb = ((cx - mx) * (ay - my) - (cy - my) * (ax - mx)) / area
                        wc = 1 - wa - wb
                        wa, wb, wc = wa / depth[i], wb / depth[j], wc / depth[k]
                        total = wa + wb + wc
                        wa, wb, wc = wa / total, wb / total, wc / total
                        for c in range(CHANNELS):
                            a[c] = wa * attributes[i, c] + wb * attributes[j, c] + wc * attributes[k, c]
                        px = wa * points[i, 0] + wb * points[j, 0] + wc * points[k, 0]
                        py = wa * points[i, 1] + wb * points[j, 1] + wc * points[k, 1]
                        pz = wa * points[i, 2] + wb * points[j, 2] + wc * points[k, 2]
                        normal = unit3(
                            (
                                wa * normals[i, 0] + wb * normals[j, 0] + wc * normals[k, 0],
                                wa * normals[i, 1] + wb * normals[j, 1] + wc * normals[k, 1],
                                wa * normals[i, 2] + wb * normals[j, 2] + wc * normals[k, 2],
                            )
                        )
                        sun = _sun(light, px, py, pz, normal)
                        colour, kind = surface(material, q, volume, a, normal, (px, py, pz), sun)
                    if q[P.GLASSES] > 0:
                        colour, kind = with_glasses(q, colour, kind, px, py, pz, 2.6 / width)
                    colour = developed(q, colour)
                    red += count * colour[0]
                    green += count * colour[1]
                    blue += count * colour[2]
                    if count > best:
                        best, label = count, kind
                image[y, x, 0], image[y, x, 1], image[y, x, 2] = red * 0.25, green * 0.25, blue * 0.25
                parsing[y, x] = label

    return shade


@numba.extending.register_jitable
def _sun(light: Any, px: Any, py: Any, pz: Any, normal: Any) -> Any:
    """Share of the key light that arrives: the shadow map `light` = (depths (S, S), map (3, 4)), four taps."""
    depths, place = light
    size = depths.shape[0]
    if size < 2:
        return 1.0
    x, y, z = px + 0.035 * normal[0], py + 0.035 * normal[1], pz + 0.035 * normal[2]
    u = place[0, 0] * x + place[0, 1] * y + place[0, 2] * z + place[0, 3]
    v = place[1, 0] * x + place[1, 1] * y + place[1, 2] * z + place[1, 3]
    w = place[2, 0] * x + place[2, 1] * y + place[2, 2] * z + place[2, 3]
    u, v = clamp(u, 0.0, size - 1.001), clamp(v, 0.0, size - 1.001)
    column, row = int(u), int(v)
    fu, fv = u - column, v - row
    top = (1 - fu) * shadow_edge(w - depths[row, column]) + fu * shadow_edge(w - depths[row, column + 1])
    low = (1 - fu) * shadow_edge(w - depths[row + 1, column]) + fu * shadow_edge(w - depths[row + 1, column + 1])
    return (1 - fv) * top + fv * low


@numba.extending.register_jitable
def with_glasses(q: Any, colour: Any, kind: Any, px: Any, py: Any, pz: Any, pixel: Any) -> Any:
    """What is left of a sample's light and class behind the glasses. pixel: its width, decimetres."""
    r = P.ROTATION
    hx = q[r] * px + q[r + 3] * py + q[r + 6] * pz
    hy = q[r + 1] * px + q[r + 4] * py + q[r + 7] * pz
    hz = q[r + 2] * px + q[r + 5] * py + q[r + 8] * pz
    frame, dark, clear = glasses_over(q, hx, hy, hz, pixel)
    sheen = 0.035 * (0.6 + 0.5 * clamp(hy * 2, -1.0, 1.0))
    tint = scale3(colour_at(q, P.FRAME_COLOUR), 0.06)
    colour = mix3(colour, (tint[0] + sheen, tint[1] + sheen, tint[2] + sheen), dark * 0.93)
    colour = mix3(colour, (0.85, 0.9, 0.95), clear * 0.05)
    metal = 0.6 + q[P.FRAME + 4] * 0.8
    colour = mix3(colour, scale3(colour_at(q, P.FRAME_COLOUR), metal), frame)
    return colour, where((frame > 0.5) | (dark > 0.5), GLASSES_CLASS, kind)
