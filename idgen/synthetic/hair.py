"""Hair: where it grows, how far it lifts the scalp's outline, and ribbons of strands that grow out of it.

The scalp itself is coloured as hair where `hair_field` > 0 (so no skin shines through), and several hundred ribbons
grown step by step give it an outline, a parting, a fringe, curls and length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from idgen.synthetic.asset import HEAD_CENTRE, Material, load_head
from idgen.synthetic.people import Person
from idgen.synthetic.style import Style

STRANDS = 620  # ribbons, of which those outside the hairline vanish
STEPS = 8  # segments of each ribbon
LONG = ("bob", "long", "long with a fringe")
FRINGE = ("short with a fringe", "long with a fringe")
TIED = ("ponytail", "bun")
BALL = 110  # ribbons that make a bun or a tail
ATTRIBUTES = 9
_ANGLES = (0.0, 0.55, 0.85, 1.15, 1.38, 1.75, 2.2, 3.15)  # azimuths of the hairline's knots, front to nape


@dataclass(frozen=True, eq=False)
class Strands:
    points: np.ndarray  # (STRANDS * (STEPS + 1) * 2, 3) float32, in the head's frame
    normals: np.ndarray  # the same shape
    attributes: np.ndarray  # (..., ATTRIBUTES): along, across, number, direction (3), 0, 0, occlusion


def _ribbon_triangles() -> np.ndarray:
    step = np.arange(STEPS)[None] * 2 + np.arange(STRANDS)[:, None] * (STEPS + 1) * 2
    quad = np.stack([step, step + 1, step + 3, step + 2], -1).reshape(-1, 4)
    return np.concatenate([quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]])


HAIR_TRIANGLES = _ribbon_triangles()


def hair_field(person: Person, style: Style) -> np.ndarray:
    """How far (radians, as seen from HEAD_CENTRE) each head vertex lies inside the hairline; negative: outside. (V,)"""
    if style.hair == "bald":
        return np.full(len(load_head().vertices), -1.0, np.float32)
    azimuth, elevation, grows = _directions()
    front, temple, peak = (float(x) for x in person.hairline)
    if style.hair == "receding":
        front, temple = front + 0.26, temple + 0.42
    if style.hair in ("afro", "curly"):
        front, temple = front - 0.03, temple - 0.04
    knots = (front, front + 0.03, temple, 0.10, -0.16, -0.25, -0.50, -0.55)
    limit = _smooth_interpolate(azimuth, _ANGLES, knots) - peak * np.exp(-((azimuth / 0.28) ** 2))
    return np.where(grows, elevation - limit, -1.0).astype(np.float32)


def hair_lift(field: np.ndarray, style: Style) -> np.ndarray:
    """Offsets (V, 3) that raise the scalp to the body of the hair."""
    thickness = {
        "bald": 0.0, "buzz cut": 0.015, "receding": 0.03, "short": 0.06, "short with a fringe": 0.08, "side part": 0.08,
        "curly": 0.14, "afro": 0.30, "ponytail": 0.04, "bun": 0.04,
    }.get(style.hair, 0.07)  # fmt: skip
    thickness *= 0.7 + 0.6 * style.volume if style.hair != "afro" else 0.6 + 0.9 * style.volume
    rise = _step(-0.01, 0.20, field) * (0.75 + 0.45 * _step(0.2, 1.2, field)) * (1 - _ears())
    return (thickness * rise)[:, None] * _outward()


def strands(person: Person, style: Style, field: np.ndarray, vertices: np.ndarray) -> Strands:
    """The ribbons of one picture. vertices (V, 3): the head with hair lift and expression."""
    corners, weights = _roots()
    root = (vertices[corners] * weights[..., None]).sum(1)
    inside = (field[corners] * weights).sum(1)
    random = np.random.Generator(np.random.Philox(style.strands))
    jitter = np.clip(random.normal(size=(STRANDS, 3)), -1.7, 1.7).astype(np.float32)
    length, width = _sizes(style, random)
    out = _unit(root - HEAD_CENTRE)
    if style.hair in FRINGE:
        # A fringe ends at the brows, wherever its strands start.
        reach = np.clip(1.05 * (root[:, 1:2] - 7.46) + 0.10 * np.abs(jitter[:, :1]), 0.2, 1.3)
        length = length + _step(0.0, 0.3, _fringe(out)) * (np.minimum(reach, length) - length)
    skull, radii = _skull(vertices)
    growing = inside > 0.0
    direction, gravity, gap, ruffle, cling = _comb(style, out, jitter)
    point = root.copy()
    phase = random.uniform(0, 2 * math.pi, (STRANDS, 1)).astype(np.float32)
    swirl = 0.05 * style.curl * np.minimum(length, 1)
    path = [root]
    for step in range(STEPS):
        offset = (point - skull) / radii
        reach = np.linalg.norm(offset, axis=1, keepdims=True)
        away = offset / radii
        away /= np.linalg.norm(away, axis=1, keepdims=True) + 1e-6
        # Hair that touches the head slides along it; combed hair also follows its curve, down to the widest place.
        outward = (direction * away).sum(1, keepdims=True)
        near = (reach < 1 + 2.5 * gap) * np.where(outward < 0, 1, cling * _step(7.15, 7.6, point[:, 1:2]))
        direction = _unit(direction - near * outward * away)
        point = point + direction * (length / STEPS)
        offset = (point - skull) / radii
        reach = np.linalg.norm(offset, axis=1, keepdims=True)
        least = 1 + gap * min(1, (step + 1) / 3)
        point = np.where(reach < least, skull + offset * (least / np.maximum(reach, 1e-6)) * radii, point)
        turn = phase + 2.0 * (step + 1) * (0.5 + style.curl)
        wave = np.concatenate([np.cos(turn), 0.3 * np.sin(2 * turn), np.sin(turn)], 1)
        path.append((point + swirl * wave * min(1, (step + 1) / 3)).astype(np.float32))
        pull = np.full_like(length, gravity)
        if style.hair in LONG:  # what starts above the forehead is laid aside, off the face, before it falls
            held = _step(0.85, 1.2, point[:, 2:]) * _step(0.85, 0.65, np.abs(point[:, :1]))
            pull *= 1 - 0.85 * held * (1 - _step(0.0, 0.3, _fringe(out)) * (style.hair in FRINGE))
        direction = _unit(direction + pull * np.array([0, -1, 0], np.float32) + ruffle * jitter)
        if style.hair in LONG:  # below the ears hair falls in towards the neck
            hanging = 0.30 * _step(7.35, 6.9, point[:, 1:2])
            spread = np.clip((np.abs(point[:, :1]) - 0.60) * 4, -0.3, 1) * np.sign(point[:, :1])
            direction = _unit(direction - hanging * np.concatenate([spread, 0 * spread, 0.4 * (point[:, 2:] - 0.4)], 1))
    line = np.stack(path, 1)  # (STRANDS, STEPS + 1, 3)
    x, y, z = line.transpose(2, 0, 1)
    growing &= ~((np.abs(x) < 0.60) & (y > 6.2) & (y < 7.36) & (z > 0.9)).any(1)  # nobody hides behind the hair
    if style.hair in TIED:
        line, growing, width = _tie(style, line, growing, width, vertices, random)
    return _ribbons(line, width * growing[:, None], out, random)


def _sizes(style: Style, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Length and half width (STRANDS, 1) of the ribbons, decimetres."""
    length = {
        "bald": 0.0, "buzz cut": 0.03, "receding": 0.13, "short": 0.20 + 0.14 * style.length, "side part": 0.42,
        "short with a fringe": 0.42, "curly": 0.30 + 0.35 * style.length, "afro": 0.14 + 0.08 * style.volume,
        "bob": 1.15 + 0.35 * style.length, "long": 2.0 + 0.8 * style.length,
        "long with a fringe": 2.0 + 0.8 * style.length, "ponytail": 0.7, "bun": 0.7,
    }[style.hair]  # fmt: skip
    usual = 0.055 if style.hair in LONG else 0.036
    half = {"buzz cut": 0.0, "receding": 0.016, "short": 0.028, "afro": 0.05, "curly": 0.045}.get(style.hair, usual)
    spread = random.uniform(0.75, 1.15, (2, STRANDS, 1)).astype(np.float32)
    return length * spread[0], half * spread[1]


