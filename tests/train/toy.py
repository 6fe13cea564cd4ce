"""A stage that fits a curve in a blink, for tests of the loop that need processes of their own.

    python -m tests.train.toy --output_dir runs/toy --set report_to=none

`python -m tests.train.toy kill ROUNDS WHOLE BROKEN SEED` trains WHOLE unbroken, and BROKEN in processes that are killed so often.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from idgen.checkpoint import load_weights, save_weights
from idgen.train.config import TrainConfig
from idgen.train.loop import Batch, Stage, fit, run

STEPS = 60


class ToyConfig(TrainConfig):
    """Settings of the toy."""

    dropout: float = 0.2


class Toy(Stage[ToyConfig]):
    """A small convolutional network with dropout that learns to smooth noise."""

    def __init__(self, config: ToyConfig, device: torch.device) -> None:
        super().__init__(config, device)
        dropped = nn.Dropout(config.dropout)
        self.module = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(2, 8), dropped, nn.Conv2d(8, 2, 3, padding=1)
        )

    def batch(self, rng: np.random.Generator) -> Batch:
        noise = rng.normal(size=(self.config.train_batch_size, 2, 6, 6)).astype(np.float32)
        return {"noise": torch.from_numpy(noise).to(self.device), "ids": [f"noise {row[0, 0, 0]:.3f}" for row in noise]}

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        seen = batch["noise"] + 0.1 * torch.randn_like(batch["noise"])
        wanted = nn.functional.avg_pool2d(batch["noise"], 3, 1, 1)
        return {"loss": (model(seen) - wanted).pow(2).mean()}

    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        seen = torch.ones(1, 2, 6, 6, device=self.device)
        return {"ones": float(self.module(seen).mean())}, Image.new("RGB", (2, 2))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / "toy.safetensors", self.module.state_dict())

    def load(self, folder: Path) -> None:
        self.module.load_state_dict(load_weights(folder / "toy.safetensors"))


def config(folder: Path, **changes: Any) -> ToyConfig:
    values: dict[str, Any] = {
        "output_dir": folder, "max_train_steps": STEPS, "train_batch_size": 4, "checkpointing_steps": 2, "validation_steps": 10,
        "log_steps": 1, "mixed_precision": "no", "num_threads": 1, "report_to": "none", "learning_rate": 0.01,
        "lr_warmup_steps": 5,
    }  # fmt: skip
    return ToyConfig(**(values | changes))


def killed(rounds: int, whole: Path, broken: Path, seed: int) -> dict[str, int]:
    """How many of so many trainings died, and how many of them while they wrote to the disk."""
    draw = random.Random(seed)
    _in_a_process(whole)
    told = {"killed": 0, "while_writing": 0}
    for turn in range(rounds):
        # Every other one at any instant; the rest on the way to the disk, at one of the flushes and renames of a save.
        writing = turn % 2 == 0
        deadly = _at_a_write(draw.randrange(1, 40)) if writing else _after(draw.randrange(1, 7), draw.uniform(0, 0.01))
        died = _in_a_process(broken, deadly)
        told["killed"] += died
        told["while_writing"] += died and writing
    _in_a_process(broken)
    return told


def _in_a_process(folder: Path, deadly: Callable[[], None] | None = None) -> bool:
    """Trains in a child; whether it was killed."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(folder.with_suffix(".err"), os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
        try:
            if deadly is not None:
                deadly()
            fit(Toy, config(folder))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise RuntimeError(folder.with_suffix(".err").read_text()[-2000:])
    return os.WIFSIGNALED(status)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _after(steps: int, seconds: float) -> Callable[[], None]:
    """SIGKILL so long after so many steps, wherever the process then is."""

    def deadly() -> None:
        losses, left = Toy.losses, [steps]

        def instead(self: Toy, *arguments: Any) -> dict[str, Tensor]:
            left[0] -= 1
            if left[0] == 0:
                threading.Timer(seconds, _die).start()
            return losses(self, *arguments)

        Toy.losses = instead  # type: ignore[method-assign]

    return deadly


def _at_a_write(count: int) -> Callable[[], None]:
    """SIGKILL in the place of the so-manieth call that changes what is on the disk."""

    def deadly() -> None:
        left = [count]

        def dying(call: Any) -> Any:
            def instead(*arguments: Any, **more: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    _die()
                return call(*arguments, **more)

            return instead

        for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir"):
            setattr(os, name, dying(getattr(os, name)))

    return deadly


if __name__ == "__main__":
    if sys.argv[1:2] == ["kill"]:
        print(json.dumps(killed(int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))))
    else:
        run(Toy, ToyConfig)
