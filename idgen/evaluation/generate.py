"""Making the pictures that a protocol asks for, each with a seed of its own, and going on where a run was broken off."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from idgen.console import progress
from idgen.errors import IdgenError
from idgen.evaluation.evidence import shown_references
from idgen.evaluation.fingerprints import weights_fingerprint
from idgen.evaluation.judge import declared_rewards
from idgen.evaluation.material import Material, Photo
from idgen.evaluation.processes import Processes
from idgen.evaluation.prompts import Prompt
from idgen.evaluation.protocol import Protocol
from idgen.hub import fetch_folder
from idgen.identity import recogniser_name
from idgen.provenance import save_png
from idgen.rewards.ascent import guide_identity

if TYPE_CHECKING:
    from PIL import Image

    from idgen.faces import FaceEncoder


WEIGHTS = frozenset({".safetensors", ".ckpt", ".bin", ".pt", ".pth"})


@dataclass(frozen=True)
class Source:
    """A pipeline that makes pictures.

    Attributes:
        pipe: of idgen.pipelines.
        recogniser: that it is shown people with; None where it looks at photos themselves, or does not tell.
        rewards: recognisers that its weights say they were rewarded by.
        fingerprint: changes when its weights do.
    """

    pipe: Any
    recogniser: str | None
    rewards: tuple[str, ...]
    fingerprint: str

    @property
    def takes_prompt(self) -> bool:
        """Whether its call has a prompt."""
        return "prompt" in inspect.signature(type(self.pipe).__call__).parameters


def is_pipeline(source: str) -> bool:
    """Whether a source is weights rather than a folder of pictures: mini, a model folder, or a hub id."""
    folder = Path(source).expanduser()
    if (
        source == "mini"
        or folder.is_file()
        or (folder / "model_index.json").is_file()
        or (folder / "arc2face").is_dir()
    ):
        return True
    if folder.is_dir():
        return any(path.suffix in WEIGHTS for path in folder.iterdir())
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))


def load_source(
    source: str, protocol: Protocol, device: torch.device, dtype: torch.dtype, base: str | None = None
) -> Source:
    """The pipeline of a folder or hub id: of the class that its model_index.json names, else of the protocol's.

    Raises:
        IdgenError: an unknown class, weights that are missing or broken, prompts for a pipeline that takes none.
    """
    from diffusers.utils import logging

    import idgen.pipelines
    from idgen.weights import mini_root

    logging.set_verbosity_error()  # its remarks on configs and dtypes tell a user nothing
    logging.disable_progress_bar()
    folder = mini_root() if source == "mini" else Path(source).expanduser()
    name = _class_of(folder) or protocol.pipeline
    if name not in idgen.pipelines.__all__:
        known = ", ".join(idgen.pipelines.__all__)
        raise IdgenError(
            f"protocol {protocol.name!r} asks for the pipeline {name!r}, which is not here: use one of {known}"
        )
    options: dict[str, Any] = {"torch_dtype": dtype} | ({"base": base} if base else {})
    pipe = getattr(idgen.pipelines, name).from_pretrained(source, **options).to(device)
    pipe.set_progress_bar_config(disable=True)
    if protocol.task != _task_of(pipe):
        raise IdgenError(f"protocol {protocol.name!r} is about pictures to {protocol.task}, and {name} can not do that")
    # What a hub id names lies in the hub's cache by now, in a folder that is called after the commit.
    weights = folder if folder.exists() else fetch_folder(source, ["*"], options={"local_files_only": True})
    found = Source(
        pipe,
        _recogniser(pipe),
        tuple(declared_rewards(weights)),
        weights_fingerprint(folder) if folder.exists() else f"{source}, commit {weights.name}",
    )
    if protocol.prompts and not found.takes_prompt:
        raise IdgenError(
            f"protocol {protocol.name!r} has prompts and {name} takes none: choose another pipeline or protocol"
        )
    parameters = inspect.signature(type(pipe).__call__).parameters
    unknown = sorted(set(protocol.call) - set(parameters))
    if unknown and not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        raise IdgenError(f"{name} has no argument {unknown[0]!r}: take it out of the protocol's `call`")
    return found


def generate(
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
    """Every person's pictures as out/NAME/PROMPT_IMAGE.png; those that are there are kept.

    The seed of a picture is decided by its person, prompt and number: neither the batch nor the number of processes
    changes what is drawn.

    Raises:
        IdgenError: a reference without a face, or an identity that the pipeline does not understand.
    """
    processes = processes or Processes()
    prompts = protocol.prompts or [""]
    names = [_safe(name) for name in material.people]
    wanted = [
        (person, prompt, image, out / names[person] / f"{prompt:03d}_{image:03d}.png")
        for person in range(len(material.people))
        for prompt in range(len(prompts))
        for image in range(protocol.images)
    ]
    missing = [job for job in wanted if not job[3].is_file()][processes.index :: processes.count]
    shown = shown_references(material, protocol)
    identities: dict[int, Any] = {}
    starts = range(0, len(missing), batch)
    for start in progress(starts, len(starts), "generating") if missing else ():
        part = missing[start : start + batch]
        for person in {job[0] for job in part} - identities.keys():
            identities[person] = _identity(encoder, [p for p in shown if p.person == person], material.people[person])
        people, pipe = [identities[job[0]] for job in part], source.pipe
        if protocol.identity_guidance:
            pipe = guide_identity(encoder, pipe.vae, people, protocol.identity_guidance).guided(pipe)
        pictures = _call(
            pipe,
            people,
            [prompts[job[1]] for job in part] if protocol.prompts else None,
            [picture_seed(seed, *job[:3]) for job in part],
            protocol.call,
        )
        for job, picture in zip(part, pictures, strict=True):
            save_png(job[3], picture)
    processes.wait()
    return [
        Photo(path, path.relative_to(out).as_posix(), person, prompts[prompt]) for person, prompt, _, path in wanted
    ]


def generate_captions(
    prompts: Sequence[Prompt], out: Path, device: torch.device, dtype: torch.dtype, *, seed: int = 0, batch: int = 8
) -> list[Photo]:
    """The pictures that the mini family's text-to-face base makes of prompts, as out/NUMBER.png; kept where they are there."""
    from idgen.adapters.arc2face.words import load_text_base

    photos = [
        Photo(out / f"{i:04d}.png", f"{out.name}/{i:04d}.png", 0, prompt.text) for i, prompt in enumerate(prompts)
    ]
    missing = [i for i, photo in enumerate(photos) if not Path(str(photo.source)).is_file()]
    if not missing:
        return photos
    pipe = load_text_base(dtype=dtype).to(device)
    starts = range(0, len(missing), batch)
    for start in progress(starts, len(starts), "generating from text"):
        part = missing[start : start + batch]
        pictures = pipe(
            [prompts[i].text for i in part],
            num_inference_steps=20,
            guidance_scale=3.0,  # as the bars are measured with; with 5 pictures burn
            generator=[torch.Generator().manual_seed(picture_seed(seed, i)) for i in part],
        ).images
        for i, picture in zip(part, pictures, strict=True):
            save_png(out / f"{i:04d}.png", picture)
    return photos


