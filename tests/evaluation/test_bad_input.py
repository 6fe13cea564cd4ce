"""What people hand to `idgen evaluate` by mistake: one line, exit status 2, and nothing left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from idgen.evaluation.material import listed, natural
from tests.evaluation import toys
from tests.renders import Refused


@pytest.fixture(autouse=True)
def _encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.with_toys(monkeypatch)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return toys.write_people(tmp_path / "people", 3, 6)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return toys.write_generated(tmp_path / "made", 3, 2)


@pytest.fixture
def says(refused: Refused, people: Path, made: Path, tmp_path: Path) -> Any:
    """Evaluate `made` against `people`; returns the line of the refusal."""

    def run(*words: Any, source: Any = made, references: Any = people) -> str:
        settings = ["--set", "probe=false", "--set", "features=judge", "--device", "cpu", "--out", tmp_path / "out"]
        return refused("evaluate", source, "--references", references, *settings, *words)

    return run


def test_empty_and_missing_folders(says: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no images" in says(source=tmp_path / "empty")
    assert "is empty" in says(references=tmp_path / "empty")
    assert "no such folder" in says(source=tmp_path / "nowhere")
    assert "no such folder" in says(references=tmp_path / "nowhere")
    (tmp_path / "people" / "toy01x").mkdir()
    assert "toy01x is empty" in says()


def test_generated_images_of_several_sizes(says: Any, made: Path) -> None:
    toys.save(made / "toy01_1.png", np.full((64, 48, 3), 9, np.uint8))
    line = says()
    assert "2 sizes" in line and "toy01_1.png is 48 x 64" in line and "112 x 112" in line


@pytest.mark.parametrize("name", ["notes.txt", "toy00_7.gifs"])
def test_files_that_are_no_images_among_images(says: Any, made: Path, people: Path, name: str) -> None:
    (made / name).write_text("notes")
    assert f"{name} is not an image" in says()
    (made / name).rename(people / "toy00" / name)
    assert f"{name} is not an image" in says()


@pytest.mark.parametrize("content", [b"", b"these are notes, not pixels"])
def test_images_that_can_not_be_read(says: Any, made: Path, people: Path, content: bytes) -> None:
    (made / "toy00_7.png").write_bytes(content)
    assert "toy00_7.png" in says()
    (made / "toy00_7.png").rename(people / "toy00" / "7.png")
    assert "7.png" in says()


def test_a_truncated_image(says: Any, made: Path) -> None:
    path = made / "toy00_1.png"
    path.write_bytes(path.read_bytes()[:400])
    line = says()
    assert "toy00_1.png" in line and "truncated" in line


def test_one_person_only(says: Any, people: Path, tmp_path: Path) -> None:
    assert "one person only (toy00)" in says(references=people / "toy00")
    toys.write_people(tmp_path / "alone", 1)
    assert "one person only (toy00)" in says(references=tmp_path / "alone")


def test_fewer_images_than_fid_needs(says: Any) -> None:
    line = says("--measures", "fid")
    assert "at least 513 images on each side, got 6 and 18" in line


def test_references_without_faces(says: Any, people: Path) -> None:
    toys.save(people / "toy01" / "0.png", np.zeros((112, 112, 3), np.uint8))
    line = says()
    assert "finds no face" in line and "toy01/0.png" in line


def test_pictures_of_nobody_known(says: Any, made: Path) -> None:
    toys.save(made / "tom_0.png", toys.photo(0, 0))
    assert "tom_0.png is of nobody among the references" in says()
    (made / "tom_0.png").unlink()
    toys.save(made / "toy0" / "1.png", toys.photo(0, 0))
    assert "did you mean 'toy0" in says()


def test_people_without_a_picture_are_not_passed_over(says: Any, made: Path) -> None:
    for path in made.glob("toy02_*"):
        path.unlink()
    assert "no picture of 1 of the 3 people (toy02)" in says()


def test_metadata_that_does_not_fit(says: Any, made: Path) -> None:
    file = made / "metadata.jsonl"
    file.write_text('{"file_name": "toy00_0.png"}\n')
    assert "line 1: needs the keys" in says()
    file.write_text(json.dumps({"file_name": "toy00_0.png", "person": "toy0"}))
    assert "did you mean 'toy0" in says()
    file.write_text(json.dumps({"file_name": "gone.png", "person": "toy00"}), encoding="utf-8-sig")
    assert "no such file" in (line := says()) and "gone.png" in line
    file.write_text(json.dumps({"file_name": "toy00_0.png", "person": "toy00", "prompt": "\ud800"}))
    assert "line 1: a text is not UTF-8" in says()
    file.write_bytes('{"file_name": "toy00_0.png", "person": "zoë"}'.encode("latin-1"))
    assert "metadata.jsonl is not UTF-8" in says()


def test_names_that_no_table_can_be_written_with(says: Any, people: Path, made: Path) -> None:
    name = os.fsdecode("zoë".encode("latin-1"))
    try:
        toys.write_people(people / name, 1)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert "is not UTF-8 (zo\\udceb)" in says()
    (people / name).rename(people.parent / "besides")
    toys.save(made / f"toy00_{name}.png", toys.photo(0, 1))
    assert "is not UTF-8" in says()


def test_numbers_in_names_are_decimal_and_no_two_names_are_equal() -> None:
    assert natural("anna5²") == [(1, 0, "anna"), (0, 5, ""), (1, 0, "²")]
    shuffled = SimpleNamespace(iterdir=lambda: iter([Path("a1.png"), Path("a10.png"), Path("a01.png")]))
    assert [path.name for path in listed(shuffled)] == ["a01.png", "a1.png", "a10.png"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--protocol", "mimi"], "unknown protocol 'mimi': did you mean 'mini'?"),
        (["--set", "imges=3"], "unknown setting 'imges': did you mean 'images'?"),
        (["--set", "images=none"], "setting 'images'"),
        (["--set", "images"], "name=value"),
        (["--set", "rendered.cuont=3"], "did you mean 'rendered.count'?"),
        (["--set", "measures=[idenity]"], "idenity"),
        (["--measures", "idenity"], "unknown measure 'idenity'"),
        (["--judge", "nobody"], "no face encoder 'nobody'"),
        (["--batch", "0"], "whole number"),
        (["--protocol", "nowhere.yaml"], "cannot read"),
        (["--prompts", "nowhere.txt"], "cannot read the prompts"),
    ],
)
def test_settings_that_are_none(says: Any, words: list[str], line: str) -> None:
    assert line in says(*words)


def test_a_protocol_file_with_unknown_names(says: Any, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("title: own\nsource: me\nrefrences: 2\n")
    assert "own.yaml: unknown setting 'refrences': did you mean 'references'?" in says("--protocol", file)
    file.write_text("title: [")
    assert "is not YAML" in says("--protocol", file)
    file.write_text("title: own\n")
    assert "'source' is missing" in says("--protocol", file)


def test_an_output_folder_that_can_not_be_written(says: Any, tmp_path: Path) -> None:
    (tmp_path / "in-the-way").write_text("a file")
    assert "cannot write" in says("--out", tmp_path / "in-the-way" / "out")


def test_a_protocol_that_needs_photos(refused: Refused, made: Path, tmp_path: Path) -> None:
    line = refused("evaluate", made, "--protocol", "id_aligner", "--out", tmp_path / "out")
    assert "--references DIR" in line


def test_data_sets_that_are_not_there(says: Any, people: Path) -> None:
    assert "as its authors publish it" in says("--protocol", "refldm_severe")
    assert "as its authors publish it" in says("--protocol", "pva")


def test_nobody_is_rendered_for_an_evaluation_that_is_refused(
    refused: Refused, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rendering a protocol's people takes minutes: a mistake is told before."""

    def take_photos(*given: Any, **options: Any) -> None:
        raise AssertionError("somebody was rendered")

    monkeypatch.setattr("idgen.evaluation.built_in.take_photos", take_photos)
    out = ["--out", tmp_path / "out", "--device", "cpu"]
    assert "is of nobody among the references" in refused("evaluate", made, *out)
    one = toys.write_people(tmp_path / "one", 1)
    (one / "toy00").rename(one / "person_300000")
    assert "no picture of 99 of the 100 people" in refused("evaluate", one, *out)
    assert "no face encoder 'nobody'" in refused("evaluate", "mini", "--judge", "nobody", *out)
