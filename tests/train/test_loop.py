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

from idgen.checkpoint import load_training_state, load_weights, save_weights
from idgen.errors import IdgenError
from idgen.train.checkpoints import STATE, damage, newest_first
from idgen.train.config import TrainConfig
from idgen.train.loop import Batch, Stage, fit
from idgen.train.train_log import read_log


class Line(Stage[TrainConfig]):
    """Fits a line, with dropout, so that every kind of randomness takes part."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def batch(self, rng: np.random.Generator) -> Batch:
        x = torch.from_numpy(rng.normal(size=(self.config.train_batch_size, 4)).astype(np.float32))
        return {"x": x, "y": x.sum(1, keepdim=True), "ids": [f"photo {int(1000 * row[0])}" for row in x]}

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
    values["report_to"] = "none"
    return TrainConfig(output_dir=folder, mixed_precision="no", log_steps=1, num_threads=1, **(values | changes))


def _losses(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def _state(folder: Path) -> dict[str, Any]:
    newest = newest_first(folder)[0]
    assert damage(newest) is None
    return load_training_state(newest / STATE)


def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    fit(Line, _config(tmp_path / "whole"))
    with pytest.raises(RuntimeError, match="killed"):
        fit(DiesAt, _config(tmp_path / "broken"))
    fit(Line, _config(tmp_path / "broken"))
    whole, broken = _state(tmp_path / "whole"), _state(tmp_path / "broken")
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, broken["model"][name])
    for one, other in zip(whole["average"]["shadow_params"], broken["average"]["shadow_params"], strict=True):
        assert torch.equal(one, other)
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "broken")
    # What was told after the checkpoint is told once, not twice.
    steps = [row["step"] for row in read_log(tmp_path / "broken" / "log.jsonl") if "loss" in row]
    assert steps == list(range(1, 41))


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
    first, second = _state(tmp_path / "first"), _state(tmp_path / "second")
    assert torch.allclose(first["model"]["0.weight"], second["model"]["0.weight"], atol=1e-6)


def test_weights_of_another_model_to_start_from_are_one_line(tmp_path: Path) -> None:
    class Other(Line):
        def load(self, folder: Path) -> None:
            torch.nn.Linear(3, 3).load_state_dict(torch.nn.Linear(2, 2).state_dict())

    with pytest.raises(IdgenError, match=r"start_from: the weights in .* are not of the model"):
        fit(Other, _config(tmp_path / "out", start_from=tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("harm", ["cut", "changed", "missing", "manifest"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path: Path, harm: str, capsys: Any) -> None:
    fit(Line, _config(tmp_path / "whole"))
    fit(Line, _config(tmp_path / "harmed", max_train_steps=20))
    newest, before = newest_first(tmp_path / "harmed")
    assert (newest.name, before.name) == ("checkpoint-20", "checkpoint-10")
    file = newest / ("manifest.json" if harm == "manifest" else STATE)
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    {"cut": lambda: file.write_bytes(content[:50]), "missing": file.unlink}.get(
        harm, lambda: file.write_bytes(content if harm == "changed" else b"{")
    )()
    fit(Line, _config(tmp_path / "harmed"))
    said = capsys.readouterr().err
    assert "checkpoint-20 is damaged" in said and "trying the one before" in said and "resumed at step 10" in said
    assert torch.equal(
        _state(tmp_path / "whole")["model"]["0.weight"], _state(tmp_path / "harmed")["model"]["0.weight"]
    )


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    fit(Line, _config(tmp_path))
    assert [path.name for path in newest_first(tmp_path)] == ["checkpoint-40", "checkpoint-30"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_training_started_anew_outlives_the_one_that_was_there(tmp_path: Path) -> None:
    fit(Line, _config(tmp_path))
    fit(Line, _config(tmp_path, resume=False, seed=1, max_train_steps=10))
    assert [path.name for path in newest_first(tmp_path)] == ["checkpoint-10"]
    assert sorted(_losses(tmp_path)) == list(range(1, 11))


def test_steps_that_are_not_finite_change_nothing_and_end_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        IdgenError, match=r"more than 5 steps were not finite, the last at step 6 with photo .*rate"
    ) as caught:
        fit(Explodes, _config(tmp_path, max_train_steps=500, checkpointing_steps=500, max_skipped_steps=5))
    assert "\n" not in str(caught.value)
    rows = [row for row in read_log(tmp_path / "log.jsonl") if "not_finite" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and len(rows[0]["not_finite"]) == 8


class StumblesOnce(Line):
    """One step whose loss is no number."""

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        made = super().losses(model, batch, progress)
        return {"loss": made["loss"] * (float("nan") if 0.5 <= progress < 0.52 else 1)}


def test_one_step_that_is_not_finite_is_left_out_and_counted(tmp_path: Path) -> None:
    fit(StumblesOnce, _config(tmp_path))
    assert all(torch.isfinite(value).all() for value in _state(tmp_path)["model"].values())
    figures = json.loads((tmp_path / "report" / "figures.json").read_text())
    assert [row["step"] for row in figures["not_finite"]] == [21]
    assert read_log(tmp_path / "log.jsonl")[-1]["skipped_steps"] == 1
    assert "1 steps were not finite and left out" in (tmp_path / "report" / "README.md").read_text()


class Forgets(Line):
    """Validation does not fit into memory."""

    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def test_a_validation_out_of_memory_does_not_end_the_training(tmp_path: Path) -> None:
    weights = fit(Forgets, _config(tmp_path, validation_steps=20))
    assert (weights / "line.safetensors").exists() and max(_losses(tmp_path)) == 40
    figures = json.loads((tmp_path / "report" / "figures.json").read_text())
    assert figures["validations_out_of_memory"] == [0, 20, 40]


def test_a_resumed_training_with_other_settings_says_which_and_how_to_go_on(tmp_path: Path, capsys: Any) -> None:
    fit(Line, _config(tmp_path, max_train_steps=20))
    with pytest.raises(
        IdgenError, match=r"seed: 0 -> 3; learning_rate: 0.0006 -> 0.1.*--resume_changed true"
    ) as caught:
        fit(Line, _config(tmp_path, seed=3, learning_rate=0.1))
    assert "\n" not in str(caught.value) and max(_losses(tmp_path)) == 20
    fit(Line, _config(tmp_path, seed=3, learning_rate=0.1, resume_changed=True))
    assert "goes on with changed settings: " in capsys.readouterr().err and max(_losses(tmp_path)) == 40
    # How long it takes and how much it tells is no other training.
    fit(Line, _config(tmp_path, seed=3, learning_rate=0.1, max_train_steps=60, validation_steps=7))
    assert max(_losses(tmp_path)) == 60


class Halved(Line):
    """The same at half the learning rate."""

    def groups(self) -> list[dict[str, Any]]:
        return [group | {"rate": 0.5} for group in super().groups()]


def test_the_optimiser_goes_on_with_the_changed_settings_that_were_asked_for(tmp_path: Path) -> None:
    fit(Line, _config(tmp_path, max_train_steps=20))
    fit(Halved, _config(tmp_path, adam_weight_decay=0.5, adam_beta2=0.9, resume_changed=True))
    state = _state(tmp_path)["optimizer"]
    assert {float(one["step"]) for one in state["state"].values()} == {40}, "its moments were kept"
    (group,) = state["param_groups"]
    assert (group["rate"], group["weight_decay"], tuple(group["betas"])) == (0.5, 0.5, (0.9, 0.9))


class Wider(Line):
    """Another model under the same settings."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.module = nn.Sequential(nn.Linear(4, 9), nn.Dropout(0.5), nn.Linear(9, 1))


