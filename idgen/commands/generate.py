"""`idgen generate`: photos of a person (or their identity file) in, new photos of that person out."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idgen.commands._guidance import (
    add_identity_guidance,
    add_words_guidance,
    identity_guidance,
    unknown_words,
    words_guidance,
)
from idgen.commands._numbers import count, finite, zero_or_above
from idgen.console import note, progress, say
from idgen.errors import IdgenError
from idgen.files import check_apart, check_output

if TYPE_CHECKING:
    from PIL import Image

    from idgen.identity import Identity
    from idgen.pipelines import Arc2FacePipeline

HELP = "generate new pictures of a person from photos or an identity file"

PHOTOGRAPHED = "person"  # who is given by photos: their files have no name to go by
SHEET = "sheet.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="PERSON",
        help="photos of one person, or identity files (.safetensors of `idgen embed`), one per person",
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("generated"), metavar="DIR", help="folder (default: generated)"
    )
    parser.add_argument("-n", "--images", type=count, default=4, metavar="N", help="of each person (default: 4)")
    parser.add_argument("--steps", type=count, default=20, metavar="N", help="denoising steps (default: 20)")
    parser.add_argument(
        "--guidance", type=zero_or_above, metavar="SCALE", help="1 turns guidance off (default: 1.1 with mini, else 3)"
    )
    add_identity_guidance(parser)
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help='what else the pictures are to show, as "a photo of a woman smiling": the model under --base (mini: its own)'
        " leads there",
    )
    parser.add_argument(
        "--text-guidance",
        type=zero_or_above,
        metavar="SCALE",
        help="how far the prompt leads (default: 3; 0 not at all)",
    )
    add_words_guidance(parser, "0.02")
    parser.add_argument("--batch", type=count, default=4, metavar="N", help="images computed at once (default: 4)")
    parser.add_argument(
        "--model",
        default="mini",
        metavar="NAME",
        help="mini, a hub id such as FoivosPar/Arc2Face, or a folder (default: mini)",
    )
    parser.add_argument(
        "--base", metavar="NAME", help="Stable Diffusion 1.5 hub id or folder for a published model that needs one"
    )
    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="FILE",
        help="what train/lora.py learned of the person, or train/reward.py (subject: arc2face) of all",
    )
    parser.add_argument(
        "--strength",
        type=finite,
        metavar="S",
        help="of the adapter: 0 is the model without it, 1 as trained (default: 1)",
    )
    parser.add_argument(
        "--encoder", metavar="NAME", help="embeds the photos (default: the recogniser that the model was trained with)"
    )
    parser.add_argument(
        "--sheet", action="store_true", help="also write sheet.png: references and results side by side"
    )


@dataclass(frozen=True)
class Person:
    """Somebody to generate; `name` begins the names of their files."""

    name: str
    identity: Identity


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Embed where needed, generate in batches, and write each picture as soon as it is there."""
    import torch

    from idgen.agreement import doubts
    from idgen.devices import resolve_device, resolve_dtype
    from idgen.provenance import save_png

    if args.strength is not None and args.adapter is None:
        raise IdgenError("--strength is of an adapter: pass its file with --adapter")
    if args.text_guidance is not None and args.prompt is None:
        raise IdgenError("--text-guidance is of a prompt: pass one with --prompt")
    if args.words_guidance is not None and args.prompt is None:
        raise IdgenError("--words-guidance is of a prompt: pass one with --prompt")
    if args.prompt is not None and not args.prompt.strip():
        raise IdgenError("--prompt is empty: say what the pictures are to show, or leave it out")
    _check_inputs(args.inputs)
    check_output(args.out, folder=True)
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    people = _load_people(args.inputs)
    names = [person.name for person in people] or [PHOTOGRAPHED]
    paths = [args.out / f"{name}_{number:02d}.png" for name in names for number in range(1, args.images + 1)]
    check_apart([*paths, *([args.out / SHEET] if args.sheet else [])], args.inputs)
    if args.guidance is None:  # what the bars are measured with, and what Arc2Face's authors use
        args.guidance = 1.1 if args.model == "mini" else 3.0
    pipe = _load_pipeline(args, device, dtype)
    if args.adapter is not None:
        _adapt(pipe, args.adapter, args.strength)
    people = people or [_embed(args, pipe.config.recogniser)]
    warnings = [f"{person.name}: {doubt}" for person in people for doubt in doubts(person.identity)]
    warnings += unknown_words(args, pipe.tokenizer)
    note(warnings)
    guided = _guided(args, _led(args, pipe, device, dtype))
    embeds = pipe.encode_identity([person.identity for person in people])
    jobs = [(person, image) for person in range(len(people)) for image in range(args.images)]
    pictures: list[Image.Image] = []
    seconds = 0.0
    say(
        f"{len(jobs)} image{'s' * (len(jobs) != 1)} of {len(people)} on {device} in {str(dtype).removeprefix('torch.')}"
    )
    batches = [jobs[start : start + args.batch] for start in range(0, len(jobs), args.batch)]
    for batch in progress(batches, desc="generating"):
        start = time.perf_counter()
        images = guided([people[person].identity for person, _ in batch])(
            prompt_embeds=embeds[[person for person, _ in batch]],
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            # A seed for each image, on the CPU: neither the batch size nor the device changes what is drawn.
            generator=[torch.Generator().manual_seed((args.seed + image) % 2**63) for _, image in batch],
        ).images
        seconds += time.perf_counter() - start
        for path, image in zip(paths[len(pictures) :], images, strict=False):
            save_png(path, image)
        pictures += images
    report: dict[str, Any] = {
        "images": paths,
        "seconds_per_image": seconds / len(jobs),
        "people": [
            {
                "name": person.name,
                "references": len(person.identity),
                "images": paths[index * args.images :][: args.images],
            }
            for index, person in enumerate(people)
        ],
        "warnings": warnings,
        "model": args.model,
        "recogniser": pipe.config.recogniser,
        "steps": args.steps,
        "guidance": args.guidance,
        "adapter": args.adapter,
        "strength": args.strength,
        "prompt": args.prompt,
        "identity_guidance": identity_guidance(args),
        "seed": args.seed,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
    }
    if args.sheet:
        report["sheet"] = _write_sheet(args, people, pictures)
    say(f"{report['seconds_per_image']:.2f} s per image -> {args.out}")
    return report


