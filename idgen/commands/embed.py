"""`idgen embed`: photos of one person in, one identity file out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from idgen.console import note, say
from idgen.errors import IdgenError
from idgen.files import check_apart, check_output
from idgen.headers import IDENTITY, check_replaces

HELP = "find the face in photos of one person and save who it is to an identity file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="image files that show the person")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("person.safetensors"),
        metavar="FILE",
        help="identity file to write (default: person.safetensors); it identifies a person: keep it as you keep the photos",
    )
    parser.add_argument(
        "--encoder",
        default="mini",
        metavar="NAME",
        help="mini, judge, buffalo_l, antelopev2, arc2face, or a folder (default: mini)",
    )
    parser.add_argument(
        "--select",
        type=_selection,
        default="largest",
        metavar="WHICH",
        help="of several faces in a photo: largest, centre, best, only (several are an error), or a number counted from 0"
        " by size (default: largest)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Embed and save. The report says what was found in each photo, and never the embedding itself."""
    if args.output.suffix != ".safetensors":
        raise IdgenError(f"{args.output}: an identity is saved as safetensors: let the name end in .safetensors")
    check_output(args.output)
    check_apart([args.output], args.photos)
    check_replaces(args.output, IDENTITY)
    from idgen.agreement import doubts
    from idgen.faces import FaceEncoder

    # One forward pass per photo: the exact dtype costs nothing, and the file outlives this machine.
    dtype = "fp32" if args.dtype == "auto" else args.dtype
    encoder = FaceEncoder.from_pretrained(args.encoder, device=args.device, dtype=dtype)
    identity = encoder(args.photos, select=args.select)
    identity.save(args.output)
    assert identity.scores is not None and identity.landmarks is not None
    report: dict[str, Any] = {
        "output": args.output,
        "recogniser": identity.recogniser,
        "references": len(identity),
        "photos": [
            {"photo": photo, "score": score, "landmarks": landmarks}
            for photo, score, landmarks in zip(
                args.photos, identity.scores.tolist(), identity.landmarks.tolist(), strict=True
            )
        ],
    }
    if len(identity) > 1:
        cosines = identity.similarity(identity)
        cosines.fill_diagonal_(1.0)
        report["lowest_similarity"] = float(cosines.min())
        say(f"lowest similarity between two of the photos: {report['lowest_similarity']:.2f}")
    report["warnings"] = doubts(identity)
    note(report["warnings"])
    say(f"{len(identity)} reference{'s' * (len(identity) != 1)} by {identity.recogniser!r} -> {args.output}")
    return report


def _selection(text: str) -> str | int:
    from idgen.faces.detection import check_selection

    select: str | int = int(text) if text.isascii() and text.isdigit() else text
    try:
        check_selection(select)
    except IdgenError as error:
        raise argparse.ArgumentTypeError(str(error).replace("select=", "")) from None
    return select
