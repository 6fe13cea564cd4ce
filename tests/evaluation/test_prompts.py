"""Which attributes a caption names, and when a picture obeys it."""

from typing import Any

import pytest
import torch

from idgen.evaluation.prompts import choose_prompts, obeyed, read_caption
from idgen.models.probe import Reading

SHOT: dict[str, Any] = {
    "expression": "smiling",
    "hair_style": "short with a fringe",
    "hair_colour": "dark brown",
    "glasses": "none",
    "head": "left",
    "beard": "none",
}


def named(text: str, **changes: Any) -> dict[str, set[str]]:
    return {name: set(values) for name, values in read_caption(text, SHOT | changes, 0, 0).asked.items()}


def test_words_shared_by_two_values_ask_for_either() -> None:
    asked = named("a photo of a smiling man with short dark brown hair and a fringe, looking left")
    assert asked == {
        "expression": {"smiling", "smiling with teeth"},
        "hair_style": {"short with a fringe"},
        "hair_colour": {"dark brown"},
        "head": {"left"},
    }


def test_what_a_caption_does_not_say_is_not_asked() -> None:
    assert named("a man, light skin, glancing left") == {}
    assert named("man with short hair and a fringe").keys() == {"hair_style"}
    assert named("man with dark brown hair").keys() == {"hair_colour"}


def test_the_most_specific_wording_counts() -> None:
    assert named("woman smiling slightly", expression="slight smile")["expression"] == {"slight smile"}
    assert named("a woman, no glasses")["glasses"] == {"none"}
    assert named("a bald man", hair_style="bald")["hair_style"] == {"bald"}


def reading(values: dict[str, list[str]]) -> Reading:
    classes = {name: sorted(set(read)) for name, read in values.items()}
    picked = {
        name: torch.eye(len(classes[name]))[[classes[name].index(value) for value in read]]
        for name, read in values.items()
    }
    return Reading(picked, torch.zeros(len(next(iter(values.values()))), 3), classes)


@pytest.fixture(scope="module")
def prompts() -> list[Any]:
    return choose_prompts(200_000, per_value=3, people=150)


def test_prompts_name_each_value_of_each_tracked_attribute_often_enough(prompts: list[Any]) -> None:
    counts: dict[tuple[str, str], int] = {}
    for prompt in prompts:
        for name, value in prompt.true.items():
            counts[name, value] = counts.get((name, value), 0) + 1
    for value in ("none", "glasses", "sunglasses"):
        assert counts["glasses", value] >= 3
    for value in ("straight", "left", "right", "up", "down"):
        assert counts["head", value] >= 3
    assert len(prompts) < 150


def test_the_true_values_obey_and_wrong_ones_do_not(prompts: list[Any]) -> None:
    names = ("expression", "hair_style", "hair_colour", "glasses", "head", "beard")
    true = {name: [prompt.true.get(name, "none") for prompt in prompts] for name in names}
    shares = obeyed(prompts, reading(true))
    assert shares["all"] == 1.0 and shares["hair"] == 1.0
    assert obeyed(prompts, reading(true | {"head": ["elsewhere"] * len(prompts)}))["head"] == 0.0


def test_every_value_weighs_the_same() -> None:
    asks = [
        read_caption(text, SHOT | {"glasses": value}, 0, 0)
        for text, value in [("man, no glasses", "none")] * 9 + [("man with sunglasses", "sunglasses")]
    ]
    hair = [
        read_caption("man with dark brown hair", SHOT, 0, 0),
        read_caption("a bald man", SHOT | {"hair_style": "bald"}, 0, 0),
        read_caption("man smiling, looking left", SHOT, 0, 0),
    ]
    read = {
        "glasses": ["none"] * 13,
        "hair_colour": ["dark brown"] * 13,
        "hair_style": ["bald"] * 13,
        "expression": ["smiling"] * 13,
        "head": ["left"] * 13,
    }
    assert obeyed(asks + hair, reading(read))["glasses"] == pytest.approx(0.5)
