"""The one training loop: every stage is a module that turns a batch into losses, and this runs it.

What a step sees depends on (seed, step, process) alone, so a training that was killed goes on exactly where it was.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn

from idgen.console import say
from idgen.errors import IdgenError
from idgen.files import atomic_write, check_output
from idgen.train.checkpoints import load_newest, save_checkpoint
from idgen.train.config import TrainConfig, dump, parse_config

Config = TypeVar("Config", bound=TrainConfig)
Batch = dict[str, Any]


class Stage(ABC, Generic[Config]):
    """One kind of training. `module` holds all that is trained; frozen helpers live on the stage itself."""

    module: nn.Module
    # Why training ends before its time: `validate` may say so.
    stopped: str | None = None

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device

    @abstractmethod
    def batch(self, rng: np.random.Generator) -> Batch:
        """Draws a batch; all randomness comes from `rng`."""

    @abstractmethod
    def losses(self, model: Callable[..., Any], batch: Batch, progress: float) -> dict[str, Tensor]:
        """Scalars by name; "loss" is minimised, the others are logged. `progress` runs from 0 to 1."""

    @abstractmethod
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        """Figures on held-out people and a picture to look at, by the averaged weights."""

    def groups(self) -> list[dict[str, Any]]:
        """The trained parameters as the optimiser's groups; `rate` multiplies the learning rate."""
        return [{"params": [p for p in self.module.parameters() if p.requires_grad], "rate": 1.0}]

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the finished weights in the layout in which they ship."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Takes up weights that `save` wrote."""


def run(stage_type: Callable[[Any, torch.device], Stage[Any]], config_type: type[TrainConfig]) -> None:
    """Entry point of every script in this folder: parses the flags, trains, and shows a user's mistake as one line."""
    try:
        fit(stage_type, parse_config(config_type))
    except IdgenError as error:
        sys.exit(_fail(f"idgen: {error}", 2))
    except KeyboardInterrupt:
        sys.exit(_fail("idgen: stopped; the same command goes on from the newest checkpoint", 130))


