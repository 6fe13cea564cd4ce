"""The tables of cached training and of a loss of identity over the noise levels, at a tiny size."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import cached_training, identity_schedules
from idgen import cli
from idgen.evaluation.rendered import Photos
from idgen.models.mini_detector import MiniDetector
from idgen.train.adapter import AdapterStage, AdapterTrainConfig
from idgen.train.loop import fit
from tests.benchmarks.test_mini_bars import noise_photos
from tests.tiny_family import face_in_the_middle, tiny_family


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDGEN_MINI", str(tiny_family(tmp_path / "mini")))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)


def noise(people: range, shots: range, **_: Any) -> Photos:
    return noise_photos(people, shots)


def test_cached_and_uncached_steps_are_timed(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(cached_training, "take_photos", noise)
    words = ["--people", "2", "--steps", "1", "--rounds", "1", "--batch", "2", "--resolution", "64", "--device", "cpu"]
    cached_training.main([*words, "--json", str(tmp_path / "c.json"), "--threads", "1"])
    stored = json.loads((tmp_path / "c.json").read_text())
    assert stored["ratio"] == pytest.approx(
        stored["seconds_per_step"]["uncached"] / stored["seconds_per_step"]["cached"]
    )
    assert "| cached over uncached |" in capsys.readouterr().out


def test_every_schedule_is_trained_from_the_same_start_and_measured(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    data = tmp_path / "data"
    assert cli.main(["synth", "--people", "3", "--shots", "3", "--out", str(data), "--workers", "1"]) == 0
    plain = AdapterTrainConfig(
        output_dir=tmp_path / "plain", data=data, settings={"rank": 2}, max_train_steps=1, train_batch_size=2,
        num_threads=1, report_to="none",
    )  # fmt: skip
    start = fit(AdapterStage, plain) / "adapter.safetensors"
    monkeypatch.setattr(identity_schedules, "take_photos", noise)
    words = ["--people", "10", "--images", "2", "--steps", "1", "--seeds", "0", "1", "--minutes", "0.0001"]
    places = ["--adapter", str(start), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    changes = [f"data={data}", f"validation={data}", "num_threads=1", "train_batch_size=2", "report_to=none"]
    changes += ["check.held_out=null", "check.people=2", "check.steps=1"]
    words += ["--device", "cpu", "--json", str(tmp_path / "s.json"), "--arms", "none", "scaled"]
    identity_schedules.main([*words, *places, *(word for change in changes for word in ("--set", change))])
    stored = json.loads((tmp_path / "s.json").read_text())
    assert set(stored["arms"]) == {"none", "scaled"} and len(stored["arms"]["scaled"]) == 2
    assert {"id_score", "rank_one", "sharpness", "held_out_loss", "detection"} <= set(stored["arms"]["none"][0])
    assert "| scaled over none |" in capsys.readouterr().out


@pytest.mark.parametrize("arm", sorted(identity_schedules.ARMS))
def test_arms_differ_in_the_schedule_alone(tmp_path: Path, arm: str) -> None:
    args = argparse.Namespace(out=tmp_path, minutes=2.0, weight=0.1, adapter=Path("a.safetensors"), set=[])
    settings = identity_schedules.settings_of(args, arm, 3)
    assert (settings.max_minutes, settings.seed, settings.adapter) == (2.0, 3, Path("a.safetensors"))
    assert settings.identity_weight == (0 if arm == "none" else 0.1)
    if arm != "none":
        assert settings.identity_schedule == arm


def test_the_held_out_loss_is_the_same_every_time(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert cli.main(["synth", "--people", "3", "--shots", "2", "--out", str(data), "--workers", "1"]) == 0
    config = AdapterTrainConfig(output_dir=tmp_path / "out", data=data, validation=data, settings={"rank": 2})
    stage = AdapterStage(config, torch.device("cpu"))
    one = identity_schedules.held_out_loss(stage.subject, config, torch.device("cpu"))
    assert one == identity_schedules.held_out_loss(stage.subject, config, torch.device("cpu")) and np.isfinite(one)