def _comb(style: Style, out: np.ndarray, jitter: np.ndarray) -> tuple[np.ndarray, float, float, float, float]:
    """First direction (STRANDS, 3), gravity and ruffle per step, gap to the skull (share of its radius), cling (0 .. 1)."""
    x, _, z = out.T[..., None]
    zero = 0 * x
    side = x - 0.30 * style.part
    side = np.where(side < 0, -1, 1) * (0.5 + 0.5 * np.tanh(6 * np.abs(side)))
    down = np.concatenate([0.25 * x, zero - 0.8, 0.25 * z], 1)
    name = style.hair
    front = _step(0.35, 0.75, z)
    if name in ("afro", "curly"):
        return _unit(out + 0.30 * jitter), 0.02 if name == "afro" else 0.30, 0.08, 0.06, 0.0
    if name in ("short", "receding", "buzz cut"):
        forward = np.concatenate([0.45 * side, zero + 0.30, zero + 0.1], 1) * front + down * (1 - front)
        return _unit(forward + 0.30 * out + 0.16 * jitter), 0.20, 0.05, 0.05, 0.5
    if name == "side part":
        swept = np.concatenate([1.1 * side, zero + 0.25, zero - 0.20], 1)
        return (
            _unit(swept * front + (down + 0.4 * swept) * (1 - front) + 0.2 * out + 0.07 * jitter),
            0.22,
            0.07,
            0.03,
            0.8,
        )
    if name in TIED:
        target = np.array([0, 8.0, -0.35], np.float32) - (HEAD_CENTRE + out)
        return _unit(target + 0.04 * jitter), 0.0, 0.04, 0.01, 1.0
    swept = np.concatenate([1.0 * side, zero + 0.10, -0.55 * front], 1)
    gap, gravity = 0.05 + 0.06 * style.volume, 0.85 - 0.25 * style.volume
    if name in FRINGE:
        fringe = _fringe(out)
        ahead = np.concatenate([0.20 * x + 0.10 * style.part, zero - 0.10, zero + 1], 1)
        rest = swept if name in LONG else down
        return _unit(ahead * fringe + rest * (1 - fringe) + 0.07 * jitter), gravity, gap, 0.02, 1.0
    return _unit(swept + 0.15 * out + 0.06 * jitter), gravity, gap, 0.02, 1.0


