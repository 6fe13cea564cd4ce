"""Checkpoints that survive a kill: written aside, flushed, renamed, and only then are older ones removed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from idgen.checkpoint import load_training_state, save_training_state
from idgen.console import say
from idgen.errors import IdgenError

NAME = re.compile(r"checkpoint-(\d+)\.pt")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Writes `folder`/checkpoint-STEP.pt whole or not at all, then removes all but the newest `keep`."""
    save_training_state(folder / f"checkpoint-{step}.pt", state)
    for path in _newest_first(folder)[keep:]:
        path.unlink()


def load_newest(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None where there is none."""
    for path in _newest_first(folder):
        try:
            return load_training_state(path, device)
        except IdgenError as error:
            say(f"{error}; trying the one before")
    return None


def _newest_first(folder: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*.pt") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]
