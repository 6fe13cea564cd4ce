"""The loop: a killed training goes on exactly where it was, and never leaves a half-written checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from idgen.checkpoint import load_weights, save_weights
from idgen.errors import IdgenError
from idgen.train.checkpoints import load_newest, save_checkpoint
from idgen.train.config import TrainConfig
from idgen.train.loop import Batch, Stage, fit


class Line(Stage[TrainConfig]):
    """Fits a line, with dropout, so that every kind of randomness takes part."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def batch(self, rng: np.random.Generator) -> Batch:
        x = torch.from_numpy(rng.normal(size=(self.config.train_batch_size, 4)).astype(np.float32))
        return {"x": x, "y": x.sum(1, keepdim=True)}

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        return {"loss": (model(batch["x"] + 0.01 * torch.randn(batch["x"].shape)) - batch["y"]).pow(2).mean()}

    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        return {"weight": float(self.module[0].weight.sum())}, Image.new("RGB", (2, 2))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / "line.safetensors", self.module.state_dict())

    def load(self, folder: Path) -> None:
        self.module.load_state_dict(load_weights(folder / "line.safetensors"))


class DiesAt(Line):
    """The same, killed before a given step."""

    step = 25

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        if round(progress * self.config.max_train_steps) == self.step:
            raise RuntimeError("killed")
        return super().losses(model, batch, progress)


class Explodes(Line):
    """Every loss is infinite."""

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        return {"loss": super().losses(model, batch, progress)["loss"] * float("inf")}


def _config(folder: Path, **changes: Any) -> TrainConfig:
    values = {"max_train_steps": 40, "train_batch_size": 8, "checkpointing_steps": 10, "validation_steps": 40}
    return TrainConfig(output_dir=folder, mixed_precision="no", log_steps=1, num_threads=1, **(values | changes))


def _losses(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    fit(Line, _config(tmp_path / "whole"))
    with pytest.raises(RuntimeError, match="killed"):
        fit(DiesAt, _config(tmp_path / "broken"))
    fit(Line, _config(tmp_path / "broken"))
    whole, broken = (
        load_newest(tmp_path / "whole", torch.device("cpu")),
        load_newest(tmp_path / "broken", torch.device("cpu")),
    )
    assert whole is not None and broken is not None
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, broken["model"][name])
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "broken")


def test_the_loss_falls(tmp_path: Path) -> None:
    fit(Line, _config(tmp_path, max_train_steps=200, learning_rate=0.02, lr_warmup_steps=5))
    losses = list(_losses(tmp_path).values())
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    fit(Line, _config(tmp_path))
    fit(Line, _config(tmp_path))
    assert max(_losses(tmp_path)) == 40


def test_a_training_can_start_from_finished_weights(tmp_path: Path) -> None:
    weights = fit(Line, _config(tmp_path / "first", ema_decay=0.0))
    fit(Line, _config(tmp_path / "second", start_from=weights, max_train_steps=1, learning_rate=1e-12))
    first, second = (
        load_newest(tmp_path / "first", torch.device("cpu")),
        load_newest(tmp_path / "second", torch.device("cpu")),
    )
    assert first is not None and second is not None
    assert torch.allclose(first["model"]["0.weight"], second["model"]["0.weight"], atol=1e-6)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"step": step}, keep=2)
    newest = tmp_path / "checkpoint-2.pt"
    newest.write_bytes(newest.read_bytes()[:50])
    state = load_newest(tmp_path, torch.device("cpu"))
    assert state is not None and state["step"] == 1


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        save_checkpoint(tmp_path, step, {"step": step}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10.pt", "checkpoint-100.pt"]


def test_steps_that_are_not_finite_change_nothing_and_end_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(IdgenError, match=r"not finite.*lower learning_rate"):
        fit(Explodes, _config(tmp_path, max_train_steps=500, checkpointing_steps=500))


def test_an_output_folder_that_cannot_be_written_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(IdgenError, match="cannot write"):
        fit(Line, _config(tmp_path / "file" / "run"))