def _check_inputs(inputs: list[Path]) -> None:
    from idgen.imageio import load_image

    kinds = {path.suffix == ".safetensors" for path in inputs}
    if len(kinds) > 1:
        raise IdgenError(
            "pass photos of one person or identity files, not both: embed the photos with `idgen embed` first"
        )
    for path in inputs:
        if True not in kinds and not path.is_file():
            load_image(path)  # says what is wrong, before any model is loaded


def _load_people(inputs: list[Path]) -> list[Person]:
    """The people of identity files, named after their files; none when the inputs are photos."""
    from idgen.identity import Identity

    files = [path for path in inputs if path.suffix == ".safetensors"]
    times = Counter(path.stem for path in files)
    return [
        Person(path.stem if times[path.stem] == 1 else f"{path.stem}-{number}", Identity.load(path))
        for number, path in enumerate(files, 1)
    ]


def _embed(args: argparse.Namespace, recogniser: str) -> Person:
    from idgen.faces import FaceEncoder

    encoder = FaceEncoder.from_pretrained(args.encoder or recogniser, device=args.device)
    return Person(PHOTOGRAPHED, encoder(args.inputs))


def _load_pipeline(args: argparse.Namespace, device: Any, dtype: Any) -> Arc2FacePipeline:
    from diffusers.utils import logging

    from idgen.pipelines import Arc2FacePipeline

    logging.set_verbosity_error()  # its remarks on configs and dtypes tell a user nothing
    logging.disable_progress_bar()
    pipe = Arc2FacePipeline.from_pretrained(args.model, base=args.base, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _adapt(pipe: Arc2FacePipeline, file: Path, strength: float | None) -> None:
    from idgen.finetune import load_adapter, set_strength

    load_adapter(file, pipe)
    if strength is not None:
        set_strength(pipe, "default", strength)


def _led(args: argparse.Namespace, pipe: Arc2FacePipeline, device: Any, dtype: Any) -> Arc2FacePipeline:
    """The pipeline whose pictures also show what the prompt says."""
    from idgen.adapters.arc2face.sources import DEFAULT_BASE
    from idgen.adapters.arc2face.words import READER_START, READER_STRENGTH, SCALE, lead_by_words, load_text_base
    from idgen.evaluation.prompts import asked_for
    from idgen.models.recogniser_reader import load_reader
    from idgen.rewards.ascent import guide_words

    if args.prompt is None:
        return pipe
    led = pipe
    scale = SCALE if args.text_guidance is None else args.text_guidance
    if scale:
        name = args.base or ("mini" if args.model == "mini" else DEFAULT_BASE)
        base = load_text_base(name, dtype=dtype, vae=pipe.vae).to(device)
        led = lead_by_words(pipe, base, [args.prompt], scale)
    strength = words_guidance(args, READER_STRENGTH)
    if not strength or not asked_for(args.prompt):
        return led
    return guide_words(load_reader(device=device), pipe.vae, [args.prompt], strength, READER_START).guided(led)


def _guided(args: argparse.Namespace, pipe: Arc2FacePipeline) -> Callable[[list[Identity]], Arc2FacePipeline]:
    """The pipeline for pictures of so many people, one each."""
    strength = identity_guidance(args)
    if not strength:
        return lambda people: pipe
    from idgen.faces import FaceEncoder
    from idgen.rewards.ascent import guide_identity

    encoder = FaceEncoder.from_pretrained(args.encoder or pipe.config.recogniser, device=args.device)
    return lambda people: guide_identity(encoder, pipe.vae, people, strength).guided(pipe)


def _write_sheet(args: argparse.Namespace, people: list[Person], pictures: list[Image.Image]) -> Path:
    from PIL import Image

    from idgen.provenance import save_png
    from idgen.sheet import SheetRow, contact_sheet

    rows = []
    for index, person in enumerate(people):
        if person.identity.crops is not None:
            crops = [Image.fromarray(crop.numpy()) for crop in person.identity.crops]
            rows.append(SheetRow(crops, title=f"{person.name}: references"))
        rows.append(SheetRow(pictures[index * args.images :][: args.images], title=f"{person.name}: generated"))
    path = args.out / SHEET
    save_png(path, contact_sheet(rows, columns=max(4, min(args.images, 8))))
    return path
