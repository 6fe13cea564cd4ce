"""The reader that may guide pictures of prompts: another probe than the one that measures."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from idgen.models.probe import AttributeProbe, load_probe


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
