"""Light on surfaces: a key light with shadows, a fill light and surroundings. Numbers and tensors alike, see `ops`."""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from idgen.synthetic import parameters as P
from idgen.synthetic.ops import add3, at_least, clamp, colour_at, dot3, mix, power, scale3, sqrt, step, times3, unit3

Vector = tuple[Any, Any, Any]


@register_jitable
def view_direction(q: Any, point: Vector) -> Vector:
    return unit3((q[P.CAMERA] - point[0], q[P.CAMERA + 1] - point[1], q[P.CAMERA + 2] - point[2]))


@register_jitable
def lit_skin(
    q: Any, colour: Vector, normal: Vector, point: Vector, open_: Any, sun: Any, skin: Any, lip: Any, oil: Any
) -> Vector:
    """Skin and cloth. open_: share of the surroundings seen; sun: share of the key light that arrives; skin: 1, cloth: 0.

    Light that enters skin comes out a little further on, red furthest: the edge of the shade is soft and warm.
    """
    key, view = colour_at(q, P.KEY), view_direction(q, point)
    facing = dot3(normal, key)
    wrap = (0.32 * skin, 0.15 * skin, 0.11 * skin)
    bleed = skin * 0.30
    root = sqrt(sun + 1e-6)
    arrives = (mix(sun, root, bleed), mix(sun, root, 0.3 * bleed), mix(sun, root, 0.15 * bleed))
    direct = (
        at_least((facing + wrap[0]) / (1 + wrap[0]), 0.0) * arrives[0],
        at_least((facing + wrap[1]) / (1 + wrap[1]), 0.0) * arrives[1],
        at_least((facing + wrap[2]) / (1 + wrap[2]), 0.0) * arrives[2],
    )
    strength = colour_at(q, P.KEY_COLOUR)
    near = 0.45 + 0.55 * open_
    light = add3(scale3(times3(strength, direct), near), _soft_light(q, normal, open_, skin))
    half = unit3((key[0] + view[0], key[1] + view[1], key[2] + view[2]))
    shine = at_least(dot3(normal, half), 0.0)
    fresnel = power(1 - clamp(dot3(normal, view), 0.0, 1.0), 4.0)
    gloss = power(shine, 14.0) * 0.085 + power(shine, 46.0) * 0.075 * (1 + 2.2 * lip)
    gloss = gloss * oil * skin * sun * clamp(open_, 0.3, 1.0)
    sheen = fresnel * 0.05 * (0.5 + 0.5 * skin) * open_
    glint = add3(scale3(strength, gloss), scale3(colour_at(q, P.AMBIENT), sheen))
    return add3(times3(colour, light), glint)


@register_jitable
def lit_hair(q: Any, colour: Vector, normal: Vector, along: Vector, point: Vector, open_: Any, sun: Any) -> Vector:
    """Strands (Kajiya and Kay 1989, with the two highlights of Marschner et al. 2003). along: unit direction."""
    key, view = colour_at(q, P.KEY), view_direction(q, point)
    t = dot3(along, key)
    round_ = sqrt(clamp(1 - t * t, 0.0, 1.0))
    facing = clamp(dot3(normal, key) * 0.75 + 0.32, 0.0, 1.0)
    strength = colour_at(q, P.KEY_COLOUR)
    light = add3(
        scale3(strength, round_ * facing * sun * (0.35 + 0.65 * open_)), _soft_light(q, normal, open_ * 0.9, 0.0)
    )
    half = unit3((key[0] + view[0], key[1] + view[1], key[2] + view[2]))
    h = dot3(along, half)
    first = power(clamp(1 - (h - 0.08) * (h - 0.08), 0.0, 1.0), 70.0)
    second = power(clamp(1 - (h + 0.12) * (h + 0.12), 0.0, 1.0), 26.0)
    white = first * 0.055 * facing * sun * open_
    tinted = second * 0.75 * facing * sun * open_
    glint = scale3(strength, white)
    return add3(times3(colour, add3(light, scale3(strength, tinted))), glint)


@register_jitable
def lit_wet(q: Any, colour: Vector, normal: Vector, point: Vector, open_: Any, sun: Any, gloss: Any) -> Vector:
    """Eyes, teeth and tongue: a diffuse body under a film of water. gloss: strength of the reflection of the light."""
    key, view = colour_at(q, P.KEY), view_direction(q, point)
    direct = at_least((dot3(normal, key) + 0.35) / 1.35, 0.0) * sun * (0.35 + 0.65 * open_)
    strength = colour_at(q, P.KEY_COLOUR)
    light = add3(scale3(strength, direct), _soft_light(q, normal, open_, 0.0))
    half = unit3((key[0] + view[0], key[1] + view[1], key[2] + view[2]))
    shine = power(at_least(dot3(normal, half), 0.0), 180.0) * gloss * (0.4 + 0.6 * sun)
    # A window above the camera is mirrored as well: eyes are never dull.
    up = unit3((view[0] + 0.25, view[1] + 0.75, view[2]))
    window = power(at_least(dot3(normal, up), 0.0), 120.0) * gloss * 0.30
    return add3(times3(colour, light), add3(scale3(strength, shine), scale3(colour_at(q, P.AMBIENT), window)))


@register_jitable
def _soft_light(q: Any, normal: Vector, open_: Any, skin: Any) -> Vector:
    fill = at_least(dot3(normal, colour_at(q, P.FILL)) * 0.8 + 0.2, 0.0) * q[P.FILL_STRENGTH] * open_
    around = (1 + 1.5 * dot3(colour_at(q, P.AMBIENT_SLOPE), normal) + 0.28 * normal[1]) * open_
    buried = (1 - open_) * skin  # light that reaches folds has met skin before
    ambient = colour_at(q, P.AMBIENT)
    return (
        fill + ambient[0] * around * (1 + 0.16 * buried),
        fill + ambient[1] * around * (1 - 0.03 * buried),
        fill + ambient[2] * around * (1 - 0.07 * buried),
    )


@register_jitable
def developed(q: Any, colour: Vector) -> Vector:
    """Exposure and the shoulder of a film curve: white is approached, never hit. Still linear light, in [0, 1)."""
    e = q[P.EXPOSURE] * 1.22
    a, b, c = colour[0] * e, colour[1] * e, colour[2] * e
    return (
        a * (1 + a * 0.105) / (1 + a * 0.82),
        b * (1 + b * 0.105) / (1 + b * 0.82),
        c * (1 + c * 0.105) / (1 + c * 0.82),
    )


@register_jitable
def shadow_edge(behind: Any) -> Any:
    """How much light arrives at a point that lies so far (decimetres) behind what the light sees first."""
    return 1 - step(0.015, 0.07, behind)
