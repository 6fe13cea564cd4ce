"""Faces for tests that need one to look at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from idgen.synthetic import Renderer, sample_person, sample_shot

# The fixture of that name: runs a command that must be refused, and returns the line that says why.
Refused = Callable[..., str]


def portraits(count: int) -> list[Image.Image]:
    """Frontal faces of 256 px of different people, none of whom a training saw."""
    people = [sample_person(0, 900_001 + index) for index in range(count)]
    shots = [sample_shot(0, person, 0, frontal=True) for person in people]
    return [Image.fromarray(np.asarray(image)) for image in Renderer("cpu").render(people, shots, size=256).images]
