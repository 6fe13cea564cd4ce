"""The judge had no part in making the pictures, or the report says that it had."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from idgen.checkpoint import save_weights
from idgen.cli import main
from idgen.errors import IdgenError
from idgen.evaluation.fingerprints import recogniser_fingerprint
from idgen.evaluation.judge import choose_judge, declared_rewards
from tests.evaluation import toys


@pytest.fixture(autouse=True)
def _encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.with_toys(monkeypatch)


def test_a_judge_that_differs_is_taken_as_it_is() -> None:
    judge = choose_judge("judge", "mini", ["other"])
    assert not judge.same and judge.remarks == () and judge.makers == ("mini", "other")
    assert judge.conditioning is not None and judge.conditioning.recogniser == "mini"


@pytest.mark.parametrize(("made_with", "rewards"), [("judge", []), ("mini", ["judge"]), ("judge_renamed", [])])
def test_a_judge_that_had_a_part_is_refused_by_name_and_by_weights(made_with: str, rewards: list[str]) -> None:
    with pytest.raises(IdgenError, match="--same-judge"):
        choose_judge("judge", made_with, rewards)


def test_the_same_judge_is_remarked_on_when_asked_for() -> None:
    judge = choose_judge("judge", "judge", allow_same=True)
    assert judge.same and judge.remarks[0].startswith("SAME JUDGE: judge")


def test_who_made_the_pictures_may_be_unknown_and_is_then_said() -> None:
    assert "--made-with" in choose_judge("judge", None).remarks[0]
    assert "by name only" in choose_judge("judge", "glintr100").remarks[0]


def test_weights_under_another_name_have_the_same_fingerprint() -> None:
    first, second, third = (recogniser_fingerprint(toys.toy_encoder(n)) for n in ("judge", "judge_renamed", "mini"))
    assert first == second != third


def test_rewards_are_read_off_the_weights(tmp_path: Path) -> None:
    tensor = {"w": torch.zeros(2)}
    save_weights(tmp_path / "adapter" / "a.safetensors", tensor, {"reward_recognisers": ["judge", "mini"]})
    save_weights(tmp_path / "b.safetensors", tensor, {"method": "x"})
    assert declared_rewards(tmp_path) == ["judge", "mini"]
    save_weights(tmp_path / "b.safetensors", tensor, {"reward_recognisers": "mini"})
    with pytest.raises(IdgenError, match=r"b\.safetensors.*no JSON list"):
        declared_rewards(tmp_path)


def test_the_command_refuses_and_with_the_flag_marks_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references = toys.write_people(tmp_path / "people", 4, 6)
    made = toys.write_generated(tmp_path / "made", 4, 2)
    settings = ["--set", "probe=false", "--set", "features=judge", "--set", "measures=[identity]", "--device", "cpu"]
    words = ["evaluate", str(made), "--references", str(references), "--out", str(tmp_path / "out"), *settings]
    assert main([*words, "--made-with", "judge"]) == 2
    assert "is the recogniser that conditioned" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*words, "--made-with", "mini", "--rewarded-by", "judge_renamed"]) == 2
    assert "is the recogniser that rewarded" in capsys.readouterr().err
    assert main([*words, "--made-with", "judge", "--same-judge", "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result["judge"]["had_a_part"] and "SAME JUDGE" in result["remarks"][0]
    assert "SAME JUDGE" in (tmp_path / "out" / "report.html").read_text()
