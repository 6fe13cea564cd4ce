"""The one training loop: every stage is a module that turns a batch into losses, and this runs it.

What a batch sees depends on (seed, step, its number within the step) alone. So a training that was killed goes on exactly
where it was, and two processes see the batches that one would see that accumulates gradients over two.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
    set_seed,
)
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from PIL import Image
from torch import Tensor, nn

from idgen.console import say
from idgen.devices import usable_cores
from idgen.errors import IdgenError
from idgen.files import atomic_write, check_output
from idgen.train.average_weights import Average
from idgen.train.checkpoints import SHARDED, Checkpoints, Place
from idgen.train.config import TrainConfig, dump, parse_config
from idgen.train.final_report import write_report
from idgen.train.sharded_weights import prepare_deepspeed, refuse_sharding, whole
from idgen.train.train_log import TrainLog, trackers

# Settings that name weights made elsewhere.
GIVEN = (
    "start_from", "vae", "unet", "text_encoder", "tokenizer", "base", "recogniser", "detector", "words_probe", "reader",
)  # fmt: skip
Config = TypeVar("Config", bound=TrainConfig)
Batch = dict[str, Any]


class Stage(ABC, Generic[Config]):
    """One kind of training. `module` holds all that is trained; frozen helpers live on the stage itself."""

    module: nn.Module
    # Why training ends before its time: `validate` may say so.
    stopped: str | None = None
    # Whether `module` is the whole model. Where it is a small part of one that stands beside it, there is nothing to shard.
    shardable: bool = True

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device

    @abstractmethod
    def batch(self, rng: np.random.Generator) -> Batch:
        """Draws a batch; all randomness comes from `rng`. "ids", if it is there, names its samples in errors."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Scalars by name; "loss" is minimised, the others are logged. `progress` runs from 0 to 1."""

    @abstractmethod
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        """Figures on held-out people and a picture to look at, by the averaged weights."""

    def groups(self) -> list[dict[str, Any]]:
        """The trained parameters as the optimiser's groups; `rate` multiplies the learning rate."""
        return [{"params": [p for p in self.module.parameters() if p.requires_grad], "rate": 1.0}]

    def models(self) -> Sequence[nn.Module]:
        """Those that gradients pass through, for gradient checkpointing."""
        return [self.module]

    def about(self) -> dict[str, Any]:
        """What the report should say of the data: what was left out, and why."""
        return {}

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
    _check_given(config)
    if config.dry_run:
        return _rehearse(stage_type, config)
    check_output(config.output_dir, folder=True)
    accelerator = _accelerator(config)
    set_seed(config.seed)
    with accelerator.main_process_first():  # it fills the caches that the others then read
        stage = stage_type(config, accelerator.device)
    refuse_sharding(accelerator, stage.shardable)
    if config.start_from:
        _load(stage, config.start_from)
    # Not before: what the settings name is there, and a mistake in them leaves nothing behind.
    config.output_dir.mkdir(parents=True, exist_ok=True)
    if accelerator.log_with:
        accelerator.init_trackers("trackers")
    if config.gradient_checkpointing:
        _recompute(stage.models())
    # FSDP and DeepSpeed take no other layout than the plain one.
    plain = accelerator.distributed_type in SHARDED
    layout = torch.contiguous_format if plain else torch.channels_last
    stage.module.to(accelerator.device, memory_format=layout)  # type: ignore[call-overload]  # torch declares it not
    optimizer = torch.optim.AdamW(
        stage.groups(),
        config.learning_rate,
        (0.9, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        fused=True,
    )
    prepare_deepspeed(accelerator, config)
    model, optimizer = accelerator.prepare(stage.module, optimizer)
    trained = [p for p in stage.module.parameters() if p.requires_grad]
    average = Average(trained, config.ema_decay)
    checkpoints = Checkpoints(config, accelerator, model, optimizer, average)
    place = checkpoints.resume()
    log = TrainLog(config, accelerator)
    log.rewind(place.step)
    if accelerator.is_main_process:
        with atomic_write(config.output_dir / "config.yaml") as temporary:
            temporary.write_text(dump(config), encoding="utf-8")
        if place.step:
            say(f"resumed at step {place.step}")
        say(f"{sum(p.numel() for p in trained) / 1e6:.2f} M trained parameters on {accelerator.device}")

    weights = config.output_dir / "weights"

    def validate() -> None:
        _validate(stage, accelerator, model, average, log, place)

    started = time.monotonic() - place.elapsed
    progress = _progress(config, place.step, place.elapsed)
    if (place.step == 0 and config.validation_at_start) or (progress >= 1 and not weights.exists()):
        validate()
    batches = _Batches(stage, config, accelerator)
    while progress < 1 and not stage.stopped:
        rate = config.learning_rate * _rate(config, place.step, progress)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        stage.module.train()
        seen, told = [], []
        for turn in range(config.gradient_accumulation_steps):
            seed, batch = batches(place.step, turn)
            torch.manual_seed(seed)
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    losses = stage.losses(model, batch, progress)
                accelerator.backward(losses["loss"])
                norm = (
                    accelerator.clip_grad_norm_(trained, config.max_grad_norm) if accelerator.sync_gradients else None
                )
            seen.append(batch)
            told.append(losses)
        batches.draw_ahead(place.step + 1)  # while the device still works
        if _step(accelerator, optimizer, norm):
            average.step()
        else:
            place.skipped += 1
            ids = _ids(seen, config, place.step)
            log.skipped(place.step + 1, ids)
            if place.skipped > config.max_skipped_steps:
                raise IdgenError(
                    f"more than {config.max_skipped_steps} steps were not finite, the last at step {place.step + 1} with"
                    f" {', '.join(ids)}: lower learning_rate, or look at these samples"
                )
        optimizer.zero_grad()
        place.step += 1
        place.elapsed = time.monotonic() - started
        progress = _agreed(_progress(config, place.step, place.elapsed), config, accelerator)
        log.step(place.step, place.elapsed, progress, rate, told)
        if progress >= 1 or place.step % config.validation_steps == 0:
            validate()
        # After the validation: whoever goes on from here has no figures to make up for.
        if progress >= 1 or stage.stopped or place.step % config.checkpointing_steps == 0:
            checkpoints.save(place)
    if stage.stopped and accelerator.is_main_process:
        say(f"ended early: {stage.stopped}")
    if accelerator.is_main_process:
        write_report(config, type(stage).__doc__ or "", {"data": stage.about(), "stopped": stage.stopped})
    accelerator.wait_for_everyone()
    log.close()
    return weights


def _check_given(config: TrainConfig) -> None:
    """Raises IdgenError for weights that a setting names and that are not there: libraries would look for them on a hub."""
    for name in GIVEN:
        path = getattr(config, name, None)
        if isinstance(path, Path) and not path.exists():
            raise IdgenError(
                f"{name}: no such file or folder: {path}; give --{name}, or train it first (docs/training.md says by what)"
            )


class _Batches:
    """Draws the batches of a step, each by the seed, the step and its number among all that make up the step."""

    def __init__(self, stage: Stage[Any], config: TrainConfig, accelerator: Accelerator) -> None:
        self.stage, self.seed = stage, config.seed
        self.processes, self.process = accelerator.num_processes, accelerator.process_index
        self.ahead: tuple[int, int, Batch] | None = None

    def __call__(self, step: int, turn: int) -> tuple[int, Batch]:
        """The seed of torch's generator, and the batch."""
        if turn == 0 and self.ahead and self.ahead[0] == step:
            _, seed, batch = self.ahead
            self.ahead = None
            return seed, batch
        rng = np.random.default_rng((self.seed, step, turn * self.processes + self.process))
        seed = int(rng.integers(2**62))
        torch.manual_seed(seed)
        return seed, self.stage.batch(rng)

    def draw_ahead(self, step: int) -> None:
        """Prepares the first batch of a step."""
        self.ahead = (step, *self(step, 0))


def _accelerator(config: TrainConfig) -> Accelerator:
    if not torch.cuda.is_available():
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(config.num_threads or max(1, usable_cores() // processes))
        torch.set_flush_denormal(True)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=trackers(config.report_to) or None,
        project_dir=config.output_dir,
        # A loss that acts late, or on some samples, leaves parameters without a gradient; caches take a while to fill.
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=timedelta(hours=4)),
        ],
    )
    return accelerator


