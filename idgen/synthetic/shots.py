"""One photo of a person: expression, gaze, head pose, camera, light, clothes, background and that day's style."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from idgen.synthetic.asset import load_head
from idgen.synthetic.colour import CLOTHES, to_linear
from idgen.synthetic.people import Person, generator, pick, sample_person
from idgen.synthetic.style import Style, sample_style

RESTYLED = 0.35  # the share of shots in which the person has another hairstyle, beard, make-up and glasses than usual

# Facial actions (ARKit names; those without a side act on both) of each named expression.
EXPRESSIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "slight smile": {"mouthSmile": 0.45, "cheekSquint": 0.15},
    "smiling": {"mouthSmile": 0.85, "cheekSquint": 0.4, "eyeSquint": 0.15},
    "smiling with teeth": {
        "mouthSmile": 0.8,
        "cheekSquint": 0.35,
        "mouthUpperUp": 0.45,
        "mouthLowerDown": 0.3,
        "jawOpen": 0.06,
    },
    "laughing": {"mouthSmile": 0.9, "jawOpen": 0.38, "cheekSquint": 0.5, "eyeSquint": 0.35, "mouthUpperUp": 0.4},
    "surprised": {"browInnerUp": 0.9, "browOuterUp": 0.8, "eyeWide": 0.7, "jawOpen": 0.45},
    "angry": {"browDown": 0.9, "eyeSquint": 0.4, "noseSneer": 0.4, "mouthPress": 0.4, "mouthFrown": 0.3},
    "sad": {"browInnerUp": 0.8, "mouthFrown": 0.7, "mouthShrugLower": 0.3, "eyeLookDown": 0.25},
    "disgusted": {"noseSneer": 0.9, "mouthUpperUp": 0.5, "browDown": 0.5, "eyeSquint": 0.4, "mouthFrown": 0.3},
    "afraid": {"browInnerUp": 0.9, "eyeWide": 0.6, "mouthStretch": 0.6, "jawOpen": 0.15, "browDown": 0.3},
    "eyes closed": {"eyeBlink": 1.0},
    "open mouth": {"jawOpen": 0.55},
    "pouting": {"mouthPucker": 0.8},
    "winking": {"eyeBlinkLeft": 0.95, "cheekSquintLeft": 0.5, "mouthSmileLeft": 0.5},
}
_EXPRESSION_ODDS = (3.2, 2.2, 1.8, 1.6, 1.2, 0.8, 0.8, 0.7, 0.5, 0.4, 0.35, 0.5, 0.4, 0.3)
MIXED = "mix"
BACKGROUNDS = ("plain", "gradient", "studio", "room", "window", "outdoors", "city", "bricks")
_BACKGROUND_ODDS = (1.2, 1.8, 1.6, 1.4, 1.0, 1.6, 0.9, 0.7)
GARMENTS = ("t-shirt", "shirt", "jumper", "dress", "jacket")


@dataclass(frozen=True, eq=False)
class Light:
    """A key light, a fill light and the surroundings; directions are unit vectors towards the light."""

    key: np.ndarray  # (3,)
    key_colour: np.ndarray  # (3,) linear, strength included
    fill: np.ndarray  # (3,)
    fill_strength: float
    ambient: np.ndarray  # (3,) linear
    ambient_slope: np.ndarray  # (3,) how the surroundings brighten along each axis
    exposure: float


@dataclass(frozen=True, eq=False)
class Shot:
    """Angles in degrees: yaw > 0 turns the face to the picture's right, pitch > 0 up, roll > 0 counter-clockwise."""

    seed: int
    person: int
    number: int
    expression: str  # a key of EXPRESSIONS or MIXED
    actions: np.ndarray  # (52,) float32 in [0, 1], in the order of HeadAsset.action_names
    gaze: np.ndarray  # (2,) to the picture's right and up, about -1 .. 1
    yaw: float
    pitch: float
    roll: float
    distance: float  # camera to face, decimetres: short lenses come near
    framing: np.ndarray  # (4,) shift right and down (shares of the picture), zoom, rotation (radians)
    light: Light
    background: str  # one of BACKGROUNDS
    background_colours: np.ndarray  # (3, 3) linear
    background_layout: np.ndarray  # (6,) in [0, 1]
    garment: str  # one of GARMENTS
    cloth_colour: str  # one of CLOTHES
    cloth: np.ndarray  # (3,) linear
    style: Style  # what the person wears that day


def sample_shot(seed: int, person: Person | int, shot: int, *, frontal: bool = False) -> Shot:
    """The shot with this number of this person: always the same one.

    `frontal`: a calm portrait (near-frontal, neutral, in the usual style). Raises IdgenError for numbers below 0.
    """
    who = sample_person(seed, person) if isinstance(person, int) else person
    random = generator("shot", seed, who.number, shot, int(frontal))
    calm = 0.1 if frontal else 1.0
    # Styles first, and always the same count of numbers: what follows does not depend on the person's gender.
    restyled = random.random() < RESTYLED and not frontal
    other = sample_style(random, who.woman, who.melanin, who.elderly)
    expression, actions = _expression(random, calm)
    gaze = random.normal(0, [0.35, 0.2]) * calm
    _add_gaze(actions, gaze)
    yaw, pitch, roll = random.normal(0, [18.0, 8.0, 6.0])
    cloth_colour = pick(random, CLOTHES, [1.4, 1.2, 1.2, 0.8, 0.5, 0.5, 0.9, 1.3, 0.6, 0.5, 0.7])
    cloth = np.array(CLOTHES[cloth_colour]) * (1 + 0.12 * random.normal()) + 0.03 * random.normal(size=3)
    background = pick(random, BACKGROUNDS, _BACKGROUND_ODDS)
    return Shot(
        seed=seed,
        person=who.number,
        number=shot,
        expression=expression,
        actions=np.clip(actions, 0, 1).astype(np.float32),
        gaze=gaze,
        yaw=float(np.clip(calm * yaw, -45, 45)),
        pitch=float(np.clip(calm * pitch, -22, 22)),
        roll=float(np.clip(calm * roll, -18, 18)),
        distance=float(8 + 22 * random.random() ** 1.3),
        framing=np.array(
            [
                *random.normal(0, [0.014, 0.014]) * calm,
                1 + calm * np.clip(random.normal(0, 0.04), -0.1, 0.1),
                0.05 * calm * random.normal(),
            ]
        ),
        light=_light(random),
        background=background,
        background_colours=_background_colours(random, background),
        background_layout=random.random(6),
        garment=pick(random, GARMENTS, [1.5, 1.2, 1.0, 0.9 if who.woman else 0.0, 0.9]),
        cloth_colour=cloth_colour,
        cloth=to_linear(np.clip(cloth, 0.04, 0.9)),
        style=other if restyled else who.style,
    )


