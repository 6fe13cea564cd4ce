"""`idgen restore`: a bad photo and good photos of the same person in, a good photo out."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idgen.commands._guidance import add_identity_guidance, identity_guidance
from idgen.commands._numbers import count, zero_or_above
from idgen.console import note, say
from idgen.errors import IdgenError
from idgen.files import check_apart, check_output
from idgen.headers import CACHE, check_replaces

if TYPE_CHECKING:
    import torch

    from idgen.adapters.cachekv import ReferenceCache
    from idgen.faces import FaceEncoder
    from idgen.pipelines import ReferenceRestorePipeline
    from idgen.restoration import RestoredPhoto

HELP = "restore the face in a bad photo from good photos of the same person"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", type=Path, metavar="PHOTO", help="the bad photo")
    parser.add_argument(
        "--ref",
        nargs="+",
        action="append",
        type=Path,
        default=[],
        metavar="PHOTO",
        help="good photos of the person; again for a second person",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("restored.png"), metavar="PNG", help="(default: restored.png)"
    )
    parser.add_argument(
        "--compare", type=Path, metavar="PNG", help="also write before, after and references side by side"
    )
    parser.add_argument(
        "--face",
        choices=("match", "all", "largest"),
        default="match",
        help="of several faces: who matches the references, all of them, or the largest (default: match)",
    )
    parser.add_argument(
        "--aligned", action="store_true", help="the photo is an aligned square already (FFHQ's crop): look for no face"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FILE",
        help="with --ref: keep what was read of the references here (.safetensors); without: use it in their place",
    )
    parser.add_argument("--strict", action="store_true", help="refuse where there would be a warning")
    parser.add_argument("--steps", type=count, default=20, metavar="N", help="denoising steps (default: 20)")
    parser.add_argument(
        "--guidance",
        type=zero_or_above,
        default=1.5,
        metavar="SCALE",
        help="how far to follow the references (default: 1.5)",
    )
    add_identity_guidance(parser)
    parser.add_argument(
        "--model", default="mini", metavar="NAME", help="mini, refldm.ckpt, a folder or a hub id (default: mini)"
    )
    parser.add_argument(
        "--encoder",
        metavar="NAME",
        help="finds and matches faces (default: mini for the model mini, buffalo_l for others)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Read the references, restore, write; what the user should know is said, and is in the report."""
    from idgen.devices import resolve_device, resolve_dtype
    from idgen.provenance import save_png
    from idgen.restoration import restore_photo

    _check(args)
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    pipe, encoder = _load(args, device, dtype)
    people, warnings = _people(args, pipe, encoder)
    start = time.perf_counter()
    restored = restore_photo(
        pipe,
        encoder,
        args.photo,
        people,
        face=args.face,
        aligned=args.aligned,
        strict=args.strict,
        seed=args.seed,
        identity_guidance=identity_guidance(args),
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
    )
    seconds = time.perf_counter() - start
    warnings += restored.notes
    note(warnings)
    save_png(args.output, restored.image)
    report: dict[str, Any] = {
        "output": args.output,
        "faces": [
            {
                "box": None if face.box is None else face.box.tolist(),
                "person": face.person,
                "references": 0 if face.person is None else people[face.person].references,
                "similarity": face.similarity,
            }
            for face in restored.faces
        ],
        "warnings": warnings,
        "seconds": seconds,
        "model": args.model,
        "steps": args.steps,
        "guidance": args.guidance,
        "identity_guidance": identity_guidance(args),
        "seed": args.seed,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
    }
    if args.compare:
        save_png(args.compare, _side_by_side(args, restored))
        report["compare"] = args.compare
    faces = len(restored.faces)
    say(f"{faces} face{'s' * (faces != 1)} restored in {seconds:.1f} s -> {args.output}")
    return report


def _check(args: argparse.Namespace) -> None:
    """What can be said before any model is loaded."""
    from idgen.imageio import load_image

    pictures = [path for path in (args.output, args.compare) if path is not None]
    for path in pictures:
        if path.suffix.lower() != ".png":
            raise IdgenError(f"{path}: generated pictures are written as PNG: let the name end in .png")
        check_output(path)
    if args.cache is not None and len(args.ref) > 1:
        raise IdgenError(
            "--cache keeps one person's references: name those of one person, or restore one after the other"
        )
    if args.cache is not None and args.ref:
        if args.cache.suffix != ".safetensors":
            raise IdgenError(f"{args.cache}: references are kept as safetensors: let the name end in .safetensors")
        check_output(args.cache)
        check_replaces(args.cache, CACHE)
    references = [path for person in args.ref for path in person]
    check_apart(pictures, [args.photo, *references])
    load_image(args.photo)
    for path in references:
        if not path.is_file():
            load_image(path)  # says what is wrong


def _load(
    args: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> tuple[ReferenceRestorePipeline, FaceEncoder]:
    from diffusers.utils import logging

    from idgen.faces import FaceEncoder
    from idgen.pipelines import ReferenceRestorePipeline

    logging.set_verbosity_error()  # its remarks on configs and dtypes tell a user nothing
    logging.disable_progress_bar()
    pipe = ReferenceRestorePipeline.from_pretrained(args.model, torch_dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    name = args.encoder or ("mini" if args.model == "mini" else "buffalo_l")
    return pipe, FaceEncoder.from_pretrained(name, device=device)


def _people(
    args: argparse.Namespace, pipe: ReferenceRestorePipeline, encoder: FaceEncoder
) -> tuple[list[ReferenceCache], list[str]]:
    """Each person's references, and doubts about them."""
    from idgen.adapters.cachekv import ReferenceCache
    from idgen.agreement import doubts
    from idgen.restoration import read_references

    if args.cache is not None and not args.ref:
        return [pipe.kv.check(ReferenceCache.read(args.cache), str(args.cache))], []
    people, warnings = [], []
    for photos in args.ref:
        person = read_references(pipe, encoder, photos)
        assert person.identity is not None
        warnings += doubts(person.identity, strict=args.strict)
        people.append(person)
    if args.cache is not None:
        people[0].save(args.cache)
    return people, warnings


def _side_by_side(args: argparse.Namespace, restored: RestoredPhoto) -> Any:
    from idgen.imageio import load_image
    from idgen.sheet import SheetRow, contact_sheet

    rows = [SheetRow([load_image(args.photo), restored.image], ["before", "after"])]
    rows += [SheetRow([face.before, face.after], title=f"face {index}") for index, face in enumerate(restored.faces, 1)]
    rows += [SheetRow([load_image(path) for path in person], title="references") for person in args.ref]
    return contact_sheet(rows, cell=320, columns=2)
