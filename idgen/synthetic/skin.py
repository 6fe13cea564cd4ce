"""The colour of skin with all that is painted on it: lips, brows, freckles, moles, wrinkles, beard, make-up, scalp hair.

Every function takes the template position (x, y, z) of a sample, so that what it paints follows shape and expression.
Written for numbers and tensors alike, see `ops`. Colours are linear RGB.
"""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from idgen.synthetic import parameters as P
from idgen.synthetic.ops import (
    absolute,
    active,
    at_least,
    bell,
    clamp,
    colour_at,
    exp,
    larger,
    mix,
    mix3,
    noise,
    scale3,
    sin,
    sqrt,
    step,
    where,
)

# Linear skin colours from the least to the most melanin.
_STOPS = (
    (0.730, 0.495, 0.395),
    (0.600, 0.370, 0.265),
    (0.410, 0.215, 0.130),
    (0.185, 0.083, 0.047),
    (0.060, 0.027, 0.016),
)


@register_jitable
def skin_albedo(q: Any, volume: Any, x: Any, y: Any, z: Any, lips: Any, ears: Any, inside: Any, hair: Any) -> Any:
    """Returns (colour, scalp hair share, beard share, brow share, lip share, cloth share, fine noise)."""
    gx, gy, gz = q[P.GRAIN], q[P.GRAIN + 1], q[P.GRAIN + 2]
    broad = noise(volume, x * 3.5 + gx, y * 3.5 + gy, z * 3.5 + gz)
    blotch = noise(volume, x * 12 + gy, y * 12 + gz, z * 12 + gx)
    pore = noise(volume, x * 46 + gz, y * 46 + gx, z * 46 + gy)
    side = absolute(x)
    front = step(0.9, 1.2, z)
    colour = _bare_skin(q, side, y, front, broad, blotch, pore, lips, ears)
    colour = _marks(q, volume, colour, x, side, y, z, front, broad, pore)
    lip = step(0.35, 0.75, lips) * (1 - inside)
    if active(lip > 0):
        colour = mix3(colour, _lip_colour(q, colour, x, y, pore), lip)
    within = step(0.4, 0.8, inside) * (1 - lip)
    colour = mix3(colour, (0.20, 0.045, 0.04), within)
    shadow = bell(side - 0.33, 0.15) * bell(y - 7.37, 0.05) * front * q[P.EYE_SHADOW] * 0.75
    colour = mix3(colour, colour_at(q, P.EYE_SHADOW_COLOUR), shadow)
    brow = side * 0.0
    if active((y > 7.3) & (y < 7.7) & (z > 1.0) & (side < 0.65)):
        brow = _brow(q, volume, x, side, y, z)
    tint = colour_at(q, P.HAIR)
    colour = mix3(colour, _brow_colour(tint, colour), brow)
    beard = side * 0.0
    jaws = (y < 7.1) & (z > 0.4) & (y > 5.9)
    if active(jaws):
        beard, stubble = _beard(q, volume, x, side, y, z, (1 - lip) * (1 - within) * (1 - ears) * where(jaws, 1.0, 0.0))
        # Even white stubble darkens skin a little: what one sees between the hairs is shade.
        colour = mix3(colour, _no_lighter(scale3(tint, 0.8), scale3(colour, 0.72)), stubble)
        streak = noise(volume, x * 30 + gx, y * 11 + gy, z * 22)
        colour = mix3(colour, scale3(tint, clamp(0.78 + 0.24 * streak, 0.35, 1.3)), beard)
    scalp = side * 0.0
    if active(hair > -0.2):
        scalp, shade = _scalp(q, volume, x, y, z, hair, ears)
        colour = mix3(colour, scale3(tint, shade), scalp)
    cloth = side * 0.0
    if active(y < 6.3):
        cloth, fabric = _cloth(q, volume, x, side, y, z, blotch)
        colour = mix3(colour, fabric, cloth)
    return colour, scalp, beard, brow, lip, cloth, pore


@register_jitable
def _bare_skin(q: Any, side: Any, y: Any, front: Any, broad: Any, blotch: Any, pore: Any, lips: Any, ears: Any) -> Any:
    melanin = clamp(q[P.MELANIN] + 0.016 * broad + 0.014 * blotch + 0.008 * pore, 0.0, 0.999) * 4.0
    colour = mix3(_STOPS[0], _STOPS[1], clamp(melanin, 0.0, 1.0))
    colour = mix3(colour, _STOPS[2], clamp(melanin - 1.0, 0.0, 1.0))
    colour = mix3(colour, _STOPS[3], clamp(melanin - 2.0, 0.0, 1.0))
    colour = mix3(colour, _STOPS[4], clamp(melanin - 3.0, 0.0, 1.0))
    warm = 2.0 * q[P.WARMTH] - 1.0
    colour = (colour[0] * (1 + 0.02 * warm), colour[1], colour[2] * (1 - 0.12 * warm))
    cheeks = bell(side - 0.42, 0.2) * bell(y - 6.90, 0.2) * front
    nose = bell(side, 0.14) * bell(y - 6.93, 0.14) * front
    chin = bell(side, 0.2) * bell(y - 6.32, 0.12) * front
    blood = 0.85 * cheeks + 0.7 * nose + 0.35 * chin + 0.6 * ears + 0.16 * broad + 0.14 * blotch + 0.08 * pore
    blood = clamp(blood * (0.30 + 0.85 * q[P.REDNESS]), -0.3, 1.5)
    colour = (colour[0] * exp(-0.02 * blood), colour[1] * exp(-0.26 * blood), colour[2] * exp(-0.22 * blood))
    under = bell(side - 0.31, 0.15) * bell(y - 7.17, 0.055) * front * (0.25 + 0.55 * q[P.ELDERLY])
    colour = (colour[0] * (1 - 0.24 * under), colour[1] * (1 - 0.28 * under), colour[2] * (1 - 0.20 * under))
    return scale3(colour, 1 + 0.045 * pore + 0.03 * blotch)


