"""The benchmark of inpainting, on tiny random weights: it runs, and its rows are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import inpaint
from benchmarks.expressions import ask, ask_people, obeyed
from benchmarks.inpaint import Scene, Way, fill
from idgen.models.mini_detector import MiniDetector
from idgen.models.probe import Reading
from idgen.pipelines import PVAInpaintPipeline
from tests.tiny_family import face_in_the_middle
from tests.tiny_inpainting import tiny_inpainting_family


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tiny_inpainting_family(tmp_path / "mini", size=128)
    monkeypatch.setenv("IDGEN_MINI", str(folder))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)
    return folder


@pytest.mark.usefixtures("family")
def test_the_table_of_the_bars(capsys, tmp_path):
    words = ["--people", "2", "--steps", "2", "--personal-steps", "1", "--expressions", "1", "--workers", "1"]
    files = ["--json", tmp_path / "i.json", "--cache", tmp_path / "photos", "--sheet", tmp_path / "i.png"]
    inpaint.main([*words, *map(str, files), "--device", "cpu"])
    out = capsys.readouterr().out
    rows = ["painted over", "0 references", "1 references", "5 references", "the next person's references"]
    for row in (*rows, "personalised (visual)", "personalised (lora)"):
        assert f"whole: {row} | id_score" in out
    for bar in ("+0.3", "+0.03", "80 %", "20 MB"):
        assert f"| {bar} |" in out
    content = json.loads((tmp_path / "i.json").read_text())
    assert set(content["gain"]) == {"value", "low", "high"} == set(content["lora_gain"])
    assert set(content["seconds_per_step"]) == {"nobody", "a person", "a person, guided"}
    ways = {"shown", "shown, guided by a reader", "shown, guided by a reader and the recogniser"}
    assert ways | {"real_photos", "without_words"} == content["words"].keys()
    assert {"value", "low", "high"} == content["words"]["shown, guided by a reader"]["id_score"].keys()
    assert 0 < content["visual_person"]["bytes"] < 20e6 and content["whole"]["0 references"]["psnr"] > 0
    assert Image.open(tmp_path / "i.png").height > 9 * 128


@pytest.mark.usefixtures("family")
def test_known_pixels_are_kept_and_a_batch_is_its_people_alone():
    pipe = PVAInpaintPipeline.from_pretrained("mini")
    pipe.set_progress_bar_config(disable=True)
    pictures = torch.randint(0, 256, (3, 128, 128, 3), dtype=torch.uint8)
    holes = torch.zeros(3, 128, 128, dtype=torch.bool)
    holes[:, 40:90, 30:100] = True
    scene, vectors = Scene(pictures, holes), torch.randn(3, 2, 512)
    made = fill(pipe, scene, vectors, Way(steps=2, guidance=1.0, seed=0, batch=2))
    assert torch.equal(made[~holes], pictures[~holes]) and not torch.equal(made[holes], pictures[holes])
    assert (scene.painted[holes] == 128).all() and torch.equal(scene.painted[~holes], pictures[~holes])
    alone = fill(pipe, scene.of([1]), vectors[[1]], Way(2, 1.0, 0, 1), noise=[1])
    assert (alone[0].int() - made[1].int()).abs().max() <= 1
    other = fill(pipe, scene.of([1]), vectors[[2]], Way(2, 1.0, 0, 1), noise=[1])
    assert not torch.equal(other, alone)


def test_expressions_are_asked_for_equally_often_in_words_that_mean_them():
    asked = ask_people(range(300_000, 300_014), 2, seed=0)
    values = [one.value for each in asked for one in each]
    assert len(values) == 28 and {values.count(value) for value in values} == {2}
    assert all(one.value in one.values for each in asked for one in each)
    both = [ask("smiling with teeth", "woman", str(seed)) for seed in range(20)]
    assert {"a photo of a smiling woman", "a photo of a woman smiling with teeth"} <= {one.text for one in both}
    assert {len(one.values) for one in both} == {1, 2}
    angry = {ask("angry", "man", str(seed)).text for seed in range(20)}
    assert {"a photo of an angry man", "a photo of a man with an angry look"} <= angry


def test_every_expression_weighs_the_same():
    class Probe:
        def read(self, pictures):
            classes = {"expression": ["angry", "sad"]}
            return Reading({"expression": torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 0]])}, torch.zeros(4, 3), classes)

    asked = [ask("angry", "man", "1")] * 3 + [ask("sad", "man", "1")]
    assert obeyed(Probe(), torch.zeros(4, 8, 8, 3), asked) == {"angry": 1.0, "sad": 0.0, "all": 0.5}