def _recogniser(pipe: Any) -> str | None:
    """As FaceEncoder calls it; of the pipeline itself or of the adapter in it."""
    for part in (pipe, *vars(pipe).values()):
        name = getattr(getattr(part, "config", None), "recogniser", None)
        if isinstance(name, str) and name:
            return recogniser_name(name)
    return None


def _identity(encoder: FaceEncoder, photos: list[Photo], name: str) -> Any:
    try:
        return encoder([photo.source for photo in photos])
    except IdgenError as error:
        raise IdgenError(f"{name}: {error}") from None


def _call(
    pipe: Any, identities: list[Any], prompts: list[str] | None, seeds: list[int], call: dict[str, Any]
) -> list[Image.Image]:
    options: dict[str, Any] = dict(call) | ({"prompt": prompts} if prompts else {})
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return list(pipe(identities, generator=generators, **options).images)


def picture_seed(*numbers: int) -> int:
    """One number of several, so that no two pictures share their noise."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


def _task_of(pipe: Any) -> str:
    """What a pipeline does, told by what its call takes."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    return "inpaint" if "mask_image" in parameters else "restore" if "references" in parameters else "generate"


def _class_of(folder: Path) -> str | None:
    """The idgen pipeline that a saved model names; None for Stable Diffusion's own and where nothing is named."""
    import idgen.pipelines

    try:
        name = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError):
        return None
    return name if name in idgen.pipelines.__all__ else None


def _safe(name: str) -> str:
    """A person's name as a folder's."""
    return "".join("_" if character in '<>:"|?*\\' or character == os.sep else character for character in name) or "_"