@register_jitable
def _marks(
    q: Any, volume: Any, colour: Any, x: Any, side: Any, y: Any, z: Any, front: Any, broad: Any, pore: Any
) -> Any:
    """Freckles, moles and the lines of age."""
    gx = q[P.GRAIN]
    if active(q[P.FRECKLES] > 0):
        spots = noise(volume, x * 26 + gx + 9, y * 26 + 3, z * 26)
        spots = step(0.55, 1.25, spots) * q[P.FRECKLES] * front * bell(y - 7.03, 0.33) * step(0.65, 0.5, side)
        colour = (colour[0] * (1 - 0.30 * spots), colour[1] * (1 - 0.46 * spots), colour[2] * (1 - 0.55 * spots))
    age = q[P.ELDERLY]
    if active(age > 0):
        lines = step(0.3, 1.0, sin(y * 44 + 2.2 * broad + gx)) * bell(y - 7.74, 0.14) * step(0.55, 0.25, side)
        feet = step(0.4, 1.0, sin((y - 0.45 * side) * 75 + broad)) * bell(side - 0.56, 0.07) * bell(y - 7.28, 0.10)
        line = age * (0.22 * lines + 0.25 * feet) * step(0.95, 1.15, z)
        colour = scale3(colour, 1 - line - 0.05 * age * at_least(pore, 0.0))
    for number in range(4):
        place = P.MOLES + 3 * number
        radius = q[place + 2]
        if active(radius > 0):
            distance = sqrt((x - q[place]) * (x - q[place]) + (y - q[place + 1]) * (y - q[place + 1]))
            mole = step(1.35, 0.7, distance / (radius + 1e-4)) * front * where(radius > 0, 0.62, 0.0)
            colour = scale3(colour, 1 - mole)
    return colour


@register_jitable
def _lip_colour(q: Any, skin: Any, x: Any, y: Any, pore: Any) -> Any:
    depth, tint, hue = q[P.LIP_DEPTH], q[P.LIP_TINT], q[P.LIPSTICK_HUE]
    natural = (
        skin[0] * (0.90 - 0.12 * depth),
        skin[1] * (0.60 - 0.14 * depth + 0.06 * tint),
        skin[2] * (0.58 - 0.10 * depth + 0.16 * tint),
    )
    stick = (0.26 + 0.34 * hue, 0.018 + 0.10 * hue * hue, 0.025 + 0.16 * hue)
    colour = mix3(natural, stick, q[P.LIPSTICK])
    return scale3(colour, 1 + 0.06 * sin(x * 120) * (1 - q[P.LIPSTICK]) + 0.05 * pore)


@register_jitable
def _brow(q: Any, volume: Any, x: Any, side: Any, y: Any, z: Any) -> Any:
    thickness, arch, offset, density = q[P.BROWS], q[P.BROWS + 1], q[P.BROWS + 2], q[P.BROWS + 3]
    along = (side - 0.09) / 0.44
    inner = clamp(along, 0.0, 1.0)
    middle = 7.448 + offset + arch * sin(3.1416 * inner * (1.12 - 0.12 * inner)) * 1.1 - 0.035 * inner * inner * inner
    half = thickness * step(-0.08, 0.14, along) * (1 - 0.72 * step(0.45, 1.05, along)) + 1e-4
    away = absolute(y - middle) / half
    # Hairs rise near the nose and lie down towards the temple.
    lean = 1.4 - 1.2 * inner
    hairs = noise(volume, (side - lean * (y - middle)) * 62 + q[P.GRAIN], (y - middle) * 16 + 7, x * 2.0)
    edge = step(1.5, 0.5, away + 0.22 * hairs)
    ends = step(-0.05, 0.06, along) * step(1.10, 0.92, along) * step(1.0, 1.15, z)
    return clamp(edge * ends * density * (0.88 + 0.22 * hairs), 0.0, 0.96)


@register_jitable
def _brow_colour(hair: Any, skin: Any) -> Any:
    """Brows are darker than fair hair, and never paler than half the skin."""
    return (
        clamp(hair[0] * 0.62, 0.006, skin[0] * 0.5 + 0.004),
        clamp(hair[1] * 0.60, 0.005, skin[1] * 0.5 + 0.004),
        clamp(hair[2] * 0.58, 0.004, skin[2] * 0.5 + 0.004),
    )


