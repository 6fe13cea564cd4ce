"""The command behind the table of personalisation: trains, draws, judges, and prints every row."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import personal_prompts, personalise
from benchmarks.personal_prompts import adherence, edits
from idgen.errors import IdgenError
from idgen.evaluation.rendered import Photos
from idgen.models.mini_detector import MiniDetector
from idgen.models.probe import Reading
from idgen.train.config import dump
from tests.benchmarks.test_mini_bars import noise_photos
from tests.tiny_family import face_in_the_middle, tiny_family

TINY = [
    "max_train_steps=1",
    "train_batch_size=2",
    "num_inference_steps=1",
    "num_validation_images=1",
    "num_threads=1",
    "resolution=32",
    "adapter.rank=2",
    "adapter.block_size=4",
    'mixed_precision="no"',
    "prior.weight=0",
]


def larger_noise(*request: Any, **settings: Any) -> Photos:
    """Large enough for a face to count as one."""
    photos = noise_photos(*request, **settings)
    images = photos.images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return Photos(images, photos.landmarks * 2, photos.pose)


@pytest.mark.parametrize("condition", ["identity", "text"])
def test_every_row_is_measured(
    condition: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IDGEN_MINI", str(tiny_family(tmp_path / "mini")))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)
    monkeypatch.setattr(personalise, "take_photos", larger_noise)
    places = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "p.json")]
    counts = ["--people", "2", "--images", "2", "--steps", "1", "--strengths", "0.5", "1"]
    sheet = tmp_path / "sheet.png"
    more = ["--condition", condition, "--device", "cpu", "--dtype", "fp32", "--sheet", str(sheet)]
    personalise.main([*places, *counts, *more, *(word for setting in TINY for word in ("--set", setting))])
    table, stored = capsys.readouterr().out, json.loads((tmp_path / "p.json").read_text())
    for row in ("Arc2Face, zero-shot", "lora", "lora at 0.5", "oft", "lora: id_score over zero-shot", "oft: training"):
        assert f"| {row}" in table, row
    assert {"id_score", "gain", "minutes", "rank_one", "pixel_diversity", "faces_found"} <= stored["oft"].keys()
    assert stored["lora"]["minutes"]["most"] > 0 and sheet.stat().st_size > 1000
    if condition == "text":
        assert "lora: added words obeyed" in table and "text-to-face base: added words obeyed" in table
        assert {"lora", "oft", "id_score"} == stored["words_obeyed_at_equal_id_score"].keys()


def test_a_finished_training_keeps_its_seconds_and_a_broken_one_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def fit(_: Any, config: Any) -> None:
        begun.append((config.output_dir / "half").exists())
        config.output_dir.mkdir(parents=True)
        (config.output_dir / "config.yaml").write_text(dump(config))

    monkeypatch.setattr(personalise, "fit", fit)
    args = personalise._arguments(["--out", str(tmp_path)])
    half = tmp_path / "7" / "identity-lora" / "half"
    half.parent.mkdir(parents=True)
    half.touch()
    seconds = personalise._learn(args, "lora", 7)
    assert personalise._learn(args, "lora", 7) == pytest.approx(seconds, abs=0.01)
    moved = (tmp_path / "7").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    moved.rename(tmp_path / "elsewhere" / "7")
    args = personalise._arguments(["--out", str(tmp_path / "elsewhere")])
    assert personalise._learn(args, "lora", 7) == pytest.approx(seconds, abs=0.01)
    assert begun == [False], "trained once, and not from what was left behind"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--seed", "1"], "seed: 0 -> 1"),
        (["--set", "max_train_steps=7"], "max_train_steps: 220 -> 7"),
        (["--set", "adapter.rank=2"], "adapter.rank: 8 -> 2"),
        (["--config", "another.yaml"], "learning_rate: 0.0005 -> 0.1"),
    ],
    ids=" ".join,
)
def test_a_finished_training_with_other_settings_is_not_reused(
    flags: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(_: Any, config: Any) -> None:
        config.output_dir.mkdir(parents=True)
        (config.output_dir / "config.yaml").write_text(dump(config))

    monkeypatch.setattr(personalise, "fit", fit)
    monkeypatch.chdir(tmp_path)
    recipe = personalise.RECIPE.read_text(encoding="utf-8")
    Path("another.yaml").write_text(recipe.replace("learning_rate: 5.0e-4", "learning_rate: 0.1"), encoding="utf-8")
    personalise._learn(personalise._arguments(["--out", "out"]), "lora", 7)
    with pytest.raises(IdgenError, match=re.escape(named)) as caught:
        personalise._learn(personalise._arguments(["--out", "out", *flags]), "lora", 7)
    assert "another --out" in str(caught.value)
    assert (tmp_path / "out" / "7" / "identity-lora" / personalise.SECONDS).is_file()


def test_words_are_counted_person_by_person_and_attribute_by_attribute() -> None:
    names = {attribute: ["shown", "other"] for attribute in ("expression", "glasses", "head")}
    monkeyed = {edit: replace(edit, values=frozenset(["shown"])) for edit in edits()}
    classes = torch.tensor([[0, 1]]).T.repeat_interleave(len(monkeyed), 0)[
        :, 0
    ]  # the first person obeys, the second does not
    rows = torch.nn.functional.one_hot(classes, 2).float()
    reading = Reading(dict.fromkeys(names, rows), torch.zeros(len(rows), 3), names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(personal_prompts, "edits", lambda: tuple(monkeyed.values()))
        assert adherence(reading, 2).tolist() == [1.0, 0.0]


def test_every_edit_is_said_in_words_that_the_probe_can_read() -> None:
    assert {edit.attribute for edit in edits()} == {"expression", "glasses", "head"}
    smiling = next(edit for edit in edits() if edit.text.endswith(" smiling"))
    assert smiling.values == {"smiling", "smiling with teeth"} and "id person" in smiling.text


def test_likeness_is_made_equal_between_the_strengths_that_were_drawn() -> None:
    points = [(0.5, 0.4), (0.1, 0.8), (0.3, 0.6)]
    assert personalise.interpolate(points, 0.4) == pytest.approx(0.5)
    assert personalise.interpolate(points, 0.9) == 0.4 and personalise.interpolate(points, 0.0) == 0.8
