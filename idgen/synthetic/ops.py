"""One vocabulary of mathematics for the shaders, on torch tensors (any device) and, compiled by numba, on numbers.

A shader is written once as straight-line Python over these functions. Called with tensors it shades many samples at
a time; inlined into a numba kernel it shades one sample after the other, which on a CPU is several times faster.
Colours are tuples of three values.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba.extending import overload, register_jitable

NOISE_SIZE = 32  # the noise volume repeats after this many lattice units


def exp(x: Any) -> Any:
    return torch.exp(x)


def sqrt(x: Any) -> Any:
    return torch.sqrt(x)


def sin(x: Any) -> Any:
    return torch.sin(x)


def atan2(y: Any, x: Any) -> Any:
    return torch.atan2(y, x)


def absolute(x: Any) -> Any:
    return torch.abs(x)


def floor(x: Any) -> Any:
    return torch.floor(x)


def clamp(x: Any, low: Any, high: Any) -> Any:
    """x between low and high; each may be a number or a tensor."""
    if not isinstance(x, torch.Tensor):
        return min(max(x, low), high)
    return torch.clamp_max(torch.clamp_min(x, low), high)


def at_least(x: Any, low: Any) -> Any:
    """The larger of x and the number `low`."""
    return torch.clamp_min(x, low)


def larger(x: Any, y: Any) -> Any:
    return torch.maximum(x, y)


def where(condition: Any, x: Any, y: Any) -> Any:
    return torch.where(condition, x, y)


def active(condition: Any) -> bool:
    """Guards a block that changes (next to) nothing where the condition is false: numba skips it, tensors run it."""
    return True


def power(x: Any, exponent: Any) -> Any:
    """x ** exponent for x >= 0."""
    return torch.pow(x, exponent)


def noise(volume: Any, x: Any, y: Any, z: Any) -> Any:
    """Smooth noise of about unit variance at lattice coordinates; repeats every NOISE_SIZE units."""
    x0, y0, z0 = torch.floor(x), torch.floor(y), torch.floor(z)
    u, v, w = x - x0, y - y0, z - z0
    u, v, w = u * u * (3 - 2 * u), v * v * (3 - 2 * v), w * w * (3 - 2 * w)
    n = NOISE_SIZE - 1
    i, j, k = x0.long() & n, y0.long() & n, z0.long() & n
    i1, j1, k1 = (i + 1) & n, (j + 1) & n, (k + 1) & n

    def row(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        start = (a * NOISE_SIZE + b) * NOISE_SIZE
        flat = volume.reshape(-1)
        low = flat[start + k]
        return low + w * (flat[start + k1] - low)

    near, far = row(i, j), row(i1, j)
    near = near + v * (row(i, j1) - near)
    far = far + v * (row(i1, j1) - far)
    return near + u * (far - near)


@register_jitable
def step(low: Any, high: Any, x: Any) -> Any:
    """The smooth step from 0 at low to 1 at high (or down, when high < low)."""
    t = clamp((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


@register_jitable
def mix(a: Any, b: Any, t: Any) -> Any:
    return a + (b - a) * t


@register_jitable
def mix3(a: Any, b: Any, t: Any) -> Any:
    """Colour a where t is 0, colour b where t is 1."""
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


@register_jitable
def scale3(a: Any, s: Any) -> Any:
    return (a[0] * s, a[1] * s, a[2] * s)


@register_jitable
def times3(a: Any, b: Any) -> Any:
    return (a[0] * b[0], a[1] * b[1], a[2] * b[2])


@register_jitable
def add3(a: Any, b: Any) -> Any:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


@register_jitable
def dot3(a: Any, b: Any) -> Any:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@register_jitable
def unit3(a: Any) -> Any:
    length = sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2] + 1e-18)
    return (a[0] / length, a[1] / length, a[2] / length)


@register_jitable
def bell(x: Any, width: Any) -> Any:
    """exp(-(x / width)^2)"""
    t = x / width
    return exp(-t * t)


@register_jitable
def colour_at(q: Any, index: Any) -> Any:
    """Three parameters in a row."""
    return (q[index], q[index + 1], q[index + 2])


def noise_volume() -> np.ndarray:
    """The shipped noise: (32, 32, 32) float32, periodic, the same on every machine."""
    values = np.random.Generator(np.random.Philox(20)).normal(size=(NOISE_SIZE,) * 3)
    return values.astype(np.float32)


overload(exp)(lambda x: lambda x: math.exp(x))
overload(sqrt)(lambda x: lambda x: math.sqrt(x))
overload(sin)(lambda x: lambda x: math.sin(x))
overload(atan2)(lambda y, x: lambda y, x: math.atan2(y, x))
overload(absolute)(lambda x: lambda x: abs(x))
overload(floor)(lambda x: lambda x: math.floor(x))
overload(clamp)(lambda x, low, high: lambda x, low, high: min(max(x, low), high))
overload(at_least)(lambda x, low: lambda x, low: max(x, low))
overload(larger)(lambda x, y: lambda x, y: max(x, y))
overload(where)(lambda condition, x, y: lambda condition, x, y: x if condition else y)
overload(active)(lambda condition: lambda condition: condition)
overload(power)(lambda x, exponent: lambda x, exponent: x**exponent)


@overload(noise)
def _noise_of_numbers(volume: Any, x: Any, y: Any, z: Any) -> Any:
    n = NOISE_SIZE - 1

    def one(volume: Any, x: Any, y: Any, z: Any) -> Any:
        x0, y0, z0 = math.floor(x), math.floor(y), math.floor(z)
        u, v, w = x - x0, y - y0, z - z0
        u, v, w = u * u * (3 - 2 * u), v * v * (3 - 2 * v), w * w * (3 - 2 * w)
        i, j, k = int(x0) & n, int(y0) & n, int(z0) & n
        i1, j1, k1 = (i + 1) & n, (j + 1) & n, (k + 1) & n
        a = volume[i, j, k] + w * (volume[i, j, k1] - volume[i, j, k])
        b = volume[i, j1, k] + w * (volume[i, j1, k1] - volume[i, j1, k])
        c = volume[i1, j, k] + w * (volume[i1, j, k1] - volume[i1, j, k])
        d = volume[i1, j1, k] + w * (volume[i1, j1, k1] - volume[i1, j1, k])
        near, far = a + v * (b - a), c + v * (d - c)
        return near + u * (far - near)

    return one