def fit(stage_type: Callable[[Any, torch.device], Stage[Any]], config: TrainConfig) -> Path:
    """Trains one stage to its end and returns the folder with the finished weights."""
    check_output(config.output_dir)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    if not torch.cuda.is_available():
        torch.set_num_threads(config.num_threads or os.cpu_count() or 1)
        torch.set_flush_denormal(True)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    set_seed(config.seed)
    stage = stage_type(config, accelerator.device)
    if config.start_from:
        stage.load(config.start_from)
    stage.module.to(accelerator.device, memory_format=torch.channels_last)
    trained = [p for p in stage.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        stage.groups(),
        config.learning_rate,
        (0.9, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        fused=True,
    )
    # One kernel for all parameters instead of one each: on a GPU the launches would take as long as the step.
    ema = EMAModel(
        trained,
        decay=config.ema_decay,
        use_ema_warmup=True,
        inv_gamma=1.0,
        power=0.75,
        foreach=accelerator.device.type == "cuda",
    )
    model, optimizer = accelerator.prepare(stage.module, optimizer)
    step, elapsed = 0, 0.0
    if config.resume and (state := load_newest(config.output_dir, accelerator.device)):
        stage.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        step, elapsed = int(state["step"]), float(state["elapsed"])
        say(f"resumed at step {step}")
    if accelerator.is_main_process:
        with atomic_write(config.output_dir / "config.yaml") as temporary:
            temporary.write_text(dump(config))

    say(f"{sum(p.numel() for p in trained) / 1e6:.2f} M trained parameters on {accelerator.device}")
    log = _Log(config, accelerator)
    started = time.monotonic() - elapsed
    progress = _progress(config, step, elapsed)
    while progress < 1 and not stage.stopped:
        rate = config.learning_rate * _rate(config, step, progress)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        rng = np.random.default_rng((config.seed, step, accelerator.process_index))
        torch.manual_seed(int(rng.integers(2**62)))
        stage.module.train()
        batch = stage.batch(rng)
        with accelerator.autocast():
            losses = stage.losses(model, batch, progress)
        accelerator.backward(losses["loss"])
        norm = accelerator.clip_grad_norm_(trained, config.max_grad_norm)
        if torch.isfinite(norm):
            optimizer.step()
            ema.step(trained)
        else:
            log.skipped += 1
            if log.skipped > 100:
                raise IdgenError(f"more than 100 steps were not finite, the last at step {step}: lower learning_rate")
        optimizer.zero_grad(set_to_none=True)
        step += 1
        elapsed = time.monotonic() - started
        progress = _progress(config, step, elapsed)
        log.step(step, elapsed, rate, losses)
        done = progress >= 1
        if accelerator.is_main_process and (done or step % config.checkpointing_steps == 0):
            state = {
                "model": stage.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema.state_dict(),
                "step": step,
                "elapsed": elapsed,
            }
            save_checkpoint(config.output_dir, step, state, config.checkpoints_total_limit)
        if accelerator.is_main_process and (done or step % config.validation_steps == 0):
            ema.store(trained)
            ema.copy_to(trained)
            stage.module.eval()
            with torch.no_grad(), accelerator.autocast():
                figures, picture = stage.validate()
            log.validation(step, elapsed, figures, picture)
            stage.save(config.output_dir / "weights")
            ema.restore(trained)
        if accelerator.num_processes > 1 and (done or step % config.validation_steps == 0):
            stage.stopped = broadcast_object_list([stage.stopped])[0]
    if stage.stopped:
        say(f"ended early: {stage.stopped}")
    accelerator.wait_for_everyone()
    return config.output_dir / "weights"


def _progress(config: TrainConfig, step: int, elapsed: float) -> float:
    by_clock = elapsed / (60 * config.max_minutes) if config.max_minutes else 0.0
    return max(step / config.max_train_steps, by_clock)


def _rate(config: TrainConfig, step: int, progress: float) -> float:
    """Share of the learning rate: linear warm-up, flat, cosine fall over the last `lr_decay_share`."""
    warm = min(1.0, (step + 1) / max(1, config.lr_warmup_steps))
    left = 1 - progress
    if config.lr_decay_share == 0 or left >= config.lr_decay_share:
        return warm
    return warm * 0.5 * (1 - math.cos(math.pi * max(left / config.lr_decay_share, 0.01)))


class _Log:
    """Lines for the terminal and for log.jsonl."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.main = config, accelerator.is_main_process
        self.images = config.train_batch_size * accelerator.num_processes
        self.skipped = 0
        self.sums: dict[str, float] = {}
        self.count, self.mark = 0, time.monotonic()

    def step(self, step: int, elapsed: float, rate: float, losses: dict[str, Tensor]) -> None:
        if step % self.config.log_steps and step != 1:
            # Reading a loss waits for the device: only every few steps.
            self.count += 1
            return
        self.count += 1
        means = {name: float(value.detach()) for name, value in losses.items()}
        speed = self.images * self.count / (time.monotonic() - self.mark)
        self.count, self.mark = 0, time.monotonic()
        self._write(
            {"step": step, "minutes": round(elapsed / 60, 2), "lr": rate, "images_per_second": round(speed, 1), **means}
        )

    def validation(self, step: int, elapsed: float, figures: dict[str, float], picture: Image.Image | None) -> None:
        self._write(
            {"step": step, "minutes": round(elapsed / 60, 2), "validation": figures, "skipped_steps": self.skipped}
        )
        if picture is not None and self.main:
            with atomic_write(self.config.output_dir / "grids" / f"{step:06d}.png") as temporary:
                picture.save(temporary)
        self.mark = time.monotonic()

    def _write(self, row: dict[str, Any]) -> None:
        if not self.main:
            return
        with (self.config.output_dir / "log.jsonl").open("a") as handle:
            handle.write(json.dumps(row) + "\n")
        say(
            " ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )


def _fail(line: str, status: int) -> int:
    say(line)
    return status
