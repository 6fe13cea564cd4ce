"""`idgen restore` with random weights: what it writes, what it says, and that nothing is half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from idgen.cli import main
from idgen.commands.demo import EXAMPLE
from idgen.identity import Identity
from idgen.models.mini_detector import MiniDetector
from idgen.pipelines import ReferenceRestorePipeline
from idgen.provenance import is_marked
from idgen.rewards.ascent import STRENGTH
from tests.renders import Refused
from tests.tiny_family import face_in_the_middle, tiny_family
from tests.tiny_restore import SIZE, add_restorer, tiny_restorer

REFERENCES = [EXAMPLE / "reference_1.png", EXAMPLE / "reference_2.png"]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_restorer(tiny_family(tmp_path_factory.mktemp("mini")))


@pytest.fixture(autouse=True)
def with_family(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDGEN_MINI", str(family))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A blurred photo, wider than high."""
    path = tmp_path / "bad.jpg"
    face = Image.open(EXAMPLE / "other_1.png").convert("RGB").resize((24, 24)).resize((200, 200))
    Image.fromarray(np.pad(np.asarray(face), ((0, 0), (40, 40), (0, 0)), "edge")).save(path)
    return path


def restore(capfd: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    words = ["restore", "--json", "--steps", "2", "--device", "cpu", "--dtype", "fp32", *map(str, arguments)]
    assert main(words) == 0, capfd.readouterr().err
    return json.loads(capfd.readouterr().out)


def test_a_photo_is_restored_and_compared(bad, tmp_path, capfd):
    out, compare = tmp_path / "out" / "good.png", tmp_path / "compare.png"
    report = restore(capfd, bad, "--ref", *REFERENCES, "-o", out, "--compare", compare)
    before, after = Image.open(bad).convert("RGB"), Image.open(out)
    assert after.size == before.size and is_marked(out) and is_marked(compare)
    changed = np.abs(np.asarray(before, int) - np.asarray(after, int)).max(-1)
    assert changed[100, 140] > 0 and changed[0, 0] == 0
    (face,) = report["faces"]
    assert face["references"] == 2 and len(face["box"]) == 4 and -1 <= face["similarity"] <= 1
    assert report["output"] == str(out) and report["compare"] == str(compare) and report["seconds"] > 0
    assert Image.open(compare).width > 2 * 320


def test_the_mini_family_s_autoencoder_serves_restoration(family):
    pipe = ReferenceRestorePipeline.from_pretrained("mini")
    assert not (family / "restore" / "vq").exists()
    wanted = AutoencoderTiny.from_pretrained(family / "vae").state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in pipe.vq.state_dict().items())


def test_a_kept_cache_restores_as_its_photos_do_and_a_seed_decides(bad, tmp_path, capfd):
    cache = tmp_path / "anna.safetensors"
    pictures = []
    for arguments in (["--ref", *REFERENCES, "--cache", cache], ["--cache", cache], ["--cache", cache, "--seed", 1]):
        report = restore(capfd, bad, *arguments, "-o", tmp_path / "good.png")
        assert report["faces"][0]["references"] == 2 and report["faces"][0]["similarity"] is not None
        pictures.append(np.asarray(Image.open(tmp_path / "good.png")))
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])


def test_the_recogniser_guides_the_mini_family_unless_told_not_to(bad, tmp_path, capfd):
    drawn = []
    for strength in (None, STRENGTH, 0):
        flags = [] if strength is None else ["--identity-guidance", strength]
        out = tmp_path / "out.png"
        report = restore(capfd, bad, "--ref", *REFERENCES, "-o", out, "--steps", 10, *flags)
        assert report["identity_guidance"] == (STRENGTH if strength is None else strength)
        drawn.append(np.asarray(Image.open(out)))
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_without_references_it_works_and_says_so(bad, tmp_path, capfd):
    report = restore(capfd, bad, "-o", tmp_path / "good.png")
    assert report["faces"][0]["references"] == 0 and "no references" in report["warnings"][0]


@pytest.mark.parametrize("size", [(24, 30), (1200, 900)])
def test_tiny_huge_and_grey_photos(size, tmp_path, capfd):
    values = np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)
    Image.fromarray(values).resize(size).save(tmp_path / "odd.png")
    restore(capfd, tmp_path / "odd.png", "--ref", REFERENCES[0], "-o", tmp_path / "good.png")
    made = np.asarray(Image.open(tmp_path / "good.png")).astype(int)
    assert made.shape[:2] == size[::-1] and np.ptp(made, axis=-1).max() == 0


