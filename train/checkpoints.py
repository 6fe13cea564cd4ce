"""Checkpoints that survive a kill: written aside, flushed, listed with hashes, renamed, and only then are older ones removed.

`checkpoint-STEP/` holds the trained weights, the optimiser, the averaged weights, fp16's scaler, the generators of every process
and the place in the training; `manifest.json` has the size and SHA-256 of each file and the settings. Where accelerate shards the
model (FSDP, DeepSpeed) it writes its own files there.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from idgen.checkpoint import load_training_state, save_training_state, sha256
from idgen.console import say
from idgen.errors import IdgenError
from idgen.files import atomic_write, flush
from idgen.train.average_weights import Average
from idgen.train.config import TrainConfig

NAME = re.compile(r"checkpoint-(\d+)")
MANIFEST, STATE = "manifest.json", "state.pt"
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
# What may differ when a training goes on: where it runs, what it tells, and how long it takes.
FREE = {
    "checkpointing_steps", "checkpoints_total_limit", "dry_run", "gradient_checkpointing", "log_steps", "max_minutes",
    "max_skipped_steps", "max_train_steps", "num_threads", "output_dir", "report_to", "resume", "resume_changed",
    "validation_at_start", "validation_steps",
}  # fmt: skip


@dataclass
class Place:
    """How far a training has come."""

    step: int = 0
    elapsed: float = 0.0  # seconds
    skipped: int = 0  # steps that were not finite


class Checkpoints:
    """Saves and finds the checkpoints of one training.

    Args:
        model, optimizer: as accelerate prepared them.
    """

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, model: torch.nn.Module, optimizer: Any, average: Average
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.model, self.optimizer, self.average = model, optimizer, average
        self.folder = config.output_dir
        self.settings = config.model_dump(mode="json")

    def save(self, place: Place) -> None:
        """Writes `checkpoint-STEP` whole or not at all, then removes older ones. Every process calls this.

        Raises:
            IdgenError: the disk is full, or can not be written to; the checkpoints before it are there.
        """
        main, temporary = self.accelerator.is_main_process, self.folder / f".checkpoint-{place.step}.tmp"
        try:
            if main:
                self._clear()
                temporary.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self._write(temporary, place)
            self.accelerator.wait_for_everyone()
            if main:
                self._seal(temporary, place)
                self._prune(place.step)
            self.accelerator.wait_for_everyone()
        except OSError as error:
            raise IdgenError(f"cannot write {temporary}: {error.strerror or error}; free some space") from error
        finally:
            if main:
                shutil.rmtree(temporary, ignore_errors=True)

    def resume(self) -> Place:
        """Takes up the newest checkpoint that is whole, and says where that is.

        Raises:
            IdgenError: it was written with other settings, or holds other weights.
        """
        if not self.config.resume:
            return Place()
        for path in newest_first(self.folder):
            reason = damage(path)
            if reason is None:
                return self._read(path)
            if self.accelerator.is_main_process:
                say(f"{path} is damaged ({reason}): trying the one before")
        return Place()

    def _write(self, folder: Path, place: Place) -> None:
        average = self.average.state_dict()
        state: dict[str, Any] = {"average": average}
        if self.accelerator.distributed_type in SHARDED:
            self.accelerator.save_state(str(folder))
        else:
            state["model"] = self.accelerator.unwrap_model(self.model).state_dict()
            state["optimizer"] = self.optimizer.state_dict()
            state["scaler"] = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
        save_training_state(folder / f"generators-{self.accelerator.process_index}.pt", _generators())
        if self.accelerator.is_main_process:
            save_training_state(folder / STATE, state)

    def _seal(self, temporary: Path, place: Place) -> None:
        """The manifest, and the name under which it counts."""
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        listed = {
            str(path.relative_to(temporary)): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
        }
        manifest = {
            "place": asdict(place),
            "processes": self.accelerator.num_processes,
            "distributed": str(self.accelerator.distributed_type.value),
            "settings": self.settings,
            "files": listed,
        }
        with atomic_write(temporary / MANIFEST) as path:
            path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for path in files:
            flush(path)
        flush(temporary)
        final = self.folder / f"checkpoint-{place.step}"
        if final.exists():  # a damaged one, or one of a training that was started anew
            final.rename(self.folder / f".checkpoint-{place.step}.old")
        temporary.rename(final)
        flush(self.folder)

    def _prune(self, step: int) -> None:
        """Keeps the newest of this training: those of higher steps were left by one that was given up."""
        found = newest_first(self.folder)
        mine = [path for path in found if _step(path) <= step]
        for path in [*mine[self.config.checkpoints_total_limit :], *(set(found) - set(mine))]:
            # Renamed first: what is half removed must not look like a checkpoint.
            path.rename(self.folder / f".{path.name}.old")
        self._clear()

    def _clear(self) -> None:
        for path in [*self.folder.glob(".checkpoint-*.tmp"), *self.folder.glob(".checkpoint-*.old")]:
            shutil.rmtree(path, ignore_errors=True)

    def _read(self, path: Path) -> Place:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        self._compare(path, manifest["settings"])
        # Of several processes on CPUs each has a "cpu:0", which torch can not load to.
        device = self.accelerator.device if self.accelerator.device.type != "cpu" else "cpu"
        state = load_training_state(path / STATE, device)
        asked = [
            {name: value for name, value in group.items() if name != "params"} for group in self.optimizer.param_groups
        ]
        try:
            if self.accelerator.distributed_type in SHARDED:
                self.accelerator.load_state(str(path))
            else:
                self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                if self.accelerator.scaler and state["scaler"]:
                    self.accelerator.scaler.load_state_dict(state["scaler"])
            self.average.load_state_dict(state["average"])
            # The optimiser took up the old settings with its moments: those that are asked for now count.
            for group, settings in zip(self.optimizer.param_groups, asked, strict=True):
                group.update(settings)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise IdgenError(
                f"{path} does not fit this training ({reason}): give the settings in {path / MANIFEST}, another"
                " output_dir, or --resume false"
            ) from error
        own = path / f"generators-{self.accelerator.process_index}.pt"
        if own.exists():
            _take_generators(load_training_state(own))
        known = {field.name for field in fields(Place)}
        return Place(**{name: value for name, value in manifest["place"].items() if name in known})

    def _compare(self, path: Path, before: Mapping[str, Any]) -> None:
        changes = changed(before, self.settings)
        if not changes:
            return
        told = "; ".join(changes)
        if not self.config.resume_changed:
            raise IdgenError(
                f"{path} was trained with other settings: {told}. Go on with the new ones: --resume_changed true; with the old:"
                f" --config {self.folder / 'config.yaml'}; from the start: --resume false"
            )
        if self.accelerator.is_main_process:
            say(f"goes on with changed settings: {told}")


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints of a training."""
    return sorted((path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name)), key=_step, reverse=True)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, by its manifest; None when it is whole."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, wanted in manifest["files"].items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != wanted["bytes"] or sha256(file) != wanted["sha256"]:
                return f"{name} is not as it was written"
    except FileNotFoundError:
        return "it has no manifest"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IdgenError) as error:
        return f"its manifest can not be read: {error}"
    return None


def changed(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings that decide what is learned and that differ, as `name: old -> new`."""
    lines = []
    for name in dict.fromkeys([*before, *now]):
        if not prefix and name in FREE:
            continue
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += changed(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name}: {json.dumps(old)} -> {json.dumps(new)}")
    return lines


def _step(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _generators() -> dict[str, Any]:
    kind, words, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(words).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _take_generators(state: Mapping[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, numbers, *rest = state["numpy"]
    np.random.set_state((kind, numbers.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
