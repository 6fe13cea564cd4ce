"""`idgen evaluate mini` and pipelines: what is generated, kept and measured, with random weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from idgen.cli import main
from idgen.evaluation import built_in, generate
from idgen.evaluation.protocol import load_protocol, protocol_names
from idgen.evaluation.rendered import Photos
from idgen.models.mini_detector import MiniDetector
from idgen.pipelines import Arc2FacePipeline
from tests.evaluation import toys
from tests.tiny_family import face_in_the_middle, tiny_family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_family(tmp_path_factory.mktemp("mini"))


@pytest.fixture(autouse=True)
def with_family(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDGEN_MINI", str(family))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)
    monkeypatch.setattr(built_in, "take_photos", noise_photos)
    monkeypatch.setattr(
        built_in, "training_photos", lambda people, *_, **__: noise_photos(range(people), range(2)).images
    )


def noise_photos(
    people: Sequence[int], shots: Sequence[int], *, variant: int | None = None, size: int = 48, **_: Any
) -> Photos:
    """In place of rendered photos."""
    seed = hash((people[0], len(people), len(shots), -1 if variant is None else variant)) % 2**31
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (len(people), len(shots), size, size, 3), dtype=torch.uint8, generator=generator)
    return Photos(images, torch.zeros(0), torch.zeros(0))


SMALL = [
    "rendered={count: 3, others: 3, size: 48, training: 4, lookalikes: 1, prompts_per_value: 1}",
    "images=2",
    "references=2",
    "call={num_inference_steps: 2}",
]
SETTINGS = [word for setting in SMALL for word in ("--set", setting)]


def evaluate(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    status = main(["evaluate", *map(str, words), *SETTINGS, "--json", "--device", "cpu", "--dtype", "fp32"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


def test_the_mini_family_is_generated_with_and_measured_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from idgen.evaluation import picture_figures

    shares = {name: 0.5 for name in ("all", *picture_figures.TRACKED)}
    monkeypatch.setattr(picture_figures, "obeyed", lambda prompts, reading: shares)
    monkeypatch.setattr(built_in, "choose_prompts", two_prompts)
    result = evaluate(capsys, "mini", "--out", tmp_path / "out")
    assert result["images"] == 6 and result["people"] == 3
    made = sorted(
        path.relative_to(tmp_path / "out" / "images").as_posix() for path in (tmp_path / "out").rglob("images/*/*.png")
    )
    assert made == [f"person_30000{person}/000_00{image}.png" for person in range(3) for image in range(2)]
    for name in (
        "id_score",
        "id_score_by_the_conditioning_recogniser",
        "margin_over_nearest_training_person",
        "margin_over_nearest_training_person_by_judge",
        "same_appearance",
        "rank_one",
        "rank_one_pooled",
        "diversity_pose",
        "diversity_expression",
        "diversity_light",
        "sharpness_face",
        "faces_found",
        "kid",
        "prompt_words",
    ):
        assert name in result["metrics"], name
    assert "at least 257 images" in result["not_run"]["fid"]
    assert result["judge"]["name"] == "judge" and result["judge"]["made_by"] == ["mini"]
    assert [remark.split(":")[0] for remark in result["remarks"]] == ["3 people only"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "person_300000/000_000.png" in page and "Fréchet" not in result["not_run"]["psnr"]


def two_prompts(first: int, **_: Any) -> list[Any]:
    from idgen.evaluation.prompts import Prompt

    return [Prompt("a photo of a woman", first, shot, {}, {}) for shot in (0, 1)]


WITHOUT_PROMPTS = ["--measures", "identity", "detection"]


def test_a_second_run_makes_no_picture_again_and_other_settings_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = evaluate(capsys, "mini", "--out", out, *WITHOUT_PROMPTS)
    before = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.png")}
    (out / "images" / "person_300001" / "000_001.png").unlink()
    calls = count_calls(monkeypatch)
    again = evaluate(capsys, "mini", "--out", out, *WITHOUT_PROMPTS)
    after = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.png")}
    assert calls == [1] and sum(after[path] != before[path] for path in before) == 1
    assert again["metrics"]["cosine_to_others"]["value"] == pytest.approx(
        first["metrics"]["cosine_to_others"]["value"], abs=1e-6
    )
    words = ["evaluate", "mini", "--out", str(out), *SETTINGS, *WITHOUT_PROMPTS, "--device", "cpu", "--dtype", "fp32"]
    assert main([*words, "--seed", "1"]) == 2
    assert "pictures of another evaluation (another seed)" in capsys.readouterr().err
    (family / "arc2face" / "config.json").touch()
    assert main(words) == 2
    assert "another weights" in capsys.readouterr().err


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = Arc2FacePipeline.__call__

    def counted(self: Any, identity: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(len(identity))
        return original(self, identity, *arguments, **options)

    counted.__signature__ = __import__("inspect").signature(original)  # type: ignore[attr-defined]
    monkeypatch.setattr(Arc2FacePipeline, "__call__", counted)
    return calls


def test_neither_the_batch_nor_the_process_decides_what_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def pictures(name: str, batch: int) -> np.ndarray:
        evaluate(capsys, "mini", "--out", tmp_path / name, "--batch", batch, *WITHOUT_PROMPTS)
        from PIL import Image

        paths = sorted((tmp_path / name / "images").rglob("*.png"))
        return np.stack([np.asarray(Image.open(path)) for path in paths]).astype(int)

    one, many = pictures("one", 1), pictures("many", 5)
    assert np.abs(one - many).max() <= 1
    assert all((one[i] != one[j]).any() for i in range(6) for j in range(i))


def test_the_recogniser_that_conditions_can_guide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = ["--set", "call={num_inference_steps: 10}", *WITHOUT_PROMPTS]
    drawn = []
    for strength in (0, 0.05):
        out = tmp_path / str(strength)
        status = main(
            ["evaluate", "mini", "--out", str(out), *SETTINGS, *steps, "--set", f"identity_guidance={strength}"]
        )
        assert status == 0, capsys.readouterr().err
        drawn.append([path.read_bytes() for path in sorted((out / "images").rglob("*.png"))])
    assert len(drawn[0]) == len(drawn[1]) == 6
    assert all(plain != guided for plain, guided in zip(*drawn, strict=True))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--measures", "lpips"], "lpips can not be measured: not installed"),
        (["--measures", "identity", "niqe"], "niqe can not be measured: not installed"),
        (["--measures", "clip_t"], "clip_t can not be measured: the pictures were made without prompts"),
        (["--measures", "psnr"], "psnr can not be measured: there is no original"),
        (["--measures", "fid"], "at least 257 images on each side, got 6 and 15"),
        (["--measures", "fid", "--set", "features=judge"], "at least 513 images on each side, got 6 and 15"),
        (["--measures", "kid", "--set", "images=1"], "needs at least 4 images on each side, got 3 and 15"),
        (["--set", "features=nowhere"], "cannot load a vision model from nowhere"),
    ],
)
def test_a_measure_that_can_not_be_taken_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], why: str
) -> None:
    def take_photos(*given: Any, **options: Any) -> None:
        raise AssertionError("somebody was rendered")

    monkeypatch.setattr(built_in, "take_photos", take_photos)
    for package in ("lpips", "pyiqa"):
        monkeypatch.setitem(sys.modules, package, None)
    arguments = ["evaluate", "mini", "--out", str(tmp_path / "out"), *SETTINGS, *words, "--device", "cpu"]
    assert main(arguments) == 2
    assert why in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_photos_of_ones_own_and_a_saved_pipeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: Path
) -> None:
    Arc2FacePipeline.from_pretrained("mini").save_pretrained(tmp_path / "pipeline")
    people = toys.write_people(tmp_path / "people", 3, 5)
    result = evaluate(capsys, tmp_path / "pipeline", "--references", people, "--out", tmp_path / "out")
    assert result["images"] == 6 and "--training" in result["not_run"]["nearest_training_person"]
    assert "text-to-face" in result["not_run"]["prompt_words"]
    assert not any("rendered people only" in remark for remark in result["remarks"])  # they made these pictures


def test_a_pipeline_without_prompts_is_refused_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("a photo of a man\n\n")
    words = ["evaluate", "mini", "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out"), *SETTINGS]
    assert main([*words, "--device", "cpu"]) == 2
    assert "Arc2FacePipeline takes none" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_call_with_unknown_arguments_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "evaluate",
        "mini",
        "--out",
        str(tmp_path / "out"),
        *SETTINGS,
        "--set",
        "call={steps: 3}",
        "--device",
        "cpu",
    ]
    assert main(words) == 2
    assert "has no argument 'steps'" in capsys.readouterr().err


def test_a_judge_that_conditions_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "mini", "--judge", "mini", "--out", str(tmp_path / "out"), *SETTINGS, "--device", "cpu"]
    assert main(words) == 2
    assert "--same-judge" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", protocol_names())
def test_every_protocol_that_ships_is_valid_and_says_where_it_is_from(name: str) -> None:
    protocol = load_protocol(name)
    assert protocol.name == name and protocol.title and protocol.source


def test_what_is_weights_and_what_is_a_folder_of_pictures(tmp_path: Path, family: Path) -> None:
    assert generate.is_pipeline("mini") and generate.is_pipeline(str(family))
    assert generate.is_pipeline("foivospar/Arc2Face")
    assert not generate.is_pipeline(str(tmp_path)) and not generate.is_pipeline("./made/by_me")
