"""Render the example people: the demo's person into idgen/assets/example, the others into examples/.

    python tools/make_examples.py

Their numbers lie beyond those of every training, validation and test set (idgen/evaluation/rendered.py lists the ranges), so no
weights of ours have seen them. Run it again whenever the renderer changes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from idgen.files import atomic_write
from idgen.synthetic import Person, Renderer, Shot, sample_person, sample_shot

ROOT = Path(__file__).resolve().parents[1]
DEMO_PERSON = 900_013
OTHER_PEOPLE = (900_007, 900_011)
REFERENCES, OTHERS = 4, 4
TURNED = 30.0  # degrees: photos that one would choose to show who somebody is


def main() -> None:
    names = [f"reference_{i + 1}" for i in range(REFERENCES)] + [f"other_{i + 1}" for i in range(OTHERS)]
    _render(DEMO_PERSON, names, ROOT / "idgen" / "assets" / "example")
    for number in OTHER_PEOPLE:
        _render(number, [str(i + 1) for i in range(REFERENCES)], ROOT / "examples" / f"person_{number}")


def good_shots(person: Person, count: int) -> list[Shot]:
    """The first shots in which the face can be seen well."""
    shots: list[Shot] = []
    number = 0
    while len(shots) < count:
        shot = sample_shot(person.seed, person, number)
        number += 1
        if abs(shot.yaw) <= TURNED and shot.style.glasses != "sunglasses" and shot.expression != "eyes closed":
            shots.append(shot)
    return shots


def _render(number: int, names: list[str], folder: Path) -> None:
    person = sample_person(0, number)
    shots = good_shots(person, len(names))
    rendered = Renderer("cpu").render([person] * len(shots), shots, size=128)
    for name, pixels in zip(names, np.asarray(rendered.images), strict=True):
        with atomic_write(folder / f"{name}.png") as temporary:
            Image.fromarray(pixels).save(temporary, optimize=True)
    print(f"{len(names)} photos of person {number} in {folder}")


if __name__ == "__main__":
    main()
