"""What one could say about a shot in words: ground truth for captions and for attribute probes."""

from __future__ import annotations

from idgen.synthetic.people import Person
from idgen.synthetic.shots import Shot

Attributes = dict[str, str | float | bool]


def attributes(person: Person, shot: Shot) -> Attributes:
    """Names and numbers of everything visible. Left and right are the picture's; angles are degrees as in Shot."""
    style = shot.style
    return {
        "gender": "woman" if person.woman else "man",
        "age": "young" if person.age < 0.76 else "middle-aged" if person.age < 0.88 else "elderly",
        "skin": _word(
            person.melanin, ((0.13, "very light"), (0.28, "light"), (0.45, "medium"), (0.65, "brown")), "dark"
        ),
        "build": _word(person.weight, ((0.25, "thin"), (0.72, "average")), "heavy"),
        "freckles": person.freckles > 0,
        "hair_style": style.hair,
        "hair_colour": person.hair_colour,
        "eye_colour": person.eye_colour,
        "beard": style.beard,
        "glasses": style.glasses,
        "lipstick": style.lipstick > 0,
        "eye_shadow": style.eye_shadow > 0,
        "expression": shot.expression,
        "head": _head(shot),
        "gaze": _gaze(shot),
        "light": _light(shot),
        "background": shot.background,
        "clothing": shot.garment,
        "clothing_colour": shot.cloth_colour,
        "yaw": shot.yaw,
        "pitch": shot.pitch,
        "roll": shot.roll,
    }


def _word(value: float, steps: tuple[tuple[float, str], ...], last: str) -> str:
    return next((word for limit, word in steps if value < limit), last)


def _head(shot: Shot) -> str:
    if max(abs(shot.yaw) / 10, abs(shot.pitch) / 8) < 1:
        return "straight"
    if abs(shot.yaw) / 10 >= abs(shot.pitch) / 8:
        return "right" if shot.yaw > 0 else "left"
    return "up" if shot.pitch > 0 else "down"


def _gaze(shot: Shot) -> str:
    right, up = shot.gaze
    if max(abs(right) / 0.35, abs(up) / 0.25) < 1:
        return "straight"
    if abs(right) / 0.35 >= abs(up) / 0.25:
        return "right" if right > 0 else "left"
    return "up" if up > 0 else "down"


def _light(shot: Shot) -> str:
    light = shot.light
    strength = float(light.key_colour[1]) * light.exposure
    warmth = float(light.key_colour[0] / light.key_colour[2])
    if abs(light.key[0]) > 0.72 and strength > 1.0:
        return "side light"
    if warmth > 1.28:
        return "warm light"
    if warmth < 0.85:
        return "cool light"
    return "bright light" if strength > 1.35 else "dim light" if strength < 0.9 else "soft light"
