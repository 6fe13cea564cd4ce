"""The colours of eyes, teeth, tongue, lashes and hair strands, the glasses, and what stands behind the head.

Written for numbers and tensors alike, see `ops`. Colours are linear RGB, positions those of the template head.
"""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from idgen.synthetic import parameters as P
from idgen.synthetic.ops import (
    absolute,
    at_least,
    atan2,
    bell,
    clamp,
    colour_at,
    floor,
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


@register_jitable
def eye_albedo(q: Any, volume: Any, x: Any, y: Any, z: Any) -> Any:
    """Returns (colour, iris share, occlusion by the lids)."""
    right = x > 0
    cx = where(right, q[P.EYES + 3], q[P.EYES])
    cy = where(right, q[P.EYES + 4], q[P.EYES + 1])
    cz = where(right, q[P.EYES + 5], q[P.EYES + 2])
    dx, dy, dz = x - cx, y - cy, z - cz
    angle = atan2(sqrt(dx * dx + dy * dy), dz)
    turn = atan2(dy, dx)
    radius = q[P.IRIS_RADIUS]
    fibres = noise(volume, turn * 6 + q[P.GRAIN], angle * 9, turn * 0.0 + 3.5)
    veins = step(0.5, 1.2, angle)
    white = (0.66, 0.62 - 0.10 * veins, 0.59 - 0.12 * veins)
    inner = step(radius * 0.40, radius * 0.62, angle)
    ring = step(radius * 0.78, radius * 1.0, angle)
    colour = scale3(
        colour_at(q, P.IRIS), clamp(1 + 0.30 * fibres, 0.4, 1.7) * (1.55 - 0.35 * inner) * (1 - 0.72 * ring)
    )
    pupil = step(radius * 0.44, radius * 0.36, angle)
    colour = mix3(colour, (0.004, 0.004, 0.004), pupil)
    iris = step(radius * 1.07, radius * 0.95, angle)
    return mix3(white, colour, iris), iris, 1.0


@register_jitable
def teeth_albedo(x: Any, y: Any, z: Any) -> Any:
    """Teeth stand side by side along the arc of the jaw; the gums are red."""
    angle = atan2(x, z - 1.02)
    place = angle * 6.2
    gap = absolute(place - floor(place) - 0.5)
    dark = 1 - 0.45 * step(0.40, 0.5, gap)
    gum = step(6.745, 6.775, y) + step(6.495, 6.465, y)
    depth = 0.55 + 0.45 * step(1.1, 1.45, z)
    tooth = (0.72 * dark * depth, 0.68 * dark * depth, 0.585 * dark * depth)
    return mix3(tooth, (0.32 * depth, 0.10 * depth, 0.09 * depth), clamp(gum, 0.0, 1.0))


@register_jitable
def tongue_albedo(volume: Any, x: Any, y: Any, z: Any) -> Any:
    groove = 1 - 0.25 * bell(x, 0.03)
    bumps = 1 + 0.08 * noise(volume, x * 60, y * 60, z * 60)
    depth = groove * bumps * (0.35 + 0.65 * step(0.8, 1.35, z))
    return (0.46 * depth, 0.165 * depth, 0.15 * depth)


@register_jitable
def lash_albedo(q: Any) -> Any:
    """Long lashes are dark; short ones take the tone of the lid, or the eyes would look painted."""
    strength = step(0.10, 0.50, q[P.LASHES])
    skin = mix(0.16, 0.02, clamp(q[P.MELANIN] * 1.4, 0.0, 1.0))
    return mix3((skin, skin * 0.55, skin * 0.40), (0.012, 0.010, 0.009), strength)


@register_jitable
def strand_albedo(q: Any, volume: Any, along: Any, across: Any, number: Any) -> Any:
    """Fine streaks along a ribbon; each ribbon has its own tone; the roots are darker than the tips."""
    streak = noise(volume, across * 3.6 + number * 31, along * (2.0 + 7.0 * q[P.CURL]) + number * 17, number * 29)
    tone = 0.80 + 0.42 * number
    tips = 0.80 + 0.30 * along
    return scale3(colour_at(q, P.HAIR), clamp(tone * tips * (1 + 0.26 * streak), 0.2, 2.0))


@register_jitable
def glasses_over(q: Any, x: Any, y: Any, z: Any, pixel: Any) -> Any:
    """What of a pair of glasses the sight line to a surface point crosses first, seen from the camera.

    x, y, z: the point in the head's frame about the pivot; pixel: the width of a sample there (decimetres).
    Returns (share of the frame, share of a dark lens, share of a clear lens).
    """
    # The camera in the head's frame: the transpose of the head's rotation.
    c0, c1, c2 = q[P.CAMERA], q[P.CAMERA + 1], q[P.CAMERA + 2]
    r = P.ROTATION
    ox = q[r] * c0 + q[r + 3] * c1 + q[r + 6] * c2
    oy = q[r + 1] * c0 + q[r + 4] * c1 + q[r + 7] * c2
    oz = q[r + 2] * c0 + q[r + 5] * c1 + q[r + 8] * c2
    half, height, plane, arm = q[P.FRAME_PLACE], q[P.FRAME_PLACE + 1], q[P.FRAME_PLACE + 2], q[P.FRAME_PLACE + 3]
    wide, tall, roundness, bar = q[P.FRAME], q[P.FRAME + 1], q[P.FRAME + 2], q[P.FRAME + 3]
    bar = larger(bar, pixel * 0.45)
    # Where the sight line crosses the plane of the lenses.
    t = (plane - oz) / where(absolute(z - oz) < 1e-4, 1e-4, z - oz)
    hx, hy = ox + (x - ox) * t, oy + (y - oy) * t - height + 0.03
    before = where((t > 0) & (t < 1.0), 1.0, 0.0)
    side = absolute(hx)
    radius = roundness * tall
    ex, ey = absolute(side - half) - (wide - radius), absolute(hy) - (tall - radius)
    px, py = at_least(ex, 0.0), at_least(ey, 0.0)
    distance = sqrt(px * px + py * py + 1e-12) + clamp(larger(ex, ey), -9.0, 0.0) - radius
    rim = step(bar + pixel, bar - pixel * 0.3, absolute(distance))
    bridge = step(bar + pixel, bar - pixel * 0.3, absolute(hy - 0.045)) * step(
        half - wide + pixel, half - wide - pixel, side
    )
    reach = half + wide
    hinge = step(bar + pixel, bar - pixel * 0.3, absolute(hy - 0.05))
    hinge = hinge * step(reach - pixel, reach + pixel, side) * step(arm + pixel, arm - pixel, side)
    frame = larger(rim, larger(bridge, hinge)) * before
    lens = step(pixel, -pixel, distance) * before
    # The arms run back to the ears in planes beside the temples.
    for sign in (-1.0, 1.0):
        ta = (sign * arm - ox) / where(absolute(x - ox) < 1e-4, 1e-4, x - ox)
        ay, az = oy + (y - oy) * ta - height - 0.02, oz + (z - oz) * ta
        there = where((ta > 0) & (ta < 1.004) & (az < plane + 0.01) & (az > plane - 1.05), 1.0, 0.0)
        frame = larger(frame, step(bar * 0.8 + pixel, bar * 0.8 - pixel * 0.3, absolute(ay)) * there)
    worn, dark = where(q[P.GLASSES] > 0, 1.0, 0.0), where(q[P.GLASSES] == 2.0, 1.0, 0.0)
    return frame * worn, lens * dark * (1 - frame), lens * (worn - dark) * (1 - frame)


@register_jitable
def background(q: Any, volume: Any, u: Any, v: Any) -> Any:
    """What is behind the head at (u, v) in 0 .. 1 from the picture's left and top: always out of focus."""
    kind = q[P.BACKGROUND]
    a, b, c = (
        colour_at(q, P.BACKGROUND_COLOURS),
        colour_at(q, P.BACKGROUND_COLOURS + 3),
        colour_at(q, P.BACKGROUND_COLOURS + 6),
    )
    l0, l1, l2, l3 = q[P.LAYOUT], q[P.LAYOUT + 1], q[P.LAYOUT + 2], q[P.LAYOUT + 3]
    soft = noise(volume, u * 3.0 + l0 * 31, v * 3.0 + l1 * 31, u * 0.0 + l2 * 31)
    grain = noise(volume, u * 9.0 + l1 * 31, v * 9.0 + l2 * 31, u * 0.0 + l3 * 31)
    direction = 6.2832 * l0
    slope = clamp(0.5 + (u - 0.5) * sin(direction) + (v - 0.5) * sin(direction + 1.5708), 0.0, 1.0)
    glow = bell(u - 0.3 - 0.4 * l1, 0.45) * bell(v - 0.25 - 0.3 * l2, 0.5)
    plain = scale3(a, 1 + 0.03 * soft)
    gradient = mix3(a, b, slope)
    studio = scale3(mix3(scale3(a, 0.45), a, glow), 1 + 0.06 * soft + 0.03 * grain)
    # A wall, a darker lower part, a door frame or shelf.
    wall = scale3(a, 0.85 + 0.3 * slope)
    post = step(0.03, 0.015, absolute(u - 0.08 - 0.3 * l2)) + step(0.03, 0.015, absolute(u - 0.7 - 0.25 * l3))
    low = step(0.62 + 0.2 * l1, 0.66 + 0.2 * l1, v)
    room = mix3(mix3(wall, scale3(b, 0.8), low), c, clamp(post * (1 - low), 0.0, 1.0))
    pane = step(0.0, 0.03, u - 0.55 * l1) * step(0.03, 0.0, u - 0.55 * l1 - 0.42) * step(0.75, 0.70, v)
    cross = step(0.008, 0.018, absolute(u - 0.55 * l1 - 0.21)) * step(0.008, 0.018, absolute(v - 0.3))
    window = mix3(scale3(a, 0.7), (0.72 + 0.06 * soft, 0.76 + 0.06 * soft, 0.80 + 0.06 * soft), pane * cross)
    horizon = 0.42 + 0.3 * l1 + 0.05 * soft
    leaves = clamp(1 + 0.35 * grain + 0.2 * soft, 0.3, 1.9)
    outdoors = mix3(
        scale3(a, 0.85 + 0.25 * (1 - v)), scale3(b, leaves), step(horizon - 0.06, horizon + 0.06, v + 0.05 * grain)
    )
    outdoors = mix3(outdoors, c, step(0.78 + 0.1 * l2, 0.86 + 0.1 * l2, v))
    block = floor(u * (4 + 3 * l1) + l2 * 7)
    height = 0.25 + 0.4 * absolute(sin(block * 12.9898 + l3 * 40))
    lamp = step(0.9, 1.5, grain)
    tower = mix3(scale3(b, 0.55 + 0.4 * absolute(sin(block * 4.1))), (0.85, 0.72, 0.42), 0.6 * lamp)
    city = mix3(scale3(a, 0.8), tower, step(height - 0.015, height + 0.015, v))
    row = floor(v * 11 + l1)
    bu, bv = u * 5.5 + 0.5 * (row - 2 * floor(row * 0.5)) + l2, v * 11 + l1
    mortar = step(0.44, 0.48, absolute(bu - floor(bu) - 0.5)) + step(0.38, 0.45, absolute(bv - floor(bv) - 0.5))
    shade = 0.85 + 0.3 * absolute(sin(floor(bu) * 7.3 + row * 3.7)) + 0.08 * grain
    bricks = mix3(scale3(a, shade), scale3(b, 0.9), clamp(mortar, 0.0, 1.0) * 0.7)
    pick = plain
    pick = _choose(kind == 1.0, gradient, pick)
    pick = _choose(kind == 2.0, studio, pick)
    pick = _choose(kind == 3.0, room, pick)
    pick = _choose(kind == 4.0, window, pick)
    pick = _choose(kind == 5.0, outdoors, pick)
    pick = _choose(kind == 6.0, city, pick)
    return _choose(kind == 7.0, bricks, pick)


@register_jitable
def _choose(condition: Any, a: Any, b: Any) -> Any:
    return (where(condition, a[0], b[0]), where(condition, a[1], b[1]), where(condition, a[2], b[2]))
