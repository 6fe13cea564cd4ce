"""`idgen evaluate FOLDER`: figures, flags and files of pictures whose quality is known."""

import csv
import html
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from idgen.cli import main
from idgen.evaluation.evidence import Evidence, Sheet
from idgen.evaluation.measures import TAKE
from idgen.evaluation.protocol import MEASURES
from tests.evaluation import toys

PEOPLE = 12


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.write_people(tmp_path_factory.mktemp("toys") / "people", PEOPLE)


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    return toys.write_generated(tmp_path / "generated", PEOPLE)


@pytest.fixture(autouse=True)
def encoders(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return toys.with_toys(monkeypatch)


PROTOCOL = ["--protocol", "mini", "--set", "probe=false", "--set", "features=judge"]


def evaluate(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    arguments = ["evaluate", *map(str, words), *PROTOCOL, "--json", "--device", "cpu"]
    status = main(arguments)
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


def value(result: dict[str, Any], name: str) -> float:
    return result["metrics"][name]["value"]


def test_an_honest_generator_scores_as_real_photos_do(
    generated: Path, references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    result = evaluate(capsys, generated, "--references", references, "--out", out, "--made-with", "mini")
    assert value(result, "id_score") == pytest.approx(1, abs=0.1)
    assert value(result, "id_score_by_the_conditioning_recogniser") == pytest.approx(1, abs=0.1)
    assert value(result, "rank_one_pooled") == 1 and value(result, "faces_found") == 1
    assert value(result, "tar_at_far_1e-02") > 0.9
    assert value(result, "diversity_pixels") == pytest.approx(1, abs=0.15)
    assert value(result, "sharpness_face") == pytest.approx(1, abs=0.1)
    assert result["flags"] == [] and result["remarks"] == []
    figure = result["metrics"]["id_score"]
    assert figure["low"] < figure["value"] < figure["high"] and figure["beside"]["a stranger"] == 0
    assert {path.name for path in out.iterdir()} == {"report.html", "metrics.json", "metrics.csv", "cache"}


@pytest.fixture
def took(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Of each measure that runs from now on, whether it left a figure, a column or a reason."""
    left = {}

    def watched(name: str, take: Callable[[Evidence, Sheet], None]) -> Callable[[Evidence, Sheet], None]:
        def run(evidence: Evidence, sheet: Sheet) -> None:
            before = len(sheet.figures), len(sheet.columns), len(sheet.not_run)
            take(evidence, sheet)
            left[name] = (len(sheet.figures), len(sheet.columns), len(sheet.not_run)) != before

        return run

    for name, take in TAKE.items():
        monkeypatch.setitem(TAKE, name, watched(name, take))
    return left


def test_every_measure_is_a_figure_or_has_a_reason(
    took: dict[str, bool], generated: Path, references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate(capsys, generated, "--references", references, "--out", tmp_path / "out")
    why = result["not_run"]
    assert took.keys() | why.keys() >= set(MEASURES) and len(took) > 5 and all(took.values())
    assert "--training" in why["nearest_training_person"] and "--lookalikes" in why["same_appearance"]
    assert "at least 513 images" in why["fid"] and value(result, "kid") is not None
    assert why["psnr"] == "not part of protocol 'mini'"
    page = (tmp_path / "out" / "report.html").read_text()
    for name, reason in why.items():
        assert name in page and reason.replace("'", "&#x27;") in page
    assert "--made-with" in " ".join(result["remarks"])  # nobody said who made them: the report says that


def test_networks_that_know_renders_only_are_doubted_on_photos(
    generated: Path, references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def doubts(*words: str) -> list[str]:
        arguments = ["evaluate", str(generated), "--references", str(references), "--out", str(tmp_path / "out")]
        assert main([*arguments, *words, "--measures", "detection", "--json", "--device", "cpu"]) == 0
        out, err = capsys.readouterr()
        remarks = [remark for remark in json.loads(out)["remarks"] if "rendered people only" in remark]
        assert all(f"remark: {remark}" in err for remark in remarks)
        return remarks

    real = ["--judge", "other", "--set", "probe=false", "--set", "features=inception"]
    (doubt,) = doubts("--set", "probe=false")
    assert "(judge, features)" in doubt and "--judge antelopev2 --set features=inception" in doubt
    assert doubts(*real) == [] and doubts("--set", "probe=false", "--made-with", "mini") == []
    (doubt,) = doubts(*real[:2])
    assert "(probe, features)" in doubt and "--set probe=false --set features=inception" in doubt
    assert html.escape(doubt) in (tmp_path / "out" / "report.html").read_text()


def test_the_table_has_a_row_for_every_picture(
    generated: Path, references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate(capsys, generated, "--references", references, "--out", tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "metrics.csv").open()))
    assert len(rows) == PEOPLE * 4 == result["images"]
    assert rows[0]["image"] == "toy00_0.png" and rows[0]["person"] == rows[0]["nearest_person"] == "toy00"
    mean = np.mean([float(row["cosine_to_others"]) for row in rows])
    assert mean == pytest.approx(value(result, "cosine_to_others"), abs=1e-4)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.pictures, self.tags = [], set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])


def test_the_report_needs_nothing_but_itself(
    generated: Path, references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(capsys, generated, "--references", references, "--out", tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert {"svg", "polyline", "table", "img"} <= page.tags and not page.tags & {"script", "link", "iframe"}
    assert len(page.pictures) >= 30
    assert all(source and source.startswith("data:image/png;base64,") for source in page.pictures)
    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"] * text.count("<svg")
    for title in ("Best by id_score", "Median", "Worst", "Failures and flags", "Not measured"):
        assert title in text


def test_names_are_shown_and_not_run(
    references: Path, generated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "<img src=x onerror=alert(1)>"
    people = tmp_path / "people"
    for person, name in enumerate((evil, "ben")):
        for shot in range(6):
            toys.save(people / name / f"{shot}.png", toys.photo(person, shot))
        toys.save(tmp_path / "made" / name / "0.png", toys.photo(person, 50))
    evaluate(capsys, tmp_path / "made", "--references", people, "--out", tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert evil not in text and "&lt;img src=x" in text


def test_what_was_read_once_is_not_read_again(
    generated: Path, references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], encoders: dict[str, Any]
) -> None:
    first = evaluate(capsys, generated, "--references", references, "--out", tmp_path / "out")
    embedded = encoders["judge"]._network.embedded
    assert embedded == PEOPLE * 12
    toys.save(generated / "toy00_9.png", toys.photo(0, 999))
    (generated / "toy01_0.png").rename(generated / "toy01_moved.png")
    again = evaluate(capsys, generated, "--references", references, "--out", tmp_path / "out")
    assert encoders["judge"]._network.embedded == embedded + 1
    assert again["images"] == first["images"] + 1


def test_a_run_that_is_broken_off_is_gone_on_with(
    generated: Path,
    references: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    encoders: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from idgen.evaluation import cache

    monkeypatch.setattr(cache, "KEPT", 16)
    words = [generated, "--references", references, "--out", tmp_path / "out"]
    load = toys.Network.forward

    def interrupted(self: toys.Network, crops: torch.Tensor) -> torch.Tensor:
        if self.embedded > 100:
            raise KeyboardInterrupt
        return load(self, crops)

    monkeypatch.setattr(toys.Network, "forward", interrupted)
    assert main(["evaluate", *map(str, words), *PROTOCOL]) == 130
    capsys.readouterr()
    monkeypatch.setattr(toys.Network, "forward", load)
    before = encoders["judge"]._network.embedded
    evaluate(capsys, *words)
    assert encoders["judge"]._network.embedded - before <= PEOPLE * 12 - 96
    assert encoders["judge"]._network.embedded <= PEOPLE * 12 + 32


def test_pictures_without_a_face_are_failures_and_not_left_out(
    generated: Path, references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = evaluate(capsys, generated, "--references", references, "--out", tmp_path / "a")
    for person in range(PEOPLE):
        for image in (0, 1):
            toys.save(generated / f"{toys.name_of(person)}_{image}.png", np.zeros((112, 112, 3), np.uint8))
    half = evaluate(capsys, generated, "--references", references, "--out", tmp_path / "b")
    assert half["images"] == whole["images"] and value(half, "faces_found") == 0.5
    assert value(half, "cosine_to_others") == pytest.approx(value(whole, "cosine_to_others") / 2, abs=0.03)
    assert value(half, "rank_one_pooled") == 0.5 and value(half, "tar_at_far_1e-02") <= 0.5
    assert "no face" in [flag["name"] for flag in half["flags"]]


def test_a_measure_that_was_asked_for_and_can_not_be_taken_is_an_error(
    generated: Path, references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [generated, "--references", references, "--out", tmp_path / "out"]
    assert main(["evaluate", *map(str, words), *PROTOCOL, "--measures", "fid"]) == 2
    assert "at least 513 images on each side, got 48 and 96" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    few = evaluate(capsys, *words, "--measures", "identity")
    assert "id_score" in few["metrics"] and "kid" not in few["metrics"]
    assert few["not_run"]["kid"] == "not among the measures asked for"


def test_training_people_and_lookalikes_of_ones_own_are_measured(
    generated: Path, references: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for person in range(200, 210):
        for shot in range(2):
            toys.save(tmp_path / "training" / str(person) / f"{shot}.png", toys.photo(person, shot))
    for person in range(PEOPLE):
        for shot in range(3):
            alike = toys.draw(0.6 * toys.pattern(person) + 0.4 * toys.pattern(300 + person))
            toys.save(tmp_path / "alike" / toys.name_of(person) / "rival" / f"{shot}.png", alike)
    words = ["--training", tmp_path / "training", "--lookalikes", tmp_path / "alike", "--made-with", "mini"]
    result = evaluate(capsys, generated, "--references", references, "--out", tmp_path / "out", *words)
    assert value(result, "margin_over_nearest_training_person") > 0.3
    assert value(result, "margin_over_nearest_training_person_by_judge") > 0.3
    assert 0.3 < value(result, "same_appearance") <= 1
    beside = result["metrics"]["id_score"]["beside"]
    assert beside["nearest training person"] < beside["same appearance, another head"] < 1.1
