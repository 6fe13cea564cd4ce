"""The command behind the table of bars: every row is measured, and a generator that draws the person scores as one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bars_pictures, mini_bars
from benchmarks.bars_identity import Gallery, baselines, measure_identity, pooled
from benchmarks.faces import Vectors
from benchmarks.report import Report, attempted
from idgen.errors import IdgenError
from idgen.evaluation.rendered import Photos
from idgen.models.mini_detector import MiniDetector
from tests.tiny_family import face_in_the_middle, tiny_family

DIM = 64


def test_a_missing_part_of_the_family_leaves_the_other_rows(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("bars")
    with attempted(report, "prompt words obeyed"):
        raise IdgenError("the probe is not here")
    report.add("speed", "1 s")
    report.publish(None)
    table = capsys.readouterr().out
    assert "not measured: the probe is not here" in table and "| speed | 1 s |" in table


def noise_photos(people: Sequence[int], shots: Sequence[int], *, variant: int | None = None, **_: Any) -> Photos:
    """In place of rendered photos."""
    generator = torch.Generator().manual_seed(
        hash((people[0], len(people), len(shots), -1 if variant is None else variant)) % 2**31
    )
    shape = (len(people), len(shots))
    images = torch.randint(1, 256, (*shape, 32, 32, 3), dtype=torch.uint8, generator=generator)
    points = torch.tensor([[12.0, 15], [20, 15], [16, 20], [13, 24], [19, 24]])
    return Photos(images, points.expand(*shape, 5, 2), torch.zeros(*shape, 3))


def test_every_row_of_the_table_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IDGEN_MINI", str(tiny_family(tmp_path / "mini")))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)
    for module in (mini_bars, bars_pictures):
        monkeypatch.setattr(module, "take_photos", noise_photos)
    monkeypatch.setattr(
        mini_bars, "training_photos", lambda people, *_, **__: noise_photos(range(people), range(2)).images
    )
    counts = ["--people", "10", "--images", "2", "--steps", "1", "--training-people", "6", "--per-value", "1"]
    places = ["--cache", str(tmp_path / "cache"), "--json", str(tmp_path / "bars.json")]
    sheet = tmp_path / "sheet.png"
    mini_bars.main([*counts, *places, "--sheet", str(sheet), "--device", "cpu", "--dtype", "fp32"])
    table = capsys.readouterr().out
    for row in (
        "id_score to the other photos",
        "margin over the nearest training person",
        "rank-1",
        "TAR@FAR 1e-2 / 1e-3",
        "same appearance, different shape, 4-way",
        "diversity over real renders",
        "autoencoder at 32 px",
        "sharpness over real renders",
        "prompt words obeyed",
        "detector finds a face",
        "generation, batch 4, 1 steps",
        "nearest training person, picked by the judge",
    ):
        assert row in table, row
    stored = json.loads((tmp_path / "bars.json").read_text())
    assert {"one_reference", "four_references", "baselines", "diversity", "sharpness", "prompts"} <= stored.keys()
    assert stored["one_reference"]["images_without_a_face"] == 0
    assert sheet.stat().st_size > 1000


def people(photos: int, noise: float, seed: int = 0, count: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(count, 1, DIM, generator=generator), dim=-1)
    return centres + torch.randn(count, photos, DIM, generator=generator) * noise / DIM**0.5


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    photos = people(14, 0.5)
    lookalikes = torch.stack([people(4, 0.5, seed=seed) for seed in (1, 2, 3)], 1)
    training = people(2, 0.5, seed=9, count=60)
    return Gallery(
        photos[:, :4], photos[:, 4:10], photos[:, 10:], lookalikes, Vectors(training, training), photos[:, :4]
    )


def test_real_photos_reach_the_top_of_every_figure_and_strangers_the_bottom(gallery: Gallery) -> None:
    rows = baselines(gallery)
    real, stranger = rows["real photos"], rows["a stranger"]
    assert real["id_score"]["value"] == pytest.approx(1, abs=0.03)
    assert real["rank_one"]["value"] > 0.95 and real["lookalikes_four_way"]["value"] > 0.99
    assert real["tar_at_far"]["1e-02"]["value"] > 0.95
    assert stranger["id_score"]["value"] == pytest.approx(0, abs=0.1)
    assert stranger["rank_one"]["value"] < 0.1 and stranger["tar_at_far"]["1e-02"]["value"] < 0.1
    assert real["margin_over_nearest_training_person"]["value"] > 0.2
    assert rows["nearest training person"]["margin_over_nearest_training_person"]["value"] == 0


def test_a_generator_that_copies_the_reference_is_told_apart_by_its_score_to_the_others(gallery: Gallery) -> None:
    copies = gallery.references[:, :1].expand(-1, 4, -1)
    scores = measure_identity(copies, gallery, shown=1)
    assert scores["id_score_to_references"]["value"] > scores["id_score"]["value"] + 0.1


def test_images_without_a_face_lower_every_figure(gallery: Gallery) -> None:
    half = gallery.standins.clone()
    half[:, ::2] = 0
    whole, lost = (measure_identity(probes, gallery, shown=1) for probes in (gallery.standins, half))
    assert lost["images_without_a_face"] == 40 * 2
    for name in ("id_score", "rank_one", "lookalikes_four_way"):
        assert lost[name]["value"] == pytest.approx(whole[name]["value"] / 2, abs=0.1)
    assert lost["tar_at_far"]["1e-02"]["value"] == pytest.approx(whole["tar_at_far"]["1e-02"]["value"] / 2, abs=0.05)


def test_references_without_a_face_are_left_out_of_the_pool() -> None:
    references = people(4, 0.3)
    references[:, 1] = 0
    assert torch.nn.functional.cosine_similarity(pooled(references), pooled(references[:, [0, 2, 3]])).min() > 0.999
    assert pooled(torch.zeros(2, 4, DIM)).abs().sum() == 0
