"""The numbers of one picture that the shaders read, packed into one row. Each name is a place in that row."""

from __future__ import annotations

import numpy as np

from idgen.synthetic.people import Person
from idgen.synthetic.shots import BACKGROUNDS, GARMENTS, Shot

_cursor = 0


def _place(count: int = 1) -> int:
    global _cursor
    _cursor += count
    return _cursor - count


# skin
MELANIN, REDNESS, WARMTH, ELDERLY, FRECKLES = _place(), _place(), _place(), _place(), _place()
MOLES = _place(12)  # four times x, y, radius
GRAIN = _place(3)
# lips and make-up
LIP_DEPTH, LIP_TINT, LIPSTICK, LIPSTICK_HUE, EYE_SHADOW = _place(), _place(), _place(), _place(), _place()
EYE_SHADOW_COLOUR = _place(3)
LASHES = _place()
# eyes and brows
IRIS = _place(3)
IRIS_RADIUS = _place()
BROWS = _place(4)
# hair and beard
HAIR = _place(3)
HAIR_DENSITY, CURL, PARTING = _place(), _place(), _place()
JAW_BEARD, MUSTACHE, CHIN_BEARD, STUBBLE, BEARD_LENGTH = _place(), _place(), _place(), _place(), _place()
# clothes
CLOTH = _place(3)
GARMENT = _place()
# light
KEY, KEY_COLOUR, FILL = _place(3), _place(3), _place(3)
FILL_STRENGTH = _place()
AMBIENT, AMBIENT_SLOPE = _place(3), _place(3)
EXPOSURE = _place()
# camera and head
CAMERA = _place(3)
ROTATION = _place(9)
EYES = _place(6)  # centres of the two eyeballs on the template head
# glasses, in the head's frame
GLASSES = _place()  # 0 none, 1 clear, 2 dark
FRAME = _place(5)
FRAME_COLOUR = _place(3)
FRAME_PLACE = _place(4)  # half the eye distance, height of the eyes, front plane, where the arms run
# background
BACKGROUND = _place()
BACKGROUND_COLOURS = _place(9)
LAYOUT = _place(6)
COUNT = _cursor

_BEARDS = {
    # jaw, mustache, chin, stubble
    "none": (0.0, 0.0, 0.0, 0.0),
    "stubble": (0.0, 0.0, 0.0, 0.75),
    "mustache": (0.0, 1.0, 0.0, 0.25),
    "goatee": (0.0, 0.9, 1.0, 0.25),
    "beard": (1.0, 0.95, 1.0, 0.4),
}


def pack(
    person: Person, shot: Shot, camera: np.ndarray, rotation: np.ndarray, eyes: np.ndarray, frame: np.ndarray
) -> np.ndarray:
    """One row (COUNT,) float64. camera (3,), rotation (3, 3), eyes (2, 3) template centres, frame (4,) see FRAME_PLACE."""
    style, light = shot.style, shot.light
    beard = np.array(_BEARDS[style.beard]) * [style.beard_density] * 4
    row = np.zeros(COUNT)
    for place, value in (
        (MELANIN, person.melanin),
        (REDNESS, person.redness),
        (WARMTH, person.warmth),
        (ELDERLY, person.elderly),
        (FRECKLES, person.freckles),
        (MOLES, person.moles),
        (GRAIN, person.grain),
        (LIP_DEPTH, person.lip_depth),
        (LIP_TINT, person.lip_tint),
        (LIPSTICK, style.lipstick),
        (LIPSTICK_HUE, style.lipstick_hue),
        (EYE_SHADOW, style.eye_shadow),
        (EYE_SHADOW_COLOUR, style.eye_shadow_colour),
        (LASHES, style.lashes),
        (IRIS, person.iris),
        (IRIS_RADIUS, person.iris_radius),
        (BROWS, person.brows),
        (HAIR, person.hair),
        (HAIR_DENSITY, {"buzz cut": 0.72, "receding": 0.85}.get(style.hair, 1.0)),
        (CURL, style.curl),
        (PARTING, style.part),
        (JAW_BEARD, beard),
        (BEARD_LENGTH, style.beard_length),
        (CLOTH, shot.cloth),
        (GARMENT, GARMENTS.index(shot.garment)),
        (KEY, light.key),
        (KEY_COLOUR, light.key_colour),
        (FILL, light.fill),
        (FILL_STRENGTH, light.fill_strength),
        (AMBIENT, light.ambient),
        (AMBIENT_SLOPE, light.ambient_slope),
        (EXPOSURE, light.exposure),
        (CAMERA, camera),
        (ROTATION, rotation),
        (EYES, eyes),
        (GLASSES, {"none": 0, "glasses": 1, "sunglasses": 2}[style.glasses]),
        (FRAME, style.frame),
        (FRAME_COLOUR, style.frame_colour),
        (FRAME_PLACE, frame),
        (BACKGROUND, BACKGROUNDS.index(shot.background)),
        (BACKGROUND_COLOURS, shot.background_colours),
        (LAYOUT, shot.background_layout),
    ):
        flat = np.ravel(value)
        row[place : place + len(flat)] = flat
    return row
