"""The benchmark of words for Arc2Face: every row is measured, by what the words name."""

import json

from benchmarks import words
from idgen.models.mini_detector import MiniDetector
from tests.benchmarks.test_mini_bars import noise_photos
from tests.tiny_family import face_in_the_middle, tiny_family


def test_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IDGEN_MINI", str(tiny_family(tmp_path / "mini")))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)
    monkeypatch.setattr(words, "take_photos", noise_photos)
    places = [
        "--cache",
        str(tmp_path / "cache"),
        "--json",
        str(tmp_path / "w.json"),
        "--sheet",
        str(tmp_path / "w.png"),
    ]
    words.main(["--people", "5", "--steps", "1", "--device", "cpu", "--dtype", "fp32", *places])
    out = capsys.readouterr().out
    content = json.loads((tmp_path / "w.json").read_text())
    for row in ("without the words", "led by the base", "led by the base, guided by the reader"):
        assert f"| {row} | id_score" in out
        assert set(content[row]["shown"]) == {"expression", "glasses", "hair_colour", "head"}
        assert content[row]["found"] == 1.0
    assert (tmp_path / "w.png").is_file()
