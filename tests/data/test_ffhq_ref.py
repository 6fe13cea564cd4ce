"""FFHQ-Ref's layout: read as published, written by `idgen synth`, and what is said of a damaged one."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from idgen import cli
from idgen.data.augment import vary_references
from idgen.data.ffhq_ref import FFHQRef, SynthReferences, open_references, read_table, write_tables
from idgen.errors import IdgenError
from tests.tiny import tiny_vae

TABLE = """gt_image,lq_image,ref_image
00001.png,severe/00001.png,"['00002.png', '00007.png']"
00007.png,,['00001.png']
"""


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Three pictures of 48 px as the authors lay them out."""
    for folder in ("images512x512", "reference_mapping", "id_based_ffhq_split"):
        (tmp_path / folder).mkdir()
    for index in (1, 2, 7, 9):
        Image.new("RGB", (48, 48), (index * 20, 0, 0)).save(tmp_path / "images512x512" / f"{index:05d}.png")
    (tmp_path / "reference_mapping" / "train_references.csv").write_text(TABLE)
    (tmp_path / "id_based_ffhq_split" / "train.txt").write_text("00001.png\n00009.png\n")
    return tmp_path


def test_the_published_layout(published):
    rows = read_table(published / "reference_mapping" / "train_references.csv")
    assert [(row.target, row.references, row.degraded) for row in rows] == [
        ("00001.png", ("00002.png", "00007.png"), "severe/00001.png"),
        ("00007.png", ("00001.png",), None),
    ]
    data = open_references(published, "train", 32)
    assert isinstance(data, FFHQRef) and data.files == ["00001.png", "00002.png", "00007.png"]
    assert data.targets.tolist() == [0, 2] and [one.tolist() for one in data.references] == [[1, 2], [0]]
    assert data.picture(2).shape == (32, 32, 3) and data.picture(2)[0, 0].tolist() == [140, 0, 0]


def test_photos_alone_are_listed_by_identity(published):
    data = open_references(published, "train", 48, alone=True)
    assert isinstance(data, FFHQRef) and data.files == ["00001.png", "00009.png"]
    assert [len(one) for one in data.references] == [0, 0]


def test_latents_are_computed_once(published):
    data, vae = open_references(published, "train", 32), tiny_vae()
    weights = published / "vae.safetensors"
    weights.write_bytes(b"whatever")
    with torch.no_grad():
        first = data.latents(vae, weights, torch.device("cpu"))
    assert first.shape == (3, 8, 4, 4)
    assert np.array_equal(data.latents(None, weights, torch.device("cpu")), first)


def test_synth_writes_the_layout_that_is_read(tmp_path):
    out = tmp_path / "people"
    words = ["synth", "--people", "4", "--shots", "2", "--size", "32", "--workers", "1", "--format", "ffhq-ref"]
    assert cli.main([*words, "--out", str(out)]) == 0
    data = open_references(out, "train", 32)
    assert isinstance(data, FFHQRef) and len(data.targets) == 4, "two people; the others are val's and test's"
    assert data.files[data.references[0][0]] == data.files[1] and "p000000" in data.files[0]
    assert np.array_equal(data.picture(0), np.asarray(Image.open(out / data.files[0])))
    assert len(open_references(out, "val", 32).targets) == len(open_references(out, "test", 32).targets) == 2
    lists = [(out / "id_based_ffhq_split" / f"{name}.txt").read_text().split() for name in ("train", "val", "test")]
    assert [len(one) for one in lists] == [4, 2, 2] and len({name for one in lists for name in one}) == 8
    with open(out / "reference_mapping" / "train_references.csv", newline="") as file:
        assert next(csv.reader(file)) == ["gt_image", "ref_image"]


def test_a_synth_folder_serves_as_it_is(people_folder_32):
    data = open_references(people_folder_32, "train", 32)
    assert isinstance(data, SynthReferences) and len(data.targets) == 4
    for target, others in zip(data.targets, data.references, strict=True):
        assert target not in others and len(others) == 1
    with pytest.raises(IdgenError, match="have 32 px, and 64"):
        open_references(people_folder_32, "train", 64)


@pytest.fixture
def people_folder_32(tmp_path):
    words = ["synth", "--people", "2", "--shots", "2", "--size", "32", "--workers", "1", "--out", str(tmp_path / "p")]
    assert cli.main(words) == 0
    return tmp_path / "p"


def test_splits_have_the_shares_of_ffhq_ref(tmp_path):
    write_tables(tmp_path, [[f"{person}_{shot}.png" for shot in range(2)] for person in range(130)])
    counts = [
        len(read_table(tmp_path / "reference_mapping" / f"{name}_references.csv")) // 2
        for name in ("train", "val", "test")
    ]
    assert counts == [121, 6, 3]


@pytest.mark.parametrize(
    "text", ["gt_image\n1.png\n", "gt_image,ref_image\n1.png,[open]\n", "gt_image,ref_image\n1.png,3\n"]
)
def test_a_damaged_table_is_one_line(published, text):
    (published / "reference_mapping" / "train_references.csv").write_text(text)
    with pytest.raises(IdgenError, match="not FFHQ-Ref's table"):
        open_references(published, "train", 32)


def test_what_is_missing_is_named(published, tmp_path):
    with pytest.raises(IdgenError, match=r"val_references\.csv"):
        open_references(published, "val", 32)
    with pytest.raises(IdgenError, match=r"val\.txt"):
        open_references(published, "val", 32, alone=True)
    with pytest.raises(IdgenError, match="idgen synth"):
        open_references(tmp_path / "nowhere", "train", 32)
    (published / "reference_mapping" / "train_references.csv").write_text("gt_image,ref_image\n")
    with pytest.raises(IdgenError, match="no photo to restore"):
        open_references(published, "train", 32)


def test_varied_references_are_other_pictures_of_the_same():
    torch.manual_seed(0)
    picture = torch.zeros(1, 3, 64, 64)
    picture[:, 0, 16:48, 16:48] = 1
    varied = vary_references(picture.expand(200, -1, -1, -1))
    assert varied.shape == (200, 3, 64, 64) and varied.min() >= -1 and varied.max() <= 1
    assert (varied[1:] - varied[:1]).abs().amax((1, 2, 3)).min() > 0.1
    mean = varied.mean(0)
    assert mean[0, 32, 32] > 0.5 > mean[0, 4, 32] and (mean[:, :, 4:60] - mean[:, :, 4:60].flip(2)).abs().mean() < 0.1