@register_jitable
def beard_area(side: Any, y: Any, z: Any) -> Any:
    """Where a beard grows on the template: (jaw and cheeks, mustache, chin), each 0 .. 1."""
    # The upper edge runs from the sideburns down to the corners of the mouth.
    top = 6.66 + 0.50 * step(0.32, 0.72, side)
    jaw = step(top + 0.12, top - 0.12, y) * step(5.92, 6.14, y) * step(0.42, 0.75, z)
    mustache = bell(y - 6.752, 0.050) * step(0.38, 0.20, side) * step(1.2, 1.35, z)
    corner = bell(side - 0.27, 0.055) * step(6.76, 6.70, y) * step(6.40, 6.52, y)
    chin = larger(bell(side, 0.20) * step(6.54, 6.42, y), 0.9 * corner) * step(6.0, 6.2, y) * step(0.9, 1.2, z)
    return jaw, mustache, chin


@register_jitable
def _beard(q: Any, volume: Any, x: Any, side: Any, y: Any, z: Any, free: Any) -> Any:
    """Shares of hair of some length and of stubble. free: where lips, ears and the mouth leave room."""
    jaw, mustache, chin = beard_area(side, y, z)
    top = 6.66 + 0.50 * step(0.32, 0.72, side)
    whole = larger(larger(jaw * q[P.JAW_BEARD], mustache * q[P.MUSTACHE]), chin * q[P.CHIN_BEARD])
    shadow = step(top + 0.24, top - 0.20, y) * step(5.85, 6.20, y) * step(0.35, 1.0, z)
    stubble = larger(shadow, mustache) * q[P.STUBBLE]
    hairs = clamp(noise(volume, x * 58 + q[P.GRAIN], y * 20 + 11, z * 40), -1.2, 1.2)
    # Strands thin the beard out at its edge; they never leave holes in the middle of it.
    thick = clamp((whole - 0.25) * 1.45 + whole * 0.28 * hairs, 0.0, 0.96)
    fine = clamp(stubble * (0.34 + 0.16 * hairs), 0.0, 0.6)
    return thick * free, fine * free


@register_jitable
def _no_lighter(a: Any, b: Any) -> Any:
    """The darker of two colours, channel by channel."""
    return (-larger(-a[0], -b[0]), -larger(-a[1], -b[1]), -larger(-a[2], -b[2]))


@register_jitable
def _scalp(q: Any, volume: Any, x: Any, y: Any, z: Any, hair: Any, ears: Any) -> Any:
    """Share of scalp hair and its brightness: strands run away from the parting, curls have no direction."""
    gx, gy = q[P.GRAIN], q[P.GRAIN + 1]
    curl = q[P.CURL]
    dx, dy, dz = x, y - 7.45, z - 0.6
    coarse = noise(volume, (dx - 0.2 * q[P.PARTING]) * 24 + gx, dz * (4 + 16 * curl) + gy, dy * (4 + 16 * curl))
    fine = noise(volume, dx * 62 + gy, dz * (9 + 45 * curl), dy * (9 + 45 * curl) + gx)
    ragged = hair + 0.035 * coarse + 0.030 * fine
    share = step(-0.045, 0.075, ragged) * (1 - step(0.3, 0.6, ears)) * q[P.HAIR_DENSITY]
    return share, clamp(0.86 + 0.26 * coarse + 0.20 * fine, 0.25, 1.7)


@register_jitable
def _cloth(q: Any, volume: Any, x: Any, side: Any, y: Any, z: Any, blotch: Any) -> Any:
    """Share and colour of the garment: a neckline for each kind, a collar, an open jacket."""
    kind = q[P.GARMENT]
    shirt, jumper, dress, jacket = kind == 1.0, kind == 2.0, kind == 3.0, kind == 4.0
    front = step(0.4, 0.9, z)
    line = where(jumper, 6.06, where(dress, 5.62, where(shirt, 5.98, 5.84)))
    vee = where(shirt, 0.9, where(jacket, 0.4, where(dress, 0.55, 0.22)))
    neckline = line + where(shirt, -0.24, 0.0) * front * step(0.25, 0.0, side) + vee * side * step(0.8, 0.3, side)
    neckline = clamp(neckline, 5.2, where(shirt, 6.10, 6.06))
    share = step(neckline + 0.015, neckline - 0.015, y)
    weave = 1 + 0.06 * blotch + 0.10 * where(jumper, sin(x * 70.0), 0.0)
    fold = 1 - 0.45 * bell(y - neckline + 0.02, 0.03)
    colour = scale3(colour_at(q, P.CLOTH), weave * fold)
    lapel = where(jacket, 1.0, 0.0) * step(0.02, -0.02, side - 0.16 - 0.75 * (6.0 - y)) * front
    return share, mix3(colour, scale3((0.62, 0.62, 0.60), weave * fold), lapel * mix(0.95, 0.0, step(6.1, 6.3, y)))
