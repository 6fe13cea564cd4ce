"""`idgen demo`: what it writes and says, with random weights; and with the shipped ones, whether it works."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from idgen.cli import main
from idgen.commands.demo import EXAMPLE, example_photos
from idgen.faces import FaceEncoder
from idgen.faces.detection import Face
from idgen.models.mini_detector import Detections, MiniDetector
from tests.tiny_family import face_in_the_middle, tiny_family
from tests.tiny_inpainting import tiny_inpainting_family
from tests.tiny_restore import add_restorer


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_family(tmp_path_factory.mktemp("mini"))


def demo(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["demo", "--json", "--steps", "2", "--device", "cpu", "--dtype", "fp32", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def with_family(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDGEN_MINI", str(family))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)


@pytest.mark.usefixtures("with_family")
def test_the_demo_writes_its_pictures_and_one_sheet_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = demo(capsys, "--out", str(tmp_path / "new" / "folder"))
    assert len(result["images"]) == 4
    pictures = [np.asarray(Image.open(path)) for path in result["images"]]
    assert not np.array_equal(pictures[0], pictures[1])
    sheet = Image.open(result["sheet"])
    assert sheet.width >= 4 * 160 and sheet.height >= 2 * 160
    assert {Path(path).parent for path in [*result["images"], result["sheet"]]} == {tmp_path / "new" / "folder"}


@pytest.mark.usefixtures("with_family")
def test_the_score_is_the_similarity_on_the_scale_stored_beside_the_judge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = demo(capsys, "--out", str(tmp_path))
    assert result["id_score"] == pytest.approx((result["id_similarity"] - 0.1) / (0.5 - 0.1), abs=1e-6)
    assert result["id_similarity"] == pytest.approx(np.mean(result["id_similarity_of_each_image"]), abs=1e-6)
    assert result["nearest_training_person"]["id_score"] == 0.6
    assert result["seconds_per_image"] > 0


@pytest.fixture(scope="module")
def whole_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that restores and inpaints too."""
    return add_restorer(tiny_inpainting_family(tmp_path_factory.mktemp("whole")))


@pytest.mark.usefixtures("with_family")
def test_restoration_and_inpainting_are_shown_where_the_family_can(
    whole_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = demo(capsys, "--out", str(tmp_path / "plain"))
    assert not {"restoration", "inpainting"} & plain.keys()
    monkeypatch.setenv("IDGEN_MINI", str(whole_family))
    result = demo(capsys, "--out", str(tmp_path / "whole"))
    for name in ("restoration", "inpainting"):
        part = result[name]
        assert list(part["images"]) == ["before", "without_references", "with_references"]
        pictures = [np.asarray(Image.open(path)) for path in part["images"].values()]
        assert {picture.shape for picture in pictures} == {(128, 128, 3)}
        assert len({picture.tobytes() for picture in pictures}) == 3
        assert part["id_score"] == pytest.approx((part["id_similarity"] - 0.1) / (0.5 - 0.1), abs=1e-6)
        assert {"id_score", "id_similarity"} == part["before"].keys() == part["without_references"].keys()
        assert part["seconds_per_image"] > 0
    heights = [Image.open(one["sheet"]).height for one in (plain, result)]
    assert heights[1] > 1.5 * heights[0]
    assert result["id_similarity"] != 0 and plain["images"] != result["images"]


@pytest.mark.usefixtures("with_family")
def test_the_same_seed_makes_the_same_pictures_and_another_seed_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def picture(folder: str, seed: str) -> bytes:
        result = demo(capsys, "--out", str(tmp_path / folder), "-n", "1", "--seed", seed)
        return np.asarray(Image.open(result["images"][0])).tobytes()

    assert picture("a", "3") == picture("b", "3")
    assert picture("c", "4") != picture("a", "3")


def with_judge_that_sees(monkeypatch: pytest.MonkeyPatch, detect: Callable[[np.ndarray], list[Face]]) -> None:
    load = FaceEncoder.from_pretrained

    def from_pretrained(name: str, **options: Any) -> FaceEncoder:
        encoder = load(name, **options)
        if name == "judge":
            monkeypatch.setattr(encoder, "_detector", detect)
        return encoder

    monkeypatch.setattr(FaceEncoder, "from_pretrained", from_pretrained)


@pytest.mark.usefixtures("with_family")
@pytest.mark.parametrize("photos_have_one", [False, True])
def test_pictures_without_a_face_have_a_similarity_of_nought(
    photos_have_one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = example_photos("reference")[0].height
    usual = FaceEncoder.from_pretrained("judge", device="cpu").detect

    def detect(image: np.ndarray) -> list[Face]:
        return usual(image) if photos_have_one and len(image) == size else []

    with_judge_that_sees(monkeypatch, detect)
    result = demo(capsys, "--out", str(tmp_path))
    assert result["faces_found"] == 0 and result["id_similarity"] == 0
    assert (result["real_photos"]["id_similarity"] != 0) == photos_have_one


@pytest.mark.usefixtures("with_family")
def test_pictures_are_kept_before_they_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def detect(image: np.ndarray) -> list[Face]:
        raise KeyboardInterrupt

    with_judge_that_sees(monkeypatch, detect)
    assert main(["demo", "-n", "2", "--steps", "1", "--device", "cpu", "--out", str(tmp_path)]) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["generated_01.png", "generated_02.png"]


@pytest.mark.usefixtures("with_family")
def test_a_photo_in_which_no_face_is_found_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = np.asarray(example_photos("reference")[1]).tobytes()

    def all_but_one(self: MiniDetector, images: Any, threshold: float = 0.5) -> Any:
        found = face_in_the_middle(self, images, threshold)
        none = Detections(torch.zeros(0, 4), torch.zeros(0, 5, 2), torch.zeros(0))
        return [none if np.asarray(i).tobytes() == hidden else f for i, f in zip(images, found, strict=True)]

    monkeypatch.setattr(MiniDetector, "detect", all_but_one)
    assert main(["demo", "--steps", "1", "--device", "cpu", "--dtype", "fp32", "--out", str(tmp_path), "-n", "1"]) == 0
    error = capsys.readouterr().err
    assert "no face found in 1 of 4" in error and "3 references" in error


def test_a_missing_family_is_one_line_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IDGEN_MINI", str(tmp_path / "nowhere"))
    assert main(["demo", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert "nowhere" in error.splitlines()[-1] and "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_a_number_of_images_that_is_none_is_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-n", number]) == 2
    assert "whole number" in capsys.readouterr().err


def test_the_example_person_has_photos_to_show_and_others_to_measure_against() -> None:
    references, others = example_photos("reference"), example_photos("other")
    assert len(references) >= 3 and len(others) >= 3
    assert all(photo.size == (128, 128) for photo in references + others)
    assert "CC0" in (EXAMPLE / "LICENSE.md").read_text()


@pytest.mark.slow
def test_the_shipped_demo_finds_faces_and_measures_them_within_the_time(tmp_path: Path) -> None:
    """The promise of the README: no network, no GPU, a cold start, pictures with a face in them, measured."""
    environment = {name: value for name, value in os.environ.items() if name != "IDGEN_MINI"}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "idgen", "demo", "--out", str(tmp_path), "--json", "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["faces_found"] == len(result["images"]) == 4
    # Far below docs/RESULTS.md, which another machine's kernels may miss a little; far above a stranger and no references.
    assert result["id_score"] > 0.6
    for repair in ("restoration", "inpainting"):
        assert result[repair]["id_score"] > result[repair]["without_references"]["id_score"] + 0.3
    assert seconds < 120  # the bar of 40 s is for an idle machine (benchmarks/speed.py); tests share theirs
