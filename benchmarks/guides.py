"""What guides the sampling beside the usual guidance: the mini recogniser, and a reader that is not the probe that measures."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from idgen.models.probe import AttributeProbe, load_probe
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
        help="weights of train/probe.py (configs/mini/reader.yaml): also a row of words with its guidance",
    )


def load_reader(folder: Path | None, device: torch.device) -> AttributeProbe | None:
    """None where none is named."""
    return None if folder is None else load_probe(str(folder), device).requires_grad_(False)