def _expression(random: np.random.Generator, calm: float) -> tuple[str, np.ndarray]:
    """A named expression at some strength, or (one shot in six) a continuous mix of two and of single actions."""
    names = load_head().action_names
    first, second = (pick(random, tuple(EXPRESSIONS), _EXPRESSION_ODDS) for _ in range(2))
    strength, share = random.uniform(0.75, 1.1), random.uniform(0.3, 0.7)
    mixed = random.random() < 1 / 6
    noise = np.clip(random.normal(0, 0.05, len(names)), 0, 1) * [_twitches(name) for name in names]
    extra = (
        random.uniform(0, 0.8, len(names)) * (random.random(len(names)) < 0.06) * [_twitches(name) for name in names]
    )
    blink = random.uniform(0, 0.12)
    if calm < 1:
        return "neutral", calm * noise
    if mixed:
        actions = share * preset(first) + (1 - share) * preset(second) + extra
    else:
        actions = strength * preset(first)
    actions = actions + noise
    lids = [names.index("eyeBlinkLeft"), names.index("eyeBlinkRight")]
    actions[lids] = np.minimum(actions[lids] + blink, 1)
    return (MIXED if mixed else first), actions


def preset(name: str) -> np.ndarray:
    """The 52 action weights of a named expression."""
    weights = EXPRESSIONS[name]
    names = load_head().action_names
    return np.array([weights.get(n, weights.get(n.removesuffix("Left").removesuffix("Right"), 0.0)) for n in names])


def _twitches(action: str) -> bool:
    return not action.startswith(("tongue", "eyeLook", "mouthClose", "eyeBlink"))


def _add_gaze(actions: np.ndarray, gaze: np.ndarray) -> None:
    """The picture's right is the person's left: looking there turns the left eye out and the right eye in."""
    names = load_head().action_names
    right, up = float(gaze[0]), float(gaze[1])
    for name, amount in (
        ("eyeLookOutLeft", right),
        ("eyeLookInRight", right),
        ("eyeLookInLeft", -right),
        ("eyeLookOutRight", -right),
        ("eyeLookUpLeft", up),
        ("eyeLookUpRight", up),
        ("eyeLookDownLeft", -up),
        ("eyeLookDownRight", -up),
    ):
        actions[names.index(name)] += max(amount, 0)


def _light(random: np.random.Generator) -> Light:
    azimuth, elevation = random.uniform(-1.2, 1.2), random.uniform(0.1, 0.9)
    key = np.array(
        [math.sin(azimuth) * math.cos(elevation), math.sin(elevation), math.cos(azimuth) * math.cos(elevation)]
    )
    fill = random.normal(0, 1, 3) + np.array([0, 0.3, 0.5])
    warmth = np.clip(random.normal(0, 0.10), -0.2, 0.25)
    ambient = random.uniform(0.30, 0.60)
    return Light(
        key=key,
        key_colour=random.uniform(0.75, 1.55) * np.array([1 + warmth, 1.0, 1 - 1.2 * warmth]),
        fill=fill / np.linalg.norm(fill),
        fill_strength=float(random.uniform(0, 0.4)),
        ambient=ambient * (1 + 0.05 * random.normal(size=3)),
        ambient_slope=random.normal(0, 0.10, 3),
        exposure=float(random.uniform(0.85, 1.15)),
    )


def _background_colours(random: np.random.Generator, background: str) -> np.ndarray:
    """Three colours: muted, except one time in four; foliage and sky for the outdoors."""
    level = random.uniform(0.12, 0.85)
    vivid = 2.2 if random.random() < 0.25 else 1.0
    tint, wander = (
        random.normal(0, 0.05 * vivid, 3),
        random.normal(0, 0.10, (3, 1)) + random.normal(0, 0.04 * vivid, (3, 3)),
    )
    colours = level + tint + wander
    if background == "outdoors":
        sky = np.array([0.55, 0.68, 0.85]) + 0.08 * random.normal(size=3)
        leaves = np.array([0.24, 0.36, 0.16]) * random.uniform(0.6, 1.5) + 0.03 * random.normal(size=3)
        ground = np.array([0.45, 0.42, 0.30]) * random.uniform(0.6, 1.4)
        colours = np.stack([sky, leaves, ground])
    elif background == "bricks":
        colours[0] = np.array([0.52, 0.30, 0.23]) * random.uniform(0.6, 1.4) + 0.04 * random.normal(size=3)
    return to_linear(np.clip(colours, 0.03, 0.95))
