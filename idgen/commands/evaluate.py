"""`idgen evaluate`: figures, flags and a report of generated pictures, or of a recogniser."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from idgen.commands._numbers import count

HELP = "measure whether generated pictures show the person, with a judge that took no part; or test a recogniser"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="WHAT",
        help="mini, a pipeline's folder or hub id, or a folder of generated pictures; for verification protocols a recogniser",
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("evaluation"), metavar="DIR", help="folder (default: evaluation)"
    )
    parser.add_argument(
        "--protocol",
        default="mini",
        metavar="NAME",
        help="one that ships (see docs/evaluate.md) or a .yaml file (default: mini)",
    )
    parser.add_argument(
        "--references",
        type=Path,
        metavar="DIR",
        help="the people's photos, a folder for each; or the data set of the protocol",
    )
    parser.add_argument(
        "--training", type=Path, metavar="DIR", help="photos of people of the training, a folder for each"
    )
    parser.add_argument(
        "--lookalikes", type=Path, metavar="DIR", help="NAME/RIVAL/*.png: people of the same appearance"
    )
    parser.add_argument("--judge", metavar="NAME", help="the recogniser that measures (default: the protocol's)")
    parser.add_argument(
        "--same-judge", action="store_true", help="measure with a judge that had a part; the report says so"
    )
    parser.add_argument("--made-with", metavar="NAME", help="the recogniser that a folder's pictures were made with")
    parser.add_argument(
        "--rewarded-by",
        nargs="+",
        default=[],
        metavar="NAME",
        help="recognisers that a loss or reward of the training used",
    )
    parser.add_argument("--measures", nargs="+", default=[], metavar="NAME", help="these, in place of the protocol's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", help="another value for one setting of the protocol"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt per line, in place of the protocol's")
    parser.add_argument("--batch", type=count, default=16, metavar="N", help="pictures computed at once (default: 16)")
    parser.add_argument(
        "--base", metavar="NAME", help="Stable Diffusion 1.5 hub id or folder for weights that need one"
    )
    parser.add_argument("--clip", metavar="DIR", help="a CLIP model's folder, for CLIP-T")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="of readings and renders (default: DIR/cache)")
    parser.add_argument(
        "--training-data",
        type=Path,
        metavar="DIR",
        help="folder of `idgen synth` with the mini family's training people",
    )
    parser.add_argument("--workers", type=count, metavar="N", help="rendering processes (default: one per core)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate and write report.html, metrics.json, metrics.csv."""
    from idgen.errors import IdgenError
    from idgen.evaluation import Request, evaluate, load_protocol
    from idgen.evaluation.output import summarise
    from idgen.evaluation.protocol import MEASURES

    for name in args.measures:
        if name not in MEASURES:
            raise IdgenError(f"unknown measure {name!r}: they are {', '.join(MEASURES)}")
    given = {name: value for name, value in vars(args).items() if name in {field.name for field in fields(Request)}}
    given |= {"rewarded_by": tuple(args.rewarded_by), "measures": tuple(args.measures)}
    request = Request(**given, settings=tuple(args.set))
    if load_protocol(args.protocol, args.set).task == "verify":
        from idgen.evaluation.verify import verify

        return verify(request)
    outcome = evaluate(request)
    if outcome is None:  # one of several processes, and not the first
        return {}
    summarise(outcome)
    return {
        "report": outcome.report,
        "metrics_file": outcome.metrics,
        "table": outcome.table,
        **{
            name: outcome.content[name]
            for name in ("protocol", "judge", "people", "images", "remarks", "flags", "not_run")
        },
        "metrics": outcome.content["metrics"],
    }
