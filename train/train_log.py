"""What a training tells while it runs: log.jsonl, lines or a bar for the terminal, trackers such as TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from PIL import Image
from torch import Tensor

from idgen.console import Bar, say
from idgen.errors import IdgenError
from idgen.files import atomic_write
from idgen.train.config import TrainConfig

LOG = "log.jsonl"


def trackers(report_to: str) -> list[str]:
    """Names for accelerate's `log_with`.

    Raises:
        IdgenError: a tracker that is not installed, or that accelerate does not know.
    """
    installed = [getattr(name, "value", str(name)) for name in get_available_trackers()]
    if report_to == "auto":
        return [name for name in installed if name == "tensorboard"]
    wanted = [] if report_to == "none" else [name.strip() for name in report_to.split(",")]
    for name in wanted:
        if name not in installed:
            raise IdgenError(
                f"report_to names {name!r}; here there are {', '.join(['none', *installed])}: install its package or"
                " choose one of these"
            )
    return wanted


class TrainLog:
    """Only the main process writes; every process calls `step`."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator, self.main = config, accelerator, accelerator.is_main_process
        self.file = config.output_dir / LOG
        self.images = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
        self.count, self.mark = 0, time.monotonic()
        self.bar = Bar(config.max_train_steps, "training") if self.main and sys.stderr.isatty() else None

    def rewind(self, step: int) -> None:
        """Forgets what was told after `step`: training goes on from there and tells it again."""
        if not self.main:
            return
        rows = [row for row in read_log(self.file) if row["step"] <= step] if step else []
        if self.file.exists():
            with atomic_write(self.file) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        if self.bar:
            self.bar.move(step)

    def step(self, step: int, elapsed: float, progress: float, rate: float, parts: Sequence[dict[str, Tensor]]) -> None:
        """One step's losses, of each of its batches."""
        self.count += 1
        if self.bar:
            self.bar.move(step)
        if step % self.config.log_steps and step != 1:
            return  # reading a loss waits for the device: only every few steps
        means = self._means(parts)
        speed = self.images * self.count / max(1e-9, time.monotonic() - self.mark)
        self.count, self.mark = 0, time.monotonic()
        row = {"step": step, "minutes": round(elapsed / 60, 2), "lr": rate, "images_per_second": round(speed, 1)}
        if 0 < progress < 1:
            row["minutes_left"] = round(elapsed / 60 * (1 - progress) / progress, 1)
        row |= {"memory_gb": round(_memory(self.accelerator.device), 2), **means}
        self._write(row)
        self._track(means | {"lr": rate, "images_per_second": speed}, step)

    def skipped(self, step: int, ids: Sequence[str]) -> None:
        """A step that was not finite."""
        self._write({"step": step, "not_finite": list(ids)})

    def validation(
        self, step: int, elapsed: float, skipped: int, figures: dict[str, float], picture: Image.Image | None
    ) -> None:
        self._write({"step": step, "minutes": round(elapsed / 60, 2), "validation": figures, "skipped_steps": skipped})
        self._track({f"validation/{name}": float(value) for name, value in figures.items()}, step)
        if picture is not None and self.main:
            with atomic_write(self.config.output_dir / "grids" / f"{step:06d}.png") as temporary:
                picture.save(temporary)
            for tracker in self.accelerator.trackers:
                if tracker.name == "tensorboard":
                    tracker.log_images({"grid": np.asarray(picture.convert("RGB"))[None]}, step, dataformats="NHWC")
        self.mark, self.count = time.monotonic(), 0

    def failed(self, step: int, reason: str) -> None:
        """A validation that did not fit into memory."""
        self._write({"step": step, "validation_failed": reason})

    def close(self) -> None:
        if self.bar:
            self.bar.close()
        self.accelerator.end_training()

    def _means(self, parts: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        names = list(parts[0])
        table = torch.stack([torch.stack([part[name].detach().float() for name in names]) for part in parts]).mean(0)
        if self.accelerator.num_processes > 1:
            table = self.accelerator.reduce(table, "mean")
        return dict(zip(names, table.tolist(), strict=True))

    def _track(self, values: dict[str, float], step: int) -> None:
        if self.accelerator.trackers:
            self.accelerator.log(values, step)

    def _write(self, row: dict[str, Any]) -> None:
        if not self.main:
            return
        try:
            with self.file.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")
        except OSError as error:
            raise IdgenError(
                f"cannot write {self.file}: {error.strerror}; free some space and run the same command again"
            ) from None
        words = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()]
        say(" ".join(words))


def read_log(file: Path) -> list[dict[str, Any]]:
    """The rows of a log.jsonl; a line that a kill cut short is left out."""
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def _memory(device: torch.device) -> float:
    """Gigabytes at the peak: of the device, or else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak / 1e6
