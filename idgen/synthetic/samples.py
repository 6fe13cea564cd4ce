"""From person and shot numbers to samples: what one worker does between two writes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .attributes import attributes
from .captions import caption, caption_rng
from .people import sample_person
from .settings import SynthSettings, Unit
from .shots import sample_shot

if TYPE_CHECKING:
    from . import Renderer

# Of one render. On a CPU larger ones are slower per pixel; on a GPU smaller ones leave it idle.
BATCH_PIXELS = {"cpu": 16 * 128 * 128, "cuda": 64 * 128 * 128}


@dataclass(frozen=True)
class Sample:
    """One shot, ready to be written: image (size, size, 3) and mask (size, size), uint8, and the row of metadata
    (without the file names)."""

    person: int
    shot: int
    image: np.ndarray
    mask: np.ndarray
    row: dict[str, Any]


def render_unit(renderer: Renderer, unit: Unit, settings: SynthSettings) -> Iterator[list[Sample]]:
    """The samples of a unit, batch by batch; the batches are a matter of the unit and the settings alone."""
    numbers = [(person, shot) for person in unit.people for shot in range(settings.shots)]
    pixels = BATCH_PIXELS["cpu" if settings.device == "cpu" else "cuda"]
    batch = max(1, min(pixels // 128**2, pixels // (settings.size * settings.supersampling) ** 2))
    for start in range(0, len(numbers), batch):
        yield _render(renderer, numbers[start : start + batch], settings)


def _render(renderer: Renderer, numbers: list[tuple[int, int]], settings: SynthSettings) -> list[Sample]:
    people = {number: sample_person(settings.seed, number) for number in dict.fromkeys(person for person, _ in numbers)}
    who = [people[number] for number, _ in numbers]
    shots = [sample_shot(settings.seed, person, shot) for person, (_, shot) in zip(who, numbers, strict=True)]
    rendered = renderer.render(who, shots, size=settings.size, supersampling=settings.supersampling)
    samples = []
    for i, (person, shot) in enumerate(numbers):
        described = {key: _plain(value) for key, value in attributes(who[i], shots[i]).items()}
        row = {
            "person": person,
            "shot": shot,
            "seed": settings.seed,
            "caption": caption(described, caption_rng(settings.seed, person, shot)),
            "attributes": described,
            "landmarks5": _rounded(rendered.landmarks5[i]),
            "landmarks68": _rounded(rendered.landmarks68[i]),
            "pose": _rounded(rendered.pose[i]),
            "expression": _rounded(rendered.expression[i]),
        }
        samples.append(Sample(person, shot, rendered.images[i], rendered.parsing[i], row))
    return samples


def encode_image(pixels: np.ndarray) -> bytes:
    """An RGB PNG of uint8 (height, width, 3)."""
    return _png(_pillow(pixels))


def encode_mask(classes: np.ndarray) -> bytes:
    """A palette PNG whose values are the class numbers (uint8, height, width) and whose colours are for people."""
    image = _pillow(classes)
    image.putpalette(PALETTE)
    return _png(image)


def _pillow(pixels: np.ndarray):  # type: ignore[no-untyped-def]
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels))


def _png(image) -> bytes:  # type: ignore[no-untyped-def]
    # Level 1 takes a third of the time of the default, for a file an eighth larger.
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def _rounded(values: np.ndarray) -> list[Any]:
    return np.round(np.asarray(values, dtype=np.float64), 3).tolist()


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return round(value, 3) if isinstance(value, float) else value


# One colour for each of PARSING_CLASSES, three bytes each, told apart at a glance.
PALETTE = bytes.fromhex(
    "000000 e8b08c 7a4a2a ffffff 3a7bd5 d98c6a c8324b 6e1423 f2d16b a9745b 4b2e83 21c7b7 2f6f3e".replace(" ", "")
)
