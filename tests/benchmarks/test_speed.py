"""The command behind the table of speed, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import speed
from tests.tiny_family import tiny_family


def test_every_batch_is_timed_with_the_guidance_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IDGEN_MINI", str(tiny_family(tmp_path / "mini")))
    # The demo's new process would need a detector that has learned to look.
    monkeypatch.setattr(speed, "cold_start", lambda device: (12.3, {"faces_found": 4}))
    words = ["--steps", "2", "--batches", "1", "2", "--device", "cpu", "--dtype", "fp32"]
    for flags, how in (([], "guidance, by the recogniser too"), (["--identity-guidance", "0"], "guidance")):
        speed.main([*words, *flags, "--json", str(tmp_path / "speed.json")])
        stored = json.loads((tmp_path / "speed.json").read_text())
        table = capsys.readouterr().out
        assert stored["demo_seconds"] == 12.3 and "| 12.3 s |" in table
        for batch in (1, 2):
            assert f"| generation, batch {batch}, 2 steps with {how}, " in table
