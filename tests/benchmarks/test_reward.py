"""The tables of training by reward and of what decoding for it costs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks import decode_cost, reward
from benchmarks.faces import Vectors
from benchmarks.report import Report
from idgen.devices import resolve_device
from idgen.models.mini_detector import MiniDetector
from idgen.train.reward import build_subject
from tests.tiny_family import face_in_the_middle, tiny_family


def row(**changes: float) -> dict[str, float]:
    return {"id_score": 0.4, "rank_one": 0.3, "detection": 1.0, "diversity": 0.2} | changes


def test_gains_are_over_plain_training_of_the_same_seed_and_losses_of_the_start(capsys) -> None:
    report = Report("rewards")
    figures = {
        "start": [row(), row(diversity=0.4)],
        "plain": [row(id_score=0.5), row(id_score=0.7)],
        "reward": [row(id_score=0.6, diversity=0.19), row(id_score=0.8, diversity=0.36)],
    }
    reward.add_rows(report, "arc2face", figures)
    report.publish(None)
    table = capsys.readouterr().out
    assert "| arc2face, reward: id_score over plain training | +0.100 ± 0.000 | +0.03 |" in table
    assert "| arc2face, reward: diversity against the start | -7.500 ± 3.536 % | -2% |" in table
    assert "rank one 0.300 ± 0.000" in table and "adherence" not in table
    assert report.numbers["arc2face"]["plain"][1]["id_score"] == 0.7


@pytest.mark.parametrize("subject", sorted(reward.RECIPES))
@pytest.mark.parametrize("arm", sorted(reward.ARMS))
def test_all_arms_start_alike_and_train_equally_long(subject: str, arm: str, tmp_path: Path) -> None:
    args = argparse.Namespace(out=tmp_path, minutes=3.0, set=["train_batch_size=2"])
    settings = reward._settings(args, subject, arm, 1)
    assert (settings.max_minutes, settings.seed, settings.train_batch_size) == (3.0, 1, 2)
    assert settings.output_dir == tmp_path / f"{subject}-{arm}-1"
    assert (settings.algorithm.name == "mse") == (arm == "plain")
    assert settings.guards.act == (arm == "reward") == bool(settings.anchor_weight)


class NoFaces:
    """In place of the recognisers: every picture is its own brightness."""

    def embed(self, images: torch.Tensor, *, keep: bool = False) -> Vectors:
        means = images.float().mean((2, 3)) + 1
        return Vectors(means, means)


def test_pictures_of_a_subject_are_drawn_and_measured(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("IDGEN_MINI", str(tiny_family(tmp_path / "mini")))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)
    args = argparse.Namespace(
        out=tmp_path, minutes=1.0, set=["model=mini"], images=2, steps=2, guidance=2.0, dtype="fp32"
    )
    made = build_subject(reward._settings(args, "arc2face", "reward", 0), resolve_device("cpu"))
    vectors = torch.nn.functional.normalize(torch.randn(3, 512))
    pictures = reward.draw(made, vectors, None, args, base=True, seed=0)
    assert pictures.shape == (3, 2, 32, 32, 3) and pictures.dtype == torch.uint8
    assert torch.equal(pictures, reward.draw(made, vectors, None, args, base=True, seed=0))
    figures = reward.measure(NoFaces(), pictures, torch.rand(3, 4, 3), None)  # type: ignore[arg-type]
    assert set(figures) == set(row()) and figures["detection"] == 1


def test_captions_are_of_shots_that_nobody_is_compared_with() -> None:
    asked = reward.captions_of(range(300_000, 300_002), images=2)
    assert len(asked) == 4 and all(one.text for one in asked)


@pytest.mark.parametrize("mode", decode_cost.MODES)
@pytest.mark.parametrize("part", decode_cost.PARTS)
def test_a_step_costs_time_and_memory(mode, part, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("IDGEN_MINI", str(tiny_family(tmp_path / "mini")))
    args = argparse.Namespace(one=(mode, part), family="mini", batch=1, rounds=1, face_share=0.4, device="cpu")
    cost = decode_cost.measure(args)
    assert cost["seconds"] > 0 and cost["megabytes"] >= 0 and json.dumps(cost)
