"""`idgen inpaint`: a photo, a hole or a part of its face, and photos of the person in; the photo with that part filled out."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idgen.commands._guidance import (
    add_identity_guidance,
    add_words_guidance,
    identity_guidance,
    unknown_words,
    words_guidance,
)
from idgen.commands._numbers import count, zero_or_above
from idgen.console import note, say
from idgen.errors import IdgenError
from idgen.files import check_apart, check_output

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from idgen.faces import FaceEncoder
    from idgen.identity import Identity
    from idgen.inpainting import InpaintedPhoto
    from idgen.pipelines import PVAInpaintPipeline

HELP = "fill a hole in a photo's face, or paint a part of it anew, as the person of other photos"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", type=Path, help="the photo to fill")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--mask", type=Path, metavar="FILE", help="picture of the photo's size, white where it is to be filled"
    )
    what.add_argument("--region", metavar="NAME", help="part of the face: lowerface, eyes, brows, whole, random")
    parser.add_argument(
        "--ref",
        type=Path,
        nargs="+",
        default=[],
        metavar="PHOTO",
        help="photos of the person, or one identity file of `idgen embed`; without it, nobody in particular is painted",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("inpainted.png"), metavar="PNG", help="(default: inpainted.png)"
    )
    parser.add_argument("--compare", type=Path, metavar="PNG", help="also write the portrait, its hole and the filling")
    parser.add_argument("--prompt", help='what to paint, <new1> being the person (default: "photo of a <new1> person")')
    parser.add_argument("--person", type=Path, metavar="FILE", help="weights that were personalised for the person")
    parser.add_argument("--steps", type=count, default=20, metavar="N", help="denoising steps (default: 20)")
    parser.add_argument(
        "--guidance", type=zero_or_above, default=1.0, metavar="SCALE", help="1 turns guidance off (default: 1)"
    )
    parser.add_argument(
        "--text-control", action="store_true", help="guidance stresses the prompt's words and not the person"
    )
    add_identity_guidance(parser)
    add_words_guidance(parser, "0.04")
    parser.add_argument("--aligned", action="store_true", help="the photo is a portrait as FFHQ cuts it")
    parser.add_argument("--strict", action="store_true", help="refuse references about which there is a doubt")
    add_model_flags(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fill the hole and write the photo, at its own size and with all else as it was."""
    from idgen.data.holes import load_mask
    from idgen.data.regions import REGIONS
    from idgen.devices import resolve_device, resolve_dtype
    from idgen.imageio import load_image
    from idgen.inpainting import inpaint_photo
    from idgen.provenance import save_png
    from idgen.rewards.ascent import WORDS_STRENGTH

    if args.region is not None and args.region not in REGIONS:
        raise IdgenError(f"unknown region {args.region!r}: use one of {', '.join(REGIONS)}")
    if args.text_control and not args.guidance > 1:
        raise IdgenError("--text-control is a kind of guidance: add --guidance 6, or leave it out")
    pictures = [path for path in (args.output, args.compare) if path is not None]
    for path in pictures:
        if path.suffix.lower() != ".png":
            raise IdgenError(f"{path}: generated pictures are written as PNG: let the name end in .png")
        check_output(path)
    check_apart(pictures, [args.photo, *args.ref, *([args.mask] if args.mask else [])])
    photo = load_image(args.photo)
    mask = load_mask(args.mask, photo.size) if args.mask else None
    for path in args.ref:
        if path.suffix != ".safetensors":
            load_image(path)  # says what is wrong, before any model is loaded
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    pipe, encoder = load_model(args, device, dtype)
    if args.person is not None:
        pipe.load_person(args.person)
    identity, warnings = _identity(args, pipe, encoder)
    prompt = {"prompt": args.prompt} if args.prompt is not None else {}
    start = time.perf_counter()
    done = inpaint_photo(
        pipe,
        encoder,
        args.photo,
        identity,
        mask=mask,
        region=args.region,
        aligned=args.aligned,
        seed=args.seed,
        identity_guidance=identity_guidance(args),
        words_guidance=words_guidance(args, WORDS_STRENGTH),
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        text_control=args.text_control,
        **prompt,
    )
    seconds = time.perf_counter() - start
    warnings += [*unknown_words(args, pipe.tokenizer), *done.notes]
    note(warnings)
    save_png(args.output, done.image)
    if args.compare:
        save_png(args.compare, _side_by_side(done))
    say(f"{int(done.hole.sum())} of {done.hole.size} px filled in {seconds:.1f} s -> {args.output}")
    return {
        "output": args.output,
        **({"compare": args.compare} if args.compare else {}),
        "filled_share": float(done.hole.mean()),
        "references": 0 if identity is None else len(identity),
        "warnings": warnings,
        "seconds": seconds,
        "model": args.model,
        "steps": args.steps,
        "guidance": args.guidance,
        "identity_guidance": identity_guidance(args),
        "words_guidance": words_guidance(args, WORDS_STRENGTH),
        "seed": args.seed,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
    }


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Which model paints, and who finds the faces."""
    parser.add_argument(
        "--model",
        default="mini",
        metavar="NAME",
        help="mini, a folder with FPIP.bin, or a saved PVAInpaintPipeline (default: mini)",
    )
    parser.add_argument("--base", metavar="NAME", help="hub id or folder of the inpainting model that FPIP.bin is for")
    parser.add_argument(
        "--recogniser", type=Path, metavar="FILE", help="ms1mv3_arcface_r50.pth, where FPIP.bin has none"
    )
    parser.add_argument(
        "--encoder",
        metavar="NAME",
        help="finds the faces (default: mini for the mini family, else buffalo_l)",
    )


def load_model(
    args: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> tuple[PVAInpaintPipeline, FaceEncoder]:
    """What `add_model_flags` asked for."""
    from diffusers.utils import logging

    from idgen.faces import FaceEncoder
    from idgen.pipelines import PVAInpaintPipeline

    logging.set_verbosity_error()  # its remarks on configs and dtypes tell a user nothing
    logging.disable_progress_bar()
    pipe = PVAInpaintPipeline.from_pretrained(
        args.model, base=args.base, recogniser=args.recogniser, torch_dtype=dtype
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.pva is not None
    family = pipe.pva.config.recogniser
    return pipe, FaceEncoder.from_pretrained(
        args.encoder or ("mini" if family == "mini" else "buffalo_l"), device=device
    )


def _identity(
    args: argparse.Namespace, pipe: PVAInpaintPipeline, encoder: FaceEncoder
) -> tuple[Identity | None, list[str]]:
    """Whose references they are, and what is doubtful about them."""
    from idgen.agreement import doubts
    from idgen.identity import Identity
    from idgen.inpainting import read_references

    if not args.ref:
        return None, []
    files = [path for path in args.ref if path.suffix == ".safetensors"]
    if files and len(args.ref) > 1:
        raise IdgenError("pass photos of the person or one identity file as --ref, not both")
    identity = Identity.load(files[0]) if files else read_references(pipe, encoder, args.ref)
    return identity, doubts(identity, strict=args.strict)


def _side_by_side(done: InpaintedPhoto) -> Image.Image:
    from idgen.sheet import SheetRow, contact_sheet

    tiles = [done.before, done.masked, done.after]
    return contact_sheet([SheetRow(tiles, ["before", "what the model sees", "filled"])], columns=3)
