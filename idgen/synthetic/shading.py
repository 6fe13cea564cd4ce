"""From an interpolated sample to its light and its parsing class, by material."""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from idgen.synthetic.lighting import lit_hair, lit_skin, lit_wet
from idgen.synthetic.ops import absolute, clamp, step, unit3, where
from idgen.synthetic.skin import skin_albedo
from idgen.synthetic.surfaces import eye_albedo, lash_albedo, strand_albedo, teeth_albedo, tongue_albedo

PARSING_CLASSES = (
    "background",
    "skin",
    "brows",
    "eyes",
    "iris",
    "nose",
    "lips",
    "mouth",
    "ears",
    "neck",
    "hair",
    "glasses",
    "clothes",
)
_SKIN, _EYE, _TEETH, _TONGUE, _LASH, _HAIR = 0, 1, 2, 3, 4, 5  # Material


@register_jitable
def surface(material: Any, q: Any, volume: Any, a: Any, normal: Any, point: Any, sun: Any) -> Any:
    """One sample's (light, parsing class). a: the nine interpolated attributes of `surface_attributes`."""
    if material == _SKIN:
        return shade_skin(q, volume, a, normal, point, sun)
    if material == _EYE:
        return shade_eye(q, volume, a, normal, point, sun)
    if material == _TEETH:
        return shade_teeth(q, a, normal, point, sun)
    if material == _TONGUE:
        return shade_tongue(q, volume, a, normal, point, sun)
    if material == _LASH:
        return lit_skin(q, lash_albedo(q), normal, point, 0.8, sun, 0.0, 0.0, 0.0), 3
    return shade_strand(q, volume, a, normal, point, sun)


@register_jitable
def shade_skin(q: Any, volume: Any, a: Any, normal: Any, point: Any, sun: Any) -> Any:
    x, y, z = a[0], a[1], a[2]
    lips, field, ears, inside, open_ = a[3], a[5], a[6], a[7], clamp(a[8], 0.06, 1.0)
    colour, scalp, beard, brow, lip, cloth, pore = skin_albedo(q, volume, x, y, z, lips, ears, inside, field)
    covered = clamp(scalp + 0.8 * beard + 0.5 * brow, 0.0, 1.0)
    bare = (1 - covered) * (1 - cloth)
    rough = unit3((normal[0] + 0.015 * pore, normal[1] - 0.015 * pore, normal[2]))
    oil = 0.9 + 0.15 * pore * (1 - lip) + 0.5 * step(0.25, 0.1, absolute(x)) * (1 - lip)
    light = lit_skin(q, colour, rough, point, open_, sun, bare, lip, clamp(oil, 0.2, 2.0))
    kind = where(y < 6.13 + 0.72 * (1.42 - z), 9, 1)
    nose = (absolute(x) < 0.07 + 0.14 * step(7.15, 6.95, y)) & (y > 6.81) & (y < 7.30) & (z > 1.40)
    kind = where(nose, 5, kind)
    kind = where(ears > 0.5, 8, kind)
    kind = where(brow > 0.4, 2, kind)
    kind = where(inside > 0.6, 7, kind)
    kind = where(lip > 0.5, 6, kind)
    kind = where(scalp > 0.5, 10, kind)
    kind = where(cloth > 0.5, 12, kind)
    return light, kind


@register_jitable
def shade_eye(q: Any, volume: Any, a: Any, normal: Any, point: Any, sun: Any) -> Any:
    colour, iris, _ = eye_albedo(q, volume, a[0], a[1], a[2])
    open_ = 0.62
    light = lit_wet(q, colour, normal, point, open_, 0.35 + 0.65 * sun, 2.2)
    return light, where(iris > 0.5, 4, 3)


@register_jitable
def shade_teeth(q: Any, a: Any, normal: Any, point: Any, sun: Any) -> Any:
    colour = teeth_albedo(a[0], a[1], a[2])
    return lit_wet(q, colour, normal, point, 0.85, 0.45 + 0.55 * sun, 0.25), 7


@register_jitable
def shade_tongue(q: Any, volume: Any, a: Any, normal: Any, point: Any, sun: Any) -> Any:
    colour = tongue_albedo(volume, a[0], a[1], a[2])
    return lit_wet(q, colour, normal, point, 0.60, 0.3 + 0.6 * sun, 0.15), 7


@register_jitable
def shade_strand(q: Any, volume: Any, a: Any, normal: Any, point: Any, sun: Any) -> Any:
    colour = strand_albedo(q, volume, a[0], a[1], a[2])
    along = unit3((a[3], a[4], a[5]))
    return lit_hair(q, colour, normal, along, point, a[8], 0.15 + 0.85 * sun), 10
