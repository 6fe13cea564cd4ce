"""Text and progress for people: on stderr, and never in each other's way."""

from __future__ import annotations

import pytest

from idgen.console import progress, say


def test_text_and_progress_go_to_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abc"), total=3, desc="letters")) == ["a", "b", "c"]
    say("done")
    out, err = capsys.readouterr()
    assert out == ""
    assert "letters: 100%" in err and "3/3" in err
    assert err.endswith("\ndone\n")


def test_text_said_under_a_bar_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for letter in progress("ab", desc="letters"):
        say(f"at {letter}")
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert {"at a", "at b"} <= set(lines)


def test_progress_may_be_left_early(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress(range(5)):
        break
    say("after")
    assert capsys.readouterr().err.endswith("\nafter\n")
