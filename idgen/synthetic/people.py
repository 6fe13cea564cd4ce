"""People who do not exist: everything about a face that stays the same from shot to shot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from idgen.errors import IdgenError
from idgen.synthetic.asset import load_head
from idgen.synthetic.colour import EYES, HAIRS, to_linear
from idgen.synthetic.style import Style, sample_style

ADULT = 2 / 3  # MakeHuman's age scale: child 1/3, young adult 2/3, old 1. Nobody younger than an adult is ever made.
_STREAMS = {"person": 1, "shot": 2, "twin": 3}


@dataclass(frozen=True, eq=False)
class Person:
    """One identity. Colours are linear RGB in [0, 1]; lengths are in decimetres of the template head.

    Raises IdgenError for an age below ADULT: the synthetic people are adults, always.
    """

    seed: int
    number: int
    gender: float  # 0 man .. 1 woman, continuous
    age: float  # ADULT young .. 1 old
    muscle: float  # 0 .. 1
    weight: float  # 0 thin .. 1 heavy
    ancestry: np.ndarray  # (3,) weights of the african, asian and caucasian shapes, sum 1
    local: np.ndarray  # (number of local targets,) weights of the local shape targets
    melanin: float  # 0 palest .. 1 darkest skin
    redness: float  # 0 .. 1
    warmth: float  # 0 pinkish .. 1 golden
    freckles: float  # 0 none .. 1 many
    moles: np.ndarray  # (4, 3) template x, y and radius (0: none)
    lip_depth: float  # 0 .. 1, how dark the natural lip colour is
    lip_tint: float  # 0 brownish .. 1 pink
    eye_colour: str  # one of EYES
    iris: np.ndarray  # (3,)
    iris_radius: float  # angle on the eyeball, radians
    brows: np.ndarray  # (4,) half thickness, arch height, height offset, density
    hair_colour: str  # one of HAIRS
    hair: np.ndarray  # (3,)
    hairline: np.ndarray  # (3,) elevation at the front, at the temples, depth of the widow's peak (radians)
    grain: np.ndarray  # (3,) where in the noise volume this person's skin and strands lie
    style: Style  # the usual hairstyle, beard, make-up and glasses

    def __post_init__(self) -> None:
        if not ADULT <= self.age <= 1:
            raise IdgenError(f"a synthetic person's age must be between {ADULT:.4f} (adult) and 1, not {self.age}")

    @property
    def woman(self) -> bool:
        return self.gender > 0.5

    @property
    def elderly(self) -> float:
        """0 for the young .. 1 for the oldest."""
        return float(np.clip((self.age - 0.76) / 0.24, 0, 1))


def sample_person(seed: int, person: int) -> Person:
    """The person with this number in the world of this seed: always the same one. Raises IdgenError below 0."""
    random = generator("person", seed, person)
    gender = random.uniform(0, 0.2) if random.random() < 0.5 else random.uniform(0.8, 1)
    woman = gender > 0.5
    age = float(ADULT + (1 - ADULT) * random.beta(1.0, 1.5))
    elderly = float(np.clip((age - 0.76) / 0.24, 0, 1))
    ancestry = random.dirichlet([0.6, 0.6, 0.6])
    melanin = float(np.clip(ancestry @ [0.72, 0.26, 0.10] + random.normal(0, 0.09), 0.02, 0.97))
    hair_colour = pick(random, HAIRS, _hair_odds(melanin, elderly))
    hair = np.array(HAIRS[hair_colour]) * (1 + 0.14 * random.normal()) + 0.015 * random.normal(size=3)
    eye_colour = pick(random, EYES, _eye_odds(melanin))
    iris = to_linear(np.clip(np.array(EYES[eye_colour]) * (1 + 0.1 * random.normal()), 0.05, 0.8))
    moles = np.stack([random.uniform(-0.55, 0.55, 4), random.uniform(6.35, 7.8, 4), random.uniform(0.010, 0.022, 4)], 1)
    moles[:, 2] *= random.random(4) < 0.22
    shape = sample_shape(random)
    return Person(
        seed=seed,
        number=person,
        gender=float(gender),
        age=age,
        muscle=float(np.clip(random.normal(0.5, 0.18), 0, 1)),
        weight=float(np.clip(random.normal(0.48, 0.2), 0, 1)),
        ancestry=ancestry,
        local=shape,
        melanin=melanin,
        redness=float(np.clip(random.normal(0.45, 0.22), 0, 1)),
        warmth=float(np.clip(random.normal(0.5, 0.22), 0, 1)),
        freckles=float(random.uniform(0.3, 1)) if random.random() < 0.2 and melanin < 0.4 else 0.0,
        moles=moles,
        lip_depth=float(np.clip(random.normal(0.45, 0.2), 0, 1)),
        lip_tint=float(random.random()),
        eye_colour=eye_colour,
        iris=iris,
        iris_radius=float(np.clip(random.normal(0.43, 0.02), 0.38, 0.48)),
        brows=np.array(
            [
                np.clip(random.normal(0.037 - 0.010 * woman, 0.009), 0.016, 0.06),
                np.clip(random.normal(0.035 + 0.015 * woman, 0.02), -0.01, 0.09),
                random.normal(0, 0.010),
                np.clip(random.normal(0.85, 0.14), 0.45, 1),
            ]
        ),
        hair_colour=hair_colour,
        hair=to_linear(np.clip(hair, 0.025, 0.9)),
        hairline=np.array([random.normal(0.60, 0.06), random.normal(0.47, 0.07), abs(random.normal(0, 0.05))]),
        grain=random.uniform(0, 48, 3),
        style=sample_style(random, bool(woman), melanin, elderly),
    )


def same_appearance(person: Person, seed: int, variant: int) -> Person:
    """Somebody of another head shape with this person's skin, hair, brows, eyes, age and gender: the hard split."""
    random = generator("twin", seed, person.number, variant)
    return replace(
        person,
        ancestry=random.dirichlet([0.6, 0.6, 0.6]),
        local=sample_shape(random),
        muscle=float(np.clip(random.normal(0.5, 0.18), 0, 1)),
        weight=float(np.clip(random.normal(0.48, 0.2), 0, 1)),
    )


