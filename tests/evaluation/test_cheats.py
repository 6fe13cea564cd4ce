"""Planted cheats are seen: in the flags of the set, and at the pictures that bear them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from idgen.cli import main
from tests.evaluation import toys

PEOPLE, IMAGES = 12, 4


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.write_people(tmp_path_factory.mktemp("toys") / "people", PEOPLE)


@pytest.fixture(autouse=True)
def _encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.with_toys(monkeypatch)


Plant = Callable[[int, int], np.ndarray]


@pytest.fixture
def evaluated(tmp_path: Path, references: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Evaluate pictures that a function draws of (person, image); returns the JSON and each picture's flags."""

    def run(plant: Plant, *words: str) -> tuple[dict[str, Any], list[set[str]]]:
        for person in range(PEOPLE):
            for image in range(IMAGES):
                toys.save(tmp_path / "made" / f"{toys.name_of(person)}_{image}.png", plant(person, image))
        arguments = [str(tmp_path / "made"), "--references", str(references), "--out", str(tmp_path / "out")]
        settings = ["--set", "probe=false", "--set", "features=judge", "--made-with", "mini", "--json", *words]
        assert main(["evaluate", *arguments, *settings, "--device", "cpu"]) == 0
        with (tmp_path / "out" / "metrics.csv").open() as stream:
            flags = [set(filter(None, row["flags"].split("; "))) for row in csv.DictReader(stream)]
        return json.loads(capsys.readouterr().out), flags

    return run


def names(result: dict[str, Any]) -> set[str]:
    return {flag["name"] for flag in result["flags"]}


def honest(person: int, image: int) -> np.ndarray:
    return toys.photo(person, 100 + image)


def test_honest_pictures_bear_no_flag(evaluated: Any) -> None:
    result, flags = evaluated(honest)
    assert names(result) == set() and not any(flags)
    assert abs(result["metrics"]["reference_gap"]["value"]) < 0.1


@pytest.mark.parametrize("disguise", ["as it is", "mirrored", "compressed", "brighter"])
def test_a_reference_that_was_pasted_in(evaluated: Any, disguise: str, tmp_path: Path) -> None:
    def paste(person: int, image: int) -> np.ndarray:
        picture = toys.photo(person, image % 3)  # the references are shots 0 to 3
        if disguise == "mirrored":
            return picture[:, ::-1].copy()
        if disguise == "compressed":
            Image.fromarray(picture).save(tmp_path / "small.jpg", quality=40)
            return np.asarray(Image.open(tmp_path / "small.jpg").convert("RGB"))
        if disguise == "brighter":
            return (picture * 0.9 + 25).astype(np.uint8)
        return picture

    result, flags = evaluated(paste)
    assert "reference pasted in" in names(result)
    assert all("reference pasted in" in own for own in flags)
    if disguise == "as it is":
        assert "copies the references" in names(result)


def test_one_pasted_picture_is_flagged_without_condemning_the_set(evaluated: Any) -> None:
    result, flags = evaluated(
        lambda person, image: toys.photo(3, 0) if (person, image) == (3, 1) else honest(person, image)
    )
    assert names(result) == set()
    assert [index for index, own in enumerate(flags) if own] == [3 * IMAGES + 1]


def test_the_same_image_repeated(evaluated: Any) -> None:
    result, flags = evaluated(lambda person, image: honest(person, 0))
    assert "same image repeated" in names(result) and all("same image repeated" in own for own in flags)
    assert result["metrics"]["diversity_pixels"]["value"] < 0.05
    assert result["metrics"]["id_score"]["value"] > 0.8  # which is why the flag is needed


def test_blur_that_recognisers_forgive(evaluated: Any) -> None:
    def blurred(person: int, image: int) -> np.ndarray:
        return np.asarray(Image.fromarray(honest(person, image)).filter(ImageFilter.GaussianBlur(4)))

    result, flags = evaluated(blurred)
    assert "blurred" in names(result) and all("blurred" in own for own in flags)
    assert result["metrics"]["id_score"]["value"] > 0.7 and result["metrics"]["sharpness_face"]["value"] < 0.3


def test_the_wrong_person(evaluated: Any) -> None:
    result, flags = evaluated(lambda person, image: honest((person + 1) % PEOPLE, image))
    assert "wrong person" in names(result) and sum("wrong person" in own for own in flags) > 0.9 * len(flags)
    assert result["metrics"]["id_score"]["value"] < 0.2 and result["metrics"]["rank_one_pooled"]["value"] == 0


def test_a_stranger_whom_nobody_enrolled(evaluated: Any) -> None:
    result, flags = evaluated(lambda person, image: honest(500 + person, image))
    assert "wrong person" in names(result) and sum("wrong person" in own for own in flags) > 0.8 * len(flags)


def test_pictures_that_only_convince_the_recogniser_that_they_were_made_with(evaluated: Any) -> None:
    """A stranger, changed by as little as makes the toy recogniser `mini` say that it is the person."""
    weights = toys.projection("mini").double().numpy()  # (588, 48)
    back = np.linalg.pinv(weights)  # (48, 588)

    def fool(person: int, image: int) -> np.ndarray:
        stranger = toys.pattern(500 + person) + np.random.default_rng((person, image)).normal(0, 22, (14, 14, 3))
        wanted = (toys.pattern(person).reshape(-1) - stranger.reshape(-1)) @ weights
        return toys.draw(stranger + (wanted @ back).reshape(14, 14, 3))

    result, flags = evaluated(fool)
    assert "adversarial" in names(result) and sum("adversarial" in own for own in flags) > 0.7 * len(flags)
    figures = result["metrics"]
    assert figures["id_score_by_the_conditioning_recogniser"]["value"] > 0.7 > 0.4 > figures["id_score"]["value"]


def test_likeness_to_the_references_alone(evaluated: Any) -> None:
    """Not copies, but the reference's own light and pose and nothing of the person beyond."""

    def overfit(person: int, image: int) -> np.ndarray:
        seed = np.random.default_rng((person, image, 9))
        shot = toys.photo(person, image)[:: toys.SQUARE, :: toys.SQUARE].astype(float)
        change = shot - toys.pattern(person)
        return toys.draw(128 + 0.6 * (toys.pattern(person) - 128) + 1.5 * change + seed.normal(0, 10, (14, 14, 3)))

    result, _ = evaluated(overfit)
    assert "copies the references" in names(result) and result["metrics"]["reference_gap"]["value"] > 0.3


def test_near_repeats_are_told_from_similar_pictures() -> None:
    from idgen.evaluation.flags import _repeated

    pictures = torch.rand(2000, 256, generator=torch.Generator().manual_seed(0))
    pictures[5] = pictures[1500] + 0.002
    assert _repeated(pictures).nonzero()[:, 0].tolist() == [5, 1500]
