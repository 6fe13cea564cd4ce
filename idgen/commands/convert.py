"""`idgen convert`: published weights in, safetensors out; or only what a weights file is."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idgen.console import say
from idgen.errors import IdgenError

if TYPE_CHECKING:
    from idgen.inspection import WeightsReport

HELP = "turn a published weights file into safetensors, or say what one is (--inspect)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SRC",
        help="a .safetensors, .bin, .pth, .pt, .ckpt or .onnx file, or owner/name@revision:path/in/it on the hub",
    )
    parser.add_argument(
        "destination",
        nargs="?",
        type=Path,
        metavar="DST",
        help="the .safetensors file to write; one that is there is replaced",
    )
    parser.add_argument("--inspect", action="store_true", help="say what SRC is, and write nothing")
    parser.add_argument(
        "--method", metavar="NAME", help="what SRC is, where its keys leave a choice (--inspect tells the choices)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Convert or inspect. The report says what the source is, and what was written."""
    if args.inspect and args.destination is not None:
        raise IdgenError(f"--inspect writes nothing: leave out {args.destination}, or --inspect")
    if not args.inspect and args.destination is None:
        raise IdgenError("name the file to write, DST.safetensors, or say --inspect to learn what SRC is")
    from idgen.conversion import convert_weights, find_weights
    from idgen.inspection import open_weights

    if args.inspect:
        report, _ = open_weights(find_weights(args.source), args.method)
        _tell(report)
        return asdict(report)
    report = convert_weights(args.source, args.destination, method=args.method)
    _tell(report)
    say(f"written to   {args.destination}")
    return asdict(report) | {"output": args.destination}


def _tell(report: WeightsReport) -> None:
    say(f"{report.path}: {report.title} ({report.kind})")
    if report.method:
        say(f"method       {report.method}")
    if report.family:
        say(f"made for     {report.family}")
    dtypes = ", ".join(f"{count:,} {dtype}" for dtype, count in report.dtypes.items())
    say(f"holds        {report.tensors:,} tensors, {report.parameters:,} values: {dtypes}")
    say(f"sha256       {report.sha256}, {report.bytes:,} bytes")
    if report.licence:
        say(f"licence      {report.licence}")
    for note in report.notes:
        say(f"note         {note}")
