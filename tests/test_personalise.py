"""`idgen personalise` with random weights: one file for a person, which `idgen inpaint` takes; what it says and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from idgen.adapters.pva.person import PersonWeights
from idgen.cli import main
from idgen.identity import Identity
from idgen.models.mini_detector import Detections, MiniDetector
from tests.renders import Refused
from tests.tiny_family import face_in_the_middle
from tests.tiny_inpainting import tiny_inpainting_family

CPU = ("--device", "cpu", "--dtype", "fp32")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_inpainting_family(tmp_path_factory.mktemp("mini"))


@pytest.fixture(autouse=True)
def with_family(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDGEN_MINI", str(family))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{name}.png" for name in "abc"]
    for seed, file in enumerate(files):
        noise = np.random.default_rng(seed).integers(0, 256, (70, 90, 3), np.uint8)
        Image.fromarray(noise).save(file)
    return files


def run(capfd: pytest.CaptureFixture[str], *words: Any) -> tuple[dict[str, Any], str]:
    assert main([*map(str, words), "--json", *CPU]) == 0
    out, err = capfd.readouterr()
    return json.loads(out), err


@pytest.mark.parametrize("variant", ["visual", "lora"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_person_is_learned_from_one_photo_or_more_and_serves_inpaint(variant, count, photos, tmp_path, capfd):
    person = tmp_path / "anna.safetensors"
    report, err = run(
        capfd, "personalise", *photos[:count], "-o", person, "--variant", variant, "--steps", "2", "--seed", 3
    )
    assert report["output"] == str(person) and report["bytes"] == person.stat().st_size < 20e6
    assert (report["photos"], report["variant"], report["steps"], report["seed"]) == (count, variant, 2, 3)
    assert report["seconds"] > 0 and "2 steps in" in err
    learned = PersonWeights.load(person)
    assert learned.variant == variant and any(value.any() for value in learned.changes.values())
    fill = ["inpaint", photos[0], "--region", "whole", "--ref", photos[1], "--steps", "2"]
    run(capfd, *fill, "-o", tmp_path / "with.png", "--person", person)
    # Two steps need not show in eight bits; this does.
    PersonWeights(variant, learned.changes | {"modifier": torch.ones(512)}, learned.model).save(person)
    run(capfd, *fill, "-o", tmp_path / "strongly.png", "--person", person)
    run(capfd, *fill, "-o", tmp_path / "without.png")
    strongly, without = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("strongly", "without"))
    assert not np.array_equal(strongly, without)


def test_the_default_is_the_authors_forty_steps_and_a_file_of_its_own(photos, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report, _ = run(capfd, "personalise", photos[0])
    assert report["output"] == "personalised.safetensors"  # not what `idgen embed` writes
    assert (report["steps"], report["variant"]) == (40, "visual")


def test_a_person_of_the_mini_family_is_learned_by_identity_and_otherwise_as_the_authors_do(photos, tmp_path, capfd):
    learned = {}
    for name, more in (
        ("default", []),
        ("said", ["--learning-rate", "1e-3", "--identity-weight", "1"]),
        ("rate", ["--learning-rate", "1e-3", "--identity-weight", "0"]),
        ("authors", ["--learning-rate", "2e-5", "--identity-weight", "0"]),
    ):
        run(capfd, "personalise", photos[0], "--steps", "2", "-o", tmp_path / f"{name}.safetensors", *more)
        changes = PersonWeights.load(tmp_path / f"{name}.safetensors").changes
        learned[name] = torch.cat(
            [v.flatten() for k, v in changes.items() if k != "modifier" and v.is_floating_point()]
        )
    assert torch.equal(learned["default"], learned["said"])
    assert not torch.equal(learned["said"], learned["rate"])
    assert learned["rate"].abs().max() > 10 * learned["authors"].abs().max() > 0


def test_photos_of_several_people_are_noted_or_refused(photos, tmp_path, capfd, refused: Refused, monkeypatch):
    monkeypatch.setattr("idgen.inpainting.read_references", lambda *given: Identity(torch.eye(512)[:3], "mini"))
    words = ["personalise", *photos, "--steps", "1", *CPU]
    report, err = run(capfd, *words, "-o", tmp_path / "x.safetensors")
    assert "may show different people" in report["warnings"][0] and "note: the references may" in err
    (tmp_path / "x.safetensors").unlink()
    assert "leave out or crop" in refused(*words, "-o", tmp_path / "x.safetensors", "--strict")


def test_mistakes_are_one_line(photos, tmp_path, refused: Refused, monkeypatch):
    out = ["-o", tmp_path / "x.safetensors", *CPU]
    assert "required: PHOTO" in refused("personalise", *out)
    assert "no such file" in refused("personalise", photos[0], tmp_path / "missing.png", *out)
    assert "end in .safetensors" in refused("personalise", photos[0], "-o", tmp_path / "x.pt", *CPU)
    photo = photos[0].rename(tmp_path / "photo.safetensors")
    assert "is a file to read" in refused("personalise", photo, "-o", photo, *CPU)
    photo.rename(photos[0])
    assert "not a whole number above 0" in refused("personalise", photos[0], "--steps", "0", *out)
    assert "not a number above 0" in refused("personalise", photos[0], "--learning-rate", "0", *out)
    assert "not a number above 0" in refused("personalise", photos[0], "--learning-rate", "nan", *out)
    assert "not a number from 0 up" in refused("personalise", photos[0], "--identity-weight", "-1", *out)
    assert "not a number from 0 up" in refused("personalise", photos[0], "--identity-weight", "much", *out)
    assert "invalid choice: 'text'" in refused("personalise", photos[0], "--variant", "text", *out)
    assert "no such folder" in refused("personalise", photos[0], "--model", tmp_path / "nowhere", *out)
    empty = Detections(torch.zeros(0, 4), torch.zeros(0, 5, 2), torch.zeros(0))
    monkeypatch.setattr(MiniDetector, "detect", lambda self, images, threshold=0.5: [empty for _ in images])
    assert "no face found in" in refused("personalise", photos[0], *out)
    monkeypatch.setenv("IDGEN_MINI", str(tmp_path / "elsewhere"))
    assert "'inpaint' is not at" in refused("personalise", photos[0], *out)
