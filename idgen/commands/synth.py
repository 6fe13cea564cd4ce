"""`idgen synth`: a data set of synthetic people with ground truth."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from idgen.devices import usable_cores

HELP = "render a data set of synthetic people, with ground truth and captions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--people", type=int, required=True, metavar="N", help="how many people")
    parser.add_argument("--shots", type=int, required=True, metavar="K", help="how many images of each person")
    parser.add_argument(
        "--size", type=int, default=128, metavar="PX", help="width and height, 32 to 1024 (default: 128)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder, or one to go on with")
    parser.add_argument("--workers", type=int, metavar="W", help="processes (default: one per CPU core; one on a GPU)")
    parser.add_argument(
        "--format",
        choices=("folder", "webdataset", "ffhq-ref", "arrays"),
        default="folder",
        help="ffhq-ref adds FFHQ-Ref's tables of references to the folder; trainings read arrays fastest (default: folder)",
    )
    parser.add_argument(
        "--first-person", type=int, default=0, metavar="N", help="number of the first person (default: 0)"
    )
    parser.add_argument("--supersampling", type=int, default=1, metavar="S", help="1 to 4 (default: 1)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from idgen.console import progress, say
    from idgen.devices import resolve_device
    from idgen.synthetic.settings import SynthSettings
    from idgen.synthetic.writer import write_dataset

    device = str(resolve_device(args.device))
    settings = SynthSettings(
        people=args.people,
        shots=args.shots,
        size=args.size,
        seed=args.seed,
        first_person=args.first_person,
        supersampling=args.supersampling,
        format=args.format,
        device=device,
    )
    workers = usable_cores() if args.workers is None and device == "cpu" else args.workers
    report = write_dataset(settings, args.out, workers=1 if workers is None else workers, progress=progress)
    there = report.images - report.rendered
    say(
        f"{report.images:,} images of {report.people:,} people in {report.out}"
        + (f" ({there:,} were there)" if there else "")
        + f": {report.images_per_second:.1f} images/s"
    )
    return asdict(report)
