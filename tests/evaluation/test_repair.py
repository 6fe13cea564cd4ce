"""Restoration and inpainting protocols run through their pipelines, with random weights."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from idgen.cli import main
from idgen.pipelines import PVAInpaintPipeline, ReferenceRestorePipeline
from tests.evaluation import toys
from tests.evaluation.test_protocols import write_ffhq_ref, write_shared_ffhq_ref
from tests.pipelines.test_pva import components, tiny_adapter, tiny_iresnet
from tests.tiny_restore import tiny_restorer


@pytest.fixture(autouse=True)
def _encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.with_toys(monkeypatch)


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, Any]:
    settings = ["--judge", "judge", "--set", "features=judge", "--device", "cpu", "--dtype", "fp32", "--json"]
    status = main(["evaluate", *map(str, words), *settings])
    out, err = capsys.readouterr()
    return status, json.loads(out) if status == 0 else err


def test_degraded_pictures_are_restored_measured_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_ffhq_ref(tmp_path / "ffhq")
    tiny_restorer(size=112).save_pretrained(tmp_path / "pipeline")
    words = [tmp_path / "pipeline", "--protocol", "refldm_severe", "--references", data, "--out", tmp_path / "out"]
    words += ["--set", "call={num_inference_steps: 2}", "--batch", 3]
    status, error = run(capsys, *words)
    assert status == 2 and "severe_degrad/00000.png" in error and not (tmp_path / "out" / "images").exists()
    for person in range(4):
        bad = np.rint(toys.photo(person, 0) / 64).astype(np.uint8) * 64
        toys.save(data / "test_images" / "severe_degrad" / f"{person:03d}00.png", bad)
    status, error = run(capsys, *words, "--set", "identity_guidance=0.01")
    assert status == 2 and "identity guidance, which is for generated pictures" in error
    status, result = run(capsys, *words)
    assert status == 0, result
    assert result["images"] == 4 and result["metrics"]["psnr"]["value"] > 0
    made = sorted((tmp_path / "out" / "images").glob("*.png"))
    assert [path.name for path in made] == [f"{person:03d}00.png" for person in range(4)]
    times = [path.stat().st_mtime_ns for path in made]
    assert run(capsys, *words)[0] == 0
    assert [path.stat().st_mtime_ns for path in made] == times


def test_pictures_of_one_name_in_two_folders_are_restored_each_from_its_own_references(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_shared_ffhq_ref(tmp_path / "ffhq")
    for person in range(3):
        for shot in range(3):
            toys.save(data / "test_images" / "severe_degrad" / f"p{person}" / f"s{shot}.png", toys.photo(person, shot))
    tiny_restorer(size=112).save_pretrained(tmp_path / "pipeline")
    given: list[Any] = []
    restore = ReferenceRestorePipeline.__call__

    def watched(self: Any, image: Any, references: Any = None, **options: Any) -> Any:
        given.extend(references)
        return restore(self, image, references, **options)

    watched.__signature__ = inspect.signature(restore)  # type: ignore[attr-defined]
    monkeypatch.setattr(ReferenceRestorePipeline, "__call__", watched)
    words = [tmp_path / "pipeline", "--protocol", "refldm_severe", "--references", data, "--out", tmp_path / "out"]
    status, result = run(capsys, *words, "--set", "call={num_inference_steps: 1}", "--batch", 9)
    assert status == 0, result
    made = sorted(
        path.relative_to(tmp_path / "out" / "images") for path in (tmp_path / "out" / "images").rglob("*.png")
    )
    assert [path.as_posix() for path in made] == [f"p{person}/s{shot}.png" for person in range(3) for shot in range(3)]
    assert [len(photos) for photos in given] == [1, 2, 1] * 3  # rows of the table, shot by shot
    assert np.array_equal(np.asarray(given[3][0]), toys.photo(0, 2))


def test_holes_are_filled_with_the_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "celebahq"
    parts: dict[str, Any] = {}
    for person in range(2):
        names = [f"{10 * person + shot}.png" for shot in range(4)]
        for shot, name in enumerate(names):
            toys.save(data / "image" / name, toys.photo(person, shot))
        parts[str(person)] = {"ref": names[:3], "infer": names[3:]}
        mask = np.zeros((112, 112, 3), np.uint8)
        mask[30:80, 20:90] = 255
        if person == 0:
            toys.save(data / "lowerface" / f"{names[3]}", mask)
    (data / "annotation").mkdir()
    (data / "annotation" / "idi-3.json").write_text(json.dumps({"test_ids": [0, 1], "id2image": parts}))
    pipe = PVAInpaintPipeline(**components())
    pipe.load_pva(tiny_adapter(pipe.unet), tiny_iresnet()).save_pretrained(tmp_path / "pipeline")
    words = [tmp_path / "pipeline", "--protocol", "pva", "--references", data, "--out", tmp_path / "out"]
    words += ["--set", "call={num_inference_steps: 2, height: 112, width: 112}", "--set", "references=3"]
    words += ["--set", "masks=lowerface", "--set", "prompts=[photo of a person]"]
    status, error = run(capsys, *words)
    assert status == 2 and "lowerface/13.png" in error and "mask of its name" in error
    toys.save(data / "lowerface" / "13.png", mask)
    status, result = run(capsys, *words)
    assert status == 0, result
    assert result["images"] == 2 and result["judge"]["made_by"] == ["ms1mv3_r50"]
    assert "by name only" in " ".join(result["remarks"])


def test_a_pipeline_that_can_not_do_what_the_protocol_is_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_restorer().save_pretrained(tmp_path / "pipeline")
    people = toys.write_people(tmp_path / "people", 2, 6)
    status, error = run(capsys, tmp_path / "pipeline", "--references", people, "--out", tmp_path / "out")
    assert status == 2 and "is about pictures to generate, and ReferenceRestorePipeline can not do that" in error