def test_an_aligned_photo_needs_no_detector(tmp_path, capfd, monkeypatch):
    def none(self: Any, images: Any, threshold: float = 0.5) -> Any:
        return [
            type(found)(found.boxes[:0], found.landmarks[:0], found.scores[:0])
            for found in face_in_the_middle(self, images)
        ]

    monkeypatch.setattr(MiniDetector, "detect", none)
    Image.open(REFERENCES[0]).resize((SIZE, SIZE)).save(tmp_path / "crop.png")
    restore(capfd, tmp_path / "crop.png", "--aligned", "-o", tmp_path / "good.png")
    assert Image.open(tmp_path / "good.png").size == (SIZE, SIZE)
    assert main(["restore", str(tmp_path / "crop.png"), "-o", str(tmp_path / "good.png")]) == 2
    assert "no face found" in capfd.readouterr().err


def test_all_faces_are_restored_each_from_the_references_of_one_person(bad, tmp_path, capfd, monkeypatch):
    def two(self: Any, images: Any, threshold: float = 0.5) -> Any:
        found = face_in_the_middle(self, images)
        return [
            type(one)(
                *(
                    torch.cat([x, x - 20] if x is not one.scores else [x, x])
                    for x in (one.boxes, one.landmarks, one.scores)
                )
            )
            if image.shape[1] == 280
            else one
            for one, image in zip(found, images, strict=True)
        ]

    monkeypatch.setattr(MiniDetector, "detect", two)
    words = [bad, "--ref", REFERENCES[0], "--ref", REFERENCES[1], "-o", tmp_path / "good.png"]
    report = restore(capfd, *words, "--face", "all", "--compare", tmp_path / "compare.png")
    assert sorted(face["person"] for face in report["faces"]) == [0, 1]
    assert len(restore(capfd, *words, "--face", "largest")["faces"]) == 1


def test_references_of_different_people_are_warned_of_and_refused(bad, tmp_path, capfd, refused: Refused, monkeypatch):
    def two_people(self: Any, photos: Any, select: str = "largest") -> Identity:
        points = torch.tensor([[30.0, 40], [70, 40], [50, 60], [35, 80], [65, 80]]).expand(len(photos), 5, 2)
        return Identity(torch.eye(len(photos), 512), "mini", landmarks=points)

    monkeypatch.setattr("idgen.faces.FaceEncoder.__call__", two_people)
    report = restore(capfd, bad, "--ref", *REFERENCES, "-o", tmp_path / "good.png")
    assert "cosines 1.00 0.00; 0.00 1.00" in report["warnings"][0]
    assert "different people" in refused("restore", bad, "--ref", *REFERENCES, "-o", tmp_path / "x.png", "--strict")


def test_a_mistake_is_one_line_and_leaves_nothing(bad, tmp_path, refused: Refused):
    out = ["-o", tmp_path / "good.png"]
    assert "no such file" in refused("restore", tmp_path / "missing.jpg", *out)
    assert "no such file" in refused("restore", bad, "--ref", tmp_path / "missing.jpg", *out)
    assert "end in .png" in refused("restore", bad, "-o", tmp_path / "good.jpg")
    assert "--steps" in refused("restore", bad, "--steps", "0", *out)
    assert "end in .safetensors" in refused("restore", bad, "--ref", REFERENCES[0], "--cache", tmp_path / "a.pt", *out)
    assert "one person" in refused(
        "restore", bad, "--ref", REFERENCES[0], "--ref", REFERENCES[1], "--cache", tmp_path / "a.safetensors", *out
    )
    tiny_restorer(seed=5).cache(Image.open(REFERENCES[0])).save(tmp_path / "other.safetensors")
    assert "other weights" in refused("restore", bad, "--cache", tmp_path / "other.safetensors", *out)
    assert "no such" in refused("restore", bad, "--cache", tmp_path / "missing.safetensors", *out)
    assert "no such file or folder" in refused("restore", bad, "--model", tmp_path / "nowhere", *out)


def test_no_picture_replaces_a_photo_or_another_picture(bad, tmp_path, refused: Refused, monkeypatch):
    photo, reference = tmp_path / "photo.png", tmp_path / "reference.png"
    for path in (photo, reference):
        Image.open(REFERENCES[0]).save(path)
    words = ("restore", photo, "--ref", reference)
    for path in (photo, reference):
        assert f"{path} is a file to read" in refused(*words, "-o", path)
        assert f"{path} is a file to read" in refused(*words, "-o", tmp_path / "good.png", "--compare", path)
    monkeypatch.chdir(tmp_path)
    assert "restored.png is named for two outputs" in refused(*words, "--compare", "restored.png")