def test_a_checkpoint_of_another_model_is_one_line(tmp_path: Path) -> None:
    fit(Line, _config(tmp_path, max_train_steps=20))
    with pytest.raises(IdgenError, match=r"does not fit this training .*size mismatch.*--resume false") as caught:
        fit(Wider, _config(tmp_path))
    assert "\n" not in str(caught.value)


def test_accumulated_gradients_are_those_of_the_batches_together(tmp_path: Path) -> None:
    plain = {"max_train_steps": 3, "ema_decay": 0.0}

    class Still(Line):
        """Without dropout or noise, on the same numbers however they are cut into batches."""

        def __init__(self, config: TrainConfig, device: torch.device) -> None:
            super().__init__(config, device)
            self.module, self.count = nn.Sequential(nn.Linear(4, 1)), 0

        def batch(self, rng: np.random.Generator) -> Batch:
            size = self.config.train_batch_size
            x = torch.arange(12 * 16 * 4, dtype=torch.float32).sin().view(-1, 4)[self.count : self.count + size]
            self.count += size
            return {"x": x, "y": x.sum(1, keepdim=True)}

        def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
            return {"loss": (model(batch["x"]) - batch["y"]).pow(2).mean()}

    fit(Still, _config(tmp_path / "one", train_batch_size=16, **plain))
    fit(Still, _config(tmp_path / "four", train_batch_size=4, gradient_accumulation_steps=4, **plain))
    one, four = _state(tmp_path / "one")["model"], _state(tmp_path / "four")["model"]
    assert torch.allclose(one["0.weight"], four["0.weight"], atol=1e-6)
    assert _losses(tmp_path / "one") == pytest.approx(_losses(tmp_path / "four"), abs=1e-5)


