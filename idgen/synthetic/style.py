"""What a person can change from one day to the next: hairstyle, beard, make-up and glasses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HAIR_STYLES = (
    "bald",
    "buzz cut",
    "short",
    "short with a fringe",
    "side part",
    "receding",
    "curly",
    "afro",
    "bob",
    "long",
    "long with a fringe",
    "ponytail",
    "bun",
)
BEARDS = ("none", "stubble", "mustache", "goatee", "beard")
GLASSES = ("none", "glasses", "sunglasses")
_MAN = (1.2, 1.5, 3.2, 1.4, 1.8, 1.2, 0.9, 0.25, 0.1, 0.35, 0.1, 0.1, 0.15)
_WOMAN = (0.04, 0.12, 0.6, 0.5, 0.4, 0.02, 1.0, 0.35, 1.6, 2.6, 1.6, 1.2, 1.1)


@dataclass(frozen=True, eq=False)
class Style:
    """Amounts are in [0, 1] unless said; colours are linear RGB."""

    hair: str  # one of HAIR_STYLES
    length: float
    volume: float
    curl: float
    part: float  # -1 (picture's left) .. 1: where the hair parts
    beard: str  # one of BEARDS
    beard_density: float
    beard_length: float
    lipstick: float  # 0: none
    lipstick_hue: float  # 0 brownish red .. 1 pink
    eye_shadow: float  # 0: none
    eye_shadow_colour: np.ndarray  # (3,)
    lashes: float  # how long
    glasses: str  # one of GLASSES
    frame: np.ndarray  # (5,) lens half width, half height, roundness, bar thickness (decimetres), metal (0 or 1)
    frame_colour: np.ndarray  # (3,)
    strands: int  # which way the strands fall: the seed of their random numbers


def sample_style(random: np.random.Generator, woman: bool, melanin: float, elderly: float) -> Style:
    """One style that suits the person: draws the same count of random numbers whatever comes out."""
    odds = np.array(_WOMAN if woman else _MAN)
    odds[HAIR_STYLES.index("afro")] *= 0.15 + 5 * melanin**1.5
    odds[HAIR_STYLES.index("curly")] *= 0.5 + 1.5 * melanin
    odds[HAIR_STYLES.index("receding")] *= 0.3 + 2.5 * elderly
    odds[HAIR_STYLES.index("bald")] *= 0.7 + 1.5 * elderly
    hair = HAIR_STYLES[_draw(random, odds)]
    curl = float(random.random() ** (2 - 1.2 * melanin))
    beard = BEARDS[_draw(random, np.array([2.2, 1.8, 0.8, 0.7, 1.6]))]
    lipstick, shadow = random.uniform(0.35, 0.95, 2)
    wears = random.random(2) < (0.45, 0.35)
    glasses = GLASSES[_draw(random, np.array([0.80, 0.15 + 0.1 * elderly, 0.05]))]
    shade = random.uniform(0.02, 0.35) * (0.5 + random.random(3))
    return Style(
        hair=hair,
        length=float(random.random()),
        volume=float(random.random()),
        curl=max(curl, 0.75) if hair == "afro" else max(curl, 0.55) if hair == "curly" else 0.7 * curl,
        part=float(random.uniform(-1, 1)),
        beard="none" if woman else beard,
        beard_density=float(random.uniform(0.55, 0.95)),
        beard_length=float(random.random()),
        lipstick=float(lipstick) if woman and wears[0] else 0.0,
        lipstick_hue=float(random.random()),
        eye_shadow=float(shadow) if woman and wears[1] else 0.0,
        eye_shadow_colour=np.clip(shade, 0.01, 0.5),
        lashes=float(random.uniform(0.30, 0.58) if woman else random.uniform(0.12, 0.28)),
        glasses=glasses,
        frame=np.array(
            [
                random.uniform(0.20, 0.26) + 0.02 * (glasses == "sunglasses"),
                random.uniform(0.125, 0.20) + 0.02 * (glasses == "sunglasses"),
                random.uniform(0.3, 1.0),
                random.uniform(0.008, 0.022),
                float(random.random() < 0.4),
            ]
        ),
        frame_colour=_frame_colour(random),
        strands=int(random.integers(1 << 31)),
    )


def _frame_colour(random: np.random.Generator) -> np.ndarray:
    palette = np.array(
        [[0.01, 0.01, 0.012], [0.05, 0.02, 0.01], [0.17, 0.165, 0.16], [0.22, 0.13, 0.05], [0.10, 0.01, 0.02]]
    )
    return palette[int(random.integers(len(palette)))]


def _draw(random: np.random.Generator, odds: np.ndarray) -> int:
    return int(np.searchsorted(np.cumsum(odds) / odds.sum(), random.random(), side="right"))
