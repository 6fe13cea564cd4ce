"""Restoring and inpainting the pictures that a protocol lists, each from its person's references."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from idgen.console import progress
from idgen.errors import IdgenError
from idgen.evaluation.generate import Source, picture_seed
from idgen.evaluation.material import Job, Material, Photo
from idgen.evaluation.processes import Processes
from idgen.evaluation.protocol import Protocol
from idgen.imageio import load_image
from idgen.provenance import save_png

if TYPE_CHECKING:
    from PIL import Image

    from idgen.faces import FaceEncoder


def repair(
    source: Source,
    encoder: FaceEncoder,
    material: Material,
    protocol: Protocol,
    out: Path,
    *,
    seed: int = 0,
    batch: int = 4,
    processes: Processes | None = None,
) -> list[Photo]:
    """Every job's picture as out/ORIGINAL.png, in folders as the originals are; those that are there are kept."""
    processes = processes or Processes()
    names = [f"{job.result}.png" for job in material.jobs]
    missing = [i for i, name in enumerate(names) if not (out / name).is_file()]
    missing = missing[processes.index :: processes.count]
    starts = range(0, len(missing), batch)
    for start in progress(starts, len(starts), protocol.task) if missing else ():
        part = missing[start : start + batch]
        jobs = [material.jobs[i] for i in part]
        generators = [torch.Generator().manual_seed(picture_seed(seed, i)) for i in part]
        people = [job.references[: protocol.seen] for job in jobs]
        make = _inpaint if protocol.task == "inpaint" else _restore
        for i, picture in zip(part, make(source, encoder, jobs, people, generators, protocol), strict=True):
            save_png(out / names[i], picture)
    processes.wait()
    return [
        Photo(out / name, name, job.person, target=job.target) for name, job in zip(names, material.jobs, strict=True)
    ]


def _restore(
    source: Source,
    _: Any,
    jobs: list[Job],
    people: list[Sequence[Photo]],
    generators: list[torch.Generator],
    protocol: Protocol,
) -> list[Image.Image]:
    images = [load_image(job.image) for job in jobs]
    references = [[load_image(photo.source) for photo in photos] for photos in people]
    return list(source.pipe(images, references, generator=generators, **protocol.call).images)


def _inpaint(
    source: Source,
    encoder: FaceEncoder,
    jobs: list[Job],
    people: list[Sequence[Photo]],
    generators: list[torch.Generator],
    protocol: Protocol,
) -> list[Image.Image]:
    own = getattr(source.pipe, "recogniser", None) is not None
    identities = []
    for photos in people:
        pictures = [load_image(photo.source) for photo in photos]
        identities.append(source.pipe.encode_identity(pictures) if own else encoder(pictures))
    prompts = {"prompt": protocol.prompts[0]} if protocol.prompts else {}
    return list(
        source.pipe(
            identities,
            image=[load_image(job.image) for job in jobs],
            mask_image=[load_image(job.mask).convert("L") for job in jobs if job.mask is not None],
            generator=generators,
            **prompts,
            **protocol.call,
        ).images
    )


def check_jobs(material: Material, protocol: Protocol) -> None:
    """Before anything is made.

    Raises:
        IdgenError: a degraded picture or a mask is not there.
    """
    for job in material.jobs:
        if not job.image.is_file():
            raise IdgenError(
                f"no {job.image}: protocol {protocol.name!r} begins with the degraded pictures of the data set"
            )
        if protocol.task == "inpaint" and (job.mask is None or not job.mask.is_file()):
            raise IdgenError(f"no {job.mask}: each picture needs a mask of its name, white where it is to be filled")