def _validate(
    stage: Stage[Any], accelerator: Accelerator, model: nn.Module, average: Average, log: TrainLog, place: Place
) -> None:
    """Figures, a grid and the finished weights by the averaged weights; what does not fit into memory is left out."""
    if accelerator.is_main_process or accelerator.distributed_type in SHARDED:
        with average.in_place(), whole(accelerator, model):
            stage.module.eval()
            reason = None
            try:
                with torch.no_grad(), accelerator.autocast():
                    figures, picture = stage.validate()
            except (MemoryError, RuntimeError) as error:
                if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
                    raise
                reason = " ".join(str(error).split())[:200] or "out of memory"
            if reason is None:
                log.validation(place.step, place.elapsed, place.skipped, figures, picture)
            else:
                log.failed(place.step, reason)
                clear_device_cache(garbage_collection=True)
        with average.in_place(), whole(accelerator, model):
            if accelerator.is_main_process and place.step:
                stage.save(stage.config.output_dir / "weights")
    if accelerator.num_processes > 1:
        stage.stopped = broadcast_object_list([stage.stopped])[0]


def _step(accelerator: Accelerator, optimizer: Any, norm: Any) -> bool:
    """The optimiser's step; False where the gradient is not finite, which changes nothing."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # it has stepped within the backward pass
        return norm is None or math.isfinite(float(norm))
    if accelerator.scaler is not None:
        optimizer.step()  # the scaler leaves out what is not finite, and scales less
        return not optimizer.step_was_skipped or accelerator.scaler.get_scale() >= 1
    if not torch.isfinite(norm.full_tensor() if hasattr(norm, "full_tensor") else norm):
        return False
    optimizer.step()
    return True


def _load(stage: Stage[Any], folder: Path) -> None:
    try:
        stage.load(folder)
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise IdgenError(
            f"start_from: the weights in {folder} are not of the model that these settings make ({reason})"
        ) from error


def _recompute(models: Sequence[nn.Module]) -> None:
    switched = False
    for model in models:
        for part in model.modules():
            # diffusers' and transformers' names for the same
            switch = getattr(part, "enable_gradient_checkpointing", None) or getattr(
                part, "gradient_checkpointing_enable", None
            )
            if switch is not None and getattr(part, "_supports_gradient_checkpointing", True):
                switch()
                switched = True
    if not switched:
        raise IdgenError("nothing in this training can compute activations again: leave gradient_checkpointing out")


def _ids(batches: Sequence[Batch], config: TrainConfig, step: int) -> list[str]:
    """What the batches of a step are of; of those that do not say, how to draw them again."""
    own = []
    for turn, batch in enumerate(batches):
        own += [str(one) for one in batch["ids"]] if "ids" in batch else [f"batch ({config.seed}, {step}, {turn})"]
    return gather_object(own)


def _agreed(progress: float, config: TrainConfig, accelerator: Accelerator) -> float:
    """Clocks differ: the main process's counts."""
    if config.max_minutes is None or accelerator.num_processes == 1:
        return progress
    return float(broadcast_object_list([progress])[0])


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


def _rehearse(stage_type: Callable[[Any, torch.device], Stage[Any]], config: TrainConfig) -> Path:
    """A dry run: everything that a training does, at a small size, in a folder beside the one that is meant."""
    folder = config.output_dir.with_name(f".{config.output_dir.name}.dry-run")
    small = config.shrunk().model_copy(update={"output_dir": folder})
    try:
        fit(stage_type, small)
        if PartialState().is_main_process:
            say("dry run: two steps, a validation and a checkpoint went well; nothing was kept")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return config.output_dir / "weights"


def _fail(line: str, status: int) -> int:
    say(line)
    return status