def _fringe(out: np.ndarray) -> np.ndarray:
    """Which strands (0 .. 1) fall over the forehead."""
    x, _, z = out.T[..., None]
    return _step(0.10, 0.30, z) * _step(0.60, 0.45, np.abs(x))


def _tie(
    style: Style,
    line: np.ndarray,
    growing: np.ndarray,
    width: np.ndarray,
    vertices: np.ndarray,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first BALL ribbons become a bun on top of the head or a tail behind it."""
    skull, radii = _skull(vertices)
    turn = random.uniform(0, 2 * math.pi, (BALL, 1))
    along = np.linspace(0, 1, STEPS + 1)[None]
    high = style.length
    if style.hair == "bun":
        centre = skull + radii * np.array([0.0, 0.95 + 0.15 * high, -0.55 + 0.35 * high])
        tilt = random.uniform(-1.2, 1.2, (BALL, 1))
        angle = turn + along * 2.2
        ring = 0.30 * np.stack(
            [np.cos(angle) * np.cos(tilt), np.sin(tilt) + 0 * angle, np.sin(angle) * np.cos(tilt)], -1
        )
        tied = centre + ring
    else:
        start = skull + radii * np.array([0.0, 0.75, -0.85])
        bundle = 0.05 + 0.20 * along * (1.2 - along)
        fall = 0.25 * np.sin(3 * along) - 1.9 * along**1.3 + 0 * turn
        drop = np.stack([np.cos(turn) * bundle, fall, -0.30 * along + np.sin(turn) * bundle], -1)
        # A tail that hangs straight behind is never seen: it comes over one shoulder.
        drop[..., 0] += np.sign(style.part) * 0.75 * np.sin(0.5 * np.pi * along)
        tied = start + drop
    line, growing, width = line.copy(), growing.copy(), width.copy()
    line[:BALL] = tied
    growing[:BALL] = True
    width[:BALL] = 0.05
    return line, growing, width


def _ribbons(line: np.ndarray, width: np.ndarray, out: np.ndarray, random: np.random.Generator) -> Strands:
    """Flat ribbons along the lines (S, STEPS + 1, 3), lying on the head, narrowing to a tip."""
    direction = np.gradient(line, axis=1)
    direction /= np.linalg.norm(direction, axis=2, keepdims=True) + 1e-9
    away = line - (HEAD_CENTRE + np.array([0, -0.3, 0], np.float32))
    away[..., 1] *= 0.35
    away = away - (away * direction).sum(2, keepdims=True) * direction + 1e-4 * out[:, None]
    normal = away / (np.linalg.norm(away, axis=2, keepdims=True) + 1e-9)
    across = np.cross(direction, normal)
    along = np.linspace(0, 1, STEPS + 1)
    taper = np.minimum(1, 0.35 + 3 * along) * (1 - along**4 * 0.85)
    taper = taper[None, :, None] * width[:, None]
    points = np.stack([line - across * taper, line + across * taper], 2)
    number = random.random(STRANDS)
    attributes = np.zeros((STRANDS, STEPS + 1, 2, ATTRIBUTES), np.float32)
    attributes[..., 0] = along[None, :, None]
    attributes[..., 1] = np.array([-1, 1])
    attributes[..., 2] = number[:, None, None]
    attributes[..., 3:6] = direction[:, :, None]
    attributes[..., 8] = (0.72 + 0.28 * number)[:, None, None]
    # The two edges lean apart: across its width a ribbon is shaded as something round.
    bend = np.stack([normal - 0.35 * across, normal + 0.35 * across], 2)
    return Strands(
        points.reshape(-1, 3).astype(np.float32),
        bend.reshape(-1, 3).astype(np.float32),
        attributes.reshape(-1, ATTRIBUTES),
    )


def _skull(vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and radii of the ellipsoid that the hair lies on."""
    scalp = vertices[_scalp()]
    high, low = scalp.max(0), scalp.min(0)
    centre = np.array([(high[0] + low[0]) / 2, 7.45, (high[2] + low[2]) / 2], np.float32)
    radii = np.array([(high[0] - low[0]) / 2, high[1] - 7.45, (high[2] - low[2]) / 2], np.float32)
    return centre, radii


@lru_cache(maxsize=1)
def _scalp() -> np.ndarray:
    head = load_head()
    return np.flatnonzero((head.vertex_material == Material.SKIN) & (head.vertices[:, 1] > 7.5))


@lru_cache(maxsize=1)
def _outward() -> np.ndarray:
    out = load_head().vertices - HEAD_CENTRE
    return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=1)
