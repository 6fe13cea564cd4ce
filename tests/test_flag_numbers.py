"""A number on the command line that would only ever make black pictures is refused before anything is loaded."""

from __future__ import annotations

import pytest

from tests.renders import Refused

SCALES = [
    ("generate", "a.png", "--guidance"),
    ("generate", "a.png", "--text-guidance"),
    ("restore", "a.png", "--guidance"),
    ("inpaint", "a.png", "--region", "eyes", "--guidance"),
    ("demo", "--guidance"),
]


@pytest.mark.parametrize("value", ["inf", "nan", "-1", "much"])
@pytest.mark.parametrize("words", SCALES, ids=" ".join)
def test_a_scale_is_finite_and_not_negative(words: tuple[str, ...], value: str, refused: Refused) -> None:
    *words_before, flag = words
    line = refused(*words_before, f"{flag}={value}")
    assert flag in line and f"{value!r} is not a number from 0 up" in line


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "much"])
def test_the_strength_of_an_adapter_is_finite_and_may_be_negative(value: str, refused: Refused) -> None:
    words = ("generate", "a.png", "--adapter", "absent.safetensors")
    assert f"{value!r} is not a finite number" in refused(*words, f"--strength={value}")
    assert "no such file" in refused(*words, "--strength=-1")