def test_a_dry_run_takes_two_steps_and_keeps_nothing(tmp_path: Path, capsys: Any) -> None:
    fit(Line, _config(tmp_path / "run", dry_run=True, max_train_steps=10**6))
    said = capsys.readouterr().err
    assert "step 2 " in said and "step 3 " not in said and "dry run: two steps" in said
    assert list(tmp_path.iterdir()) == []


def test_the_report_is_one_folder_with_curves_grids_settings_and_a_card(tmp_path: Path) -> None:
    fit(Line, _config(tmp_path, validation_steps=20))
    report = tmp_path / "report"
    assert {path.name for path in report.iterdir()} == {
        "README.md",
        "config.yaml",
        "curves.png",
        "figures.json",
        "grids",
    }
    assert [path.name for path in sorted((report / "grids").iterdir())] == ["000000.png", "000020.png", "000040.png"]
    with Image.open(report / "curves.png") as curves:
        assert curves.width > 400 and len(set(curves.convert("L").tobytes())) > 2
    card = (report / "README.md").read_text()
    assert card.startswith("---\nlibrary_name") and "Fits a line" in card and "| weight |" in card


def test_losses_memory_and_the_time_left_are_told(tmp_path: Path) -> None:
    fit(Line, _config(tmp_path))
    row = next(row for row in read_log(tmp_path / "log.jsonl") if row["step"] == 20 and "loss" in row)
    assert {"loss", "images_per_second", "minutes_left", "memory_gb", "lr"} <= set(row) and row["memory_gb"] > 0.05


def test_trackers_get_the_curves(tmp_path: Path) -> None:
    fit(Line, _config(tmp_path, report_to="auto"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "trackers"))
    events.Reload()
    assert len(events.Scalars("loss")) == 40 and "validation/weight" in events.Tags()["scalars"]
    assert "grid" in events.Tags()["images"]


def test_a_tracker_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(IdgenError, match=r"report_to names 'wandbb'; here there are none, tensorboard"):
        fit(Line, _config(tmp_path, report_to="wandbb"))


def test_gradient_checkpointing_needs_a_model_that_can(tmp_path: Path) -> None:
    with pytest.raises(IdgenError, match="leave gradient_checkpointing out"):
        fit(Line, _config(tmp_path, gradient_checkpointing=True))


def test_an_output_folder_that_cannot_be_written_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(IdgenError, match="cannot write"):
        fit(Line, _config(tmp_path / "file" / "run"))