def _ears() -> np.ndarray:
    return load_head().masks[3]


@lru_cache(maxsize=1)
def _directions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Azimuth from the front (0 .. pi) and elevation of each vertex, and whether hair can grow there at all."""
    head = load_head()
    x, y, z = _outward().T
    can = (head.vertex_material == Material.SKIN) & (head.vertices[:, 1] > 6.6) & (head.masks[4] < 0.3)
    return np.arctan2(np.abs(x), z), np.arcsin(np.clip(y, -1, 1)), can & (head.masks[3] < 0.3)


@lru_cache(maxsize=1)
def _roots() -> tuple[np.ndarray, np.ndarray]:
    """Where the ribbons start: corners (STRANDS, 3) and weights (STRANDS, 3), spread evenly over the scalp."""
    head = load_head()
    azimuth, elevation, can = _directions()
    limit = _smooth_interpolate(azimuth, _ANGLES, (0.5, 0.5, 0.35, 0.05, -0.2, -0.27, -0.52, -0.57))
    grows = can & (elevation > limit)
    inside = head.triangles[grows[head.triangles].all(1) & (head.triangle_material == Material.SKIN)]
    a, b, c = head.vertices[inside].transpose(1, 0, 2)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    random = np.random.Generator(np.random.Philox(7))
    even = (np.arange(STRANDS) + random.random(STRANDS)) / STRANDS
    chosen = np.searchsorted(np.cumsum(area) / area.sum(), even).clip(0, len(area) - 1)
    random.shuffle(chosen)
    weights = random.dirichlet([1, 1, 1], STRANDS)
    return inside[chosen], weights.astype(np.float32)


def _smooth_interpolate(x: np.ndarray, at: tuple[float, ...], values: tuple[float, ...]) -> np.ndarray:
    result = np.full_like(x, values[-1])
    for a, b, u, v in zip(at[:-1], at[1:], values[:-1], values[1:], strict=True):
        here = (x >= a) & (x < b)
        result[here] = u + (v - u) * _step(a, b, x[here])
    return result


def _step(low: float, high: float, x: np.ndarray) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _unit(v: np.ndarray) -> np.ndarray:
    return (v / (np.linalg.norm(v, axis=1, keepdims=True) + 1e-9)).astype(np.float32)
