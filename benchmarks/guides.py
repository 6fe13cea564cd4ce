"""What guides the sampling beside the usual guidance: the mini recogniser, and a reader that is not the probe that measures."""

from __future__ import annotations

import argparse
from pathlib import Path

from idgen.rewards.ascent import STRENGTH


def add_identity_guidance(flags: argparse.ArgumentParser, what: str) -> None:
    flags.add_argument(
        "--identity-guidance",
        type=float,
        default=STRENGTH,
        help=f"strength of the mini recogniser's guidance, {what} (default: {STRENGTH}; 0: none)",
    )


def add_reader(flags: argparse.ArgumentParser) -> None:
    flags.add_argument(
        "--reader",
        type=Path,
        metavar="DIR",
        help="weights of train/probe.py whose guidance by words is measured (default: the family's own reader)",
    )
