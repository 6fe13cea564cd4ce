"""The people whom the mini family is measured on: rendered when they are first asked for, with their ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from idgen.console import say
from idgen.errors import IdgenError
from idgen.evaluation.cache import RowCache
from idgen.evaluation.material import Material, Photo
from idgen.evaluation.prompts import Prompt, choose_prompts
from idgen.evaluation.protocol import Protocol, RenderedPeople
from idgen.evaluation.readers import FaceReader, FaceTable
from idgen.evaluation.rendered import take_photos, training_photos

LOOKALIKE_SHOTS = 4


def names(protocol: Protocol) -> list[str]:
    """Of the people, who need not be rendered for that."""
    rendered = _rendered(protocol)
    return [f"person_{number}" for number in range(rendered.first, rendered.first + rendered.count)]


def render_people(
    protocol: Protocol, *, cache: Path | None, workers: int | None = None, training_data: Path | None = None
) -> Material:
    """References, other photos, lookalikes and training people of a protocol.

    Args:
        cache: keeps the renders between runs (benchmarks/ share them: runs/photos).
        training_data: what `idgen synth` wrote for the training, read instead of rendering its people again.
    """
    rendered = _rendered(protocol)
    people = range(rendered.first, rendered.first + rendered.count)
    kept: dict[str, Any] = {"cache": cache, "workers": workers}
    say(f"{rendered.count} rendered people from number {rendered.first} on")
    own = take_photos(people, range(protocol.references + rendered.others), size=rendered.size, **kept).images
    called = names(protocol)
    material = Material(
        called,
        _photos(own[:, : protocol.references], called, 0),
        _photos(own[:, protocol.references :], called, protocol.references),
    )
    shots = range(protocol.references, protocol.references + min(LOOKALIKE_SHOTS, rendered.others))
    for rival in range(rendered.lookalikes):
        faces = take_photos(people, shots, variant=rival, size=rendered.size, **kept).images
        material.lookalikes += _photos(faces, called, protocol.references, rival)
    if rendered.training:
        crowd = training_photos(rendered.training, training_data, **kept)
        material.training += _photos(crowd, [f"training_{number}" for number in range(len(crowd))], 0)
    return material


def leave_out_faceless(material: Material, readers: list[FaceReader], cache: RowCache) -> None:
    """Take references out in which a recogniser's detector finds no face: a render may hide one.

    Raises:
        IdgenError: nobody of a person's references shows a face.
    """
    bad: set[int] = set()
    for reader in readers:
        rows = cache.rows(reader, material.references, what=f"{reader.encoder.recogniser}: references")
        bad |= set((~FaceTable.of_rows(rows).found).nonzero()[:, 0].tolist())
    if not bad:
        return
    say(f"no face found in {len(bad)} of {len(material.references)} rendered references: left out")
    material.references = [photo for index, photo in enumerate(material.references) if index not in bad]
    missing = sorted(set(range(len(material.people))) - {photo.person for photo in material.references})
    if missing:
        raise IdgenError(
            f"no face is found in any reference of {material.people[missing[0]]}: the detector needs more training"
        )


def render_captions(
    protocol: Protocol, *, cache: Path | None, workers: int | None = None
) -> tuple[list[Prompt], list[Photo]]:
    """Prompts that name every attribute's every value, and the renders that they are captions of."""
    rendered = _rendered(protocol)
    prompts = choose_prompts(rendered.first, per_value=rendered.prompts_per_value, seed=0)
    people = sorted({prompt.person for prompt in prompts})
    place = {person: index for index, person in enumerate(people)}
    shots = range(max(prompt.shot for prompt in prompts) + 1)
    images = take_photos(people, shots, cache=cache, workers=workers, size=rendered.size).images.numpy()
    return prompts, [
        Photo(images[place[prompt.person], prompt.shot], f"{prompt.person}/{prompt.shot}", 0) for prompt in prompts
    ]


def _photos(images: Tensor, people: list[str], first_shot: int, rival: int = 0) -> list[Photo]:
    """(people, shots, height, width, 3) -> photos in memory."""
    arrays: np.ndarray = images.numpy()
    return [
        Photo(arrays[person, shot], f"{people[person]}/{first_shot + shot}", person, rival=rival)
        for person in range(arrays.shape[0])
        for shot in range(arrays.shape[1])
    ]


def _rendered(protocol: Protocol) -> RenderedPeople:
    if protocol.rendered is None:
        raise IdgenError(f"protocol {protocol.name!r} has the layout `rendered` and does not say whom: add `rendered:`")
    return protocol.rendered
