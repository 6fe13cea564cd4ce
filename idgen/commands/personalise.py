"""`idgen personalise`: photos of a person in, a small file out with which `idgen inpaint` knows them better."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from idgen.commands._numbers import above_zero, count, zero_or_above
from idgen.commands.inpaint import add_model_flags, load_model
from idgen.console import note, progress, say
from idgen.errors import IdgenError
from idgen.files import check_apart, check_output
from idgen.headers import PERSON, check_replaces

HELP = "adapt inpainting to one person by 40 steps of training on their photos; one photo is enough"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", type=Path, nargs="+", metavar="PHOTO", help="photos of the person")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("personalised.safetensors"),
        metavar="FILE",
        help="for `idgen inpaint --person`; guard it as you would the photos (default: personalised.safetensors)",
    )
    parser.add_argument(
        "--variant",
        choices=("visual", "lora"),
        default="visual",
        help="trains the attention to the person's tokens, or LoRA on the attention to text (default: visual)",
    )
    parser.add_argument("--steps", type=count, default=40, metavar="N", help="training steps (default: 40)")
    parser.add_argument(
        "--learning-rate",
        type=above_zero,
        metavar="RATE",
        help="the higher, the closer to the photos and the further from the words (default: the authors' 2e-5, lora 1e-4;"
        " for mini 1e-3)",
    )
    parser.add_argument(
        "--identity-weight",
        type=zero_or_above,
        metavar="W",
        help="of a loss by the face recogniser, which the authors do not have (default: 1 for mini, else 0)",
    )
    parser.add_argument("--strict", action="store_true", help="refuse photos about which there is a doubt")
    add_model_flags(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, and write what changed."""
    from idgen.agreement import doubts
    from idgen.devices import resolve_device, resolve_dtype
    from idgen.imageio import load_image
    from idgen.inpainting import personalise, read_references

    if args.output.suffix != ".safetensors":
        raise IdgenError(f"{args.output}: a person is kept as safetensors: let the name end in .safetensors")
    check_output(args.output)
    check_apart([args.output], args.photos)
    check_replaces(args.output, PERSON)
    photos = [load_image(path) for path in args.photos]
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    pipe, encoder = load_model(args, device, dtype)
    warnings = doubts(read_references(pipe, encoder, args.photos), strict=args.strict)
    note(warnings)
    start = time.perf_counter()
    person = personalise(
        pipe,
        photos,
        args.steps,
        args.variant,
        encoder=encoder,
        seed=args.seed,
        learning_rate=args.learning_rate,
        identity_weight=args.identity_weight,
        report=lambda steps: progress(steps, args.steps, "personalising"),
    )
    seconds = time.perf_counter() - start
    person.save(args.output)
    size = args.output.stat().st_size
    say(f"{args.steps} steps in {seconds:.1f} s -> {args.output} ({size / 1e6:.1f} MB)")
    return {
        "output": args.output,
        "bytes": size,
        "photos": len(photos),
        "variant": args.variant,
        "steps": args.steps,
        "seconds": seconds,
        "warnings": warnings,
        "model": args.model,
        "seed": args.seed,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
    }