def sample_shape(random: np.random.Generator) -> np.ndarray:
    """Weights (number of local targets,) of the local shape targets; pairs of a side differ a little left to right."""
    head = load_head()
    weights = np.zeros(len(head.local_names), np.float32)
    targets = {name: (positive, negative) for name, positive, negative in head.sides}
    for name, positive, negative in head.sides:
        if name.startswith("r-"):
            continue
        part = name.removeprefix("l-")
        value = float(np.clip(random.normal(0, _spread(part)), -0.75, 0.75))
        if negative is None:
            # head-oval and its like are whole other heads: most people have none of them.
            weights[positive] = abs(value) if part.startswith("asym") else max(value - 0.22, 0)
            continue
        _put(weights, positive, negative, value)
        if name.startswith("l-"):
            other = targets["r-" + part]
            _put(weights, other[0], other[1] or 0, float(np.clip(value + random.normal(0, 0.06), -0.8, 0.8)))
    return weights


def generator(stream: str, seed: int, *path: int) -> np.random.Generator:
    """A random stream of its own for each (seed, path): results do not depend on what else is drawn."""
    for value in (seed, *path):
        if value < 0:
            raise IdgenError(f"seeds, person and shot numbers start at 0: got {value}")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([_STREAMS[stream], seed, *path])))


def pick(random: np.random.Generator, names: Iterable[str], odds: np.ndarray | Sequence[float]) -> str:
    """One of the names; odds are their relative frequencies."""
    shares = np.asarray(odds, np.float64)
    return list(names)[int(np.searchsorted(np.cumsum(shares) / shares.sum(), random.random(), side="right"))]


def _spread(part: str) -> float:
    """The standard deviation of a local shape: as wide as faces still look human together."""
    if part.startswith("asym"):
        return 0.10
    if part.startswith(("mouth-trans-out", "nose-trans-out")):
        return 0.05
    if part.startswith(("neck", "head-angle", "head-age", "head-scale-horiz", "head-scale-vert")):
        return 0.18
    if part.startswith(("mouth-scale-horiz", "nose-compression", "eye-push", "eye-trans-up", "nose-septum")):
        return 0.22
    if part.startswith(("mouth", "nose-nostrils", "nose-trans-up", "cheek-inner", "ear")):
        return 0.24
    return 0.30


def _put(weights: np.ndarray, positive: int, negative: int, value: float) -> None:
    weights[positive], weights[negative] = max(value, 0), max(-value, 0)


def _hair_odds(melanin: float, elderly: float) -> np.ndarray:
    logits = [0.6 + 3.5 * melanin, 1.2, 1.6 - 3 * melanin, 0.9 - 5 * melanin, 1.7 - 6 * melanin, 1.2 - 7 * melanin]
    return np.exp([*logits, -3 + 4.5 * elderly, -4 + 5.0 * elderly])


def _eye_odds(melanin: float) -> np.ndarray:
    m = melanin
    return np.exp([1.5 + 3 * m, 1.3, 0.6 - 3 * m, 0.5 - 5 * m, 1.0 - 7 * m, 0.3 - 6 * m])
