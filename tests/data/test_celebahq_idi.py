"""CelebAHQ-IDI as its authors lay it out, in miniature."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from idgen.data.celebahq_idi import CelebAHQIDI
from idgen.data.portraits import embed_portraits
from idgen.errors import IdgenError

PEOPLE = {"7": ["0.jpg", "1.jpg", "2.jpg"], "11": ["3.jpg", "4.jpg", "5.jpg"], "12": ["6.jpg", "7.jpg", "8.jpg"]}
BOX = [512, 256, 1024, 768]  # top, left, bottom, right of 1024


@pytest.fixture
def folder(tmp_path):
    """Three people, one in each split, two references each; picture n is of grey 20 n."""
    (tmp_path / "image").mkdir()
    (tmp_path / "annotation" / "dialog").mkdir(parents=True)
    for index in range(9):
        Image.new("RGB", (64, 64), (20 * index,) * 3).save(tmp_path / "image" / f"{index}.jpg", quality=95)
    annotation = {
        "train_ids": ["7"],
        "val_ids": ["11"],
        "test_ids": ["12"],
        "id2image": {name: {"ref": files[:2], "infer": files[2:]} for name, files in PEOPLE.items()},
        "meta": {"n_ref": 2},
    }
    (tmp_path / "annotation" / "idi-2.json").write_text(json.dumps(annotation))
    boxes = {name: torch.tensor([BOX] * 9) for name in ("lowerface", "eyebrow", "wholeface", "nose")}
    torch.save(
        {"landmarks": torch.zeros(9, 68, 2).long(), "bboxes": boxes}, tmp_path / "annotation" / "region_bbox.pth"
    )
    captions = {"0.jpg": {"overall_caption": "She smiles."}}
    (tmp_path / "annotation" / "dialog" / "captions_hq.json").write_text(json.dumps(captions))
    return tmp_path


def test_splits_references_and_targets(folder):
    for split, name in (("train", "7"), ("val", "11"), ("test", "12")):
        data = CelebAHQIDI(folder, split, 2, size=32)
        (person,) = data.listed
        assert (person.name, list(person.references), list(person.targets)) == (
            name,
            PEOPLE[name][:2],
            PEOPLE[name][2:],
        )
        assert data.files == PEOPLE[name] and [list(numbers) for numbers in data.people] == [[0, 1, 2]]


def test_pictures_captions_and_boxes(folder):
    data = CelebAHQIDI(folder, "val", 2, size=32)
    picture = data.picture(1)
    assert picture.shape == (32, 32, 3) and abs(int(picture.mean()) - 80) < 3  # 4.jpg
    assert data.caption(0) == "" and CelebAHQIDI(folder, "train", 2).caption(0) == "She smiles."
    assert data.box("whole", 0) == (16, 8, 32, 24)
    whole = data.hole(0, None)
    assert whole[16:32, 8:24].all() and whole.sum() == 16 * 16
    drawn = data.hole(0, np.random.default_rng(0))
    assert drawn[16:32, 8:24].all() and drawn.sum() > whole.sum()


def test_the_authors_masks_are_used_where_they_are(folder):
    (folder / "mask").mkdir()
    mask = np.zeros((64, 64), np.uint8)
    mask[:8] = 255
    Image.fromarray(mask).save(folder / "mask" / "0.png")
    drawn = CelebAHQIDI(folder, "train", 2, size=32).hole(0, np.random.default_rng(0))
    assert drawn[:4].all() and not drawn[4:16].any()


def test_embeddings_are_computed_once(folder):
    data = CelebAHQIDI(folder, "train", 2, size=32)
    seen = []

    def embed(pictures, numbers):
        seen.extend(numbers.tolist())
        return pictures.mean((2, 3))

    first = embed_portraits(data, embed, "e", torch.device("cpu"), batch=2)
    again = embed_portraits(data, embed, "e", torch.device("cpu"))
    assert seen == [0, 1, 2] and np.array_equal(first, again) and first.shape == (3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "annotation" / "idi-2.json").rename(folder / "annotation" / "idi-5.json"),
            "it has 5",
        ),
        (lambda folder: (folder / "annotation" / "idi-2.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "annotation" / "idi-2.json").write_text("{}"), "is not CelebAHQ-IDI's annotation"),
        (lambda folder: (folder / "annotation" / "region_bbox.pth").unlink(), "region_bbox"),
        (
            lambda folder: torch.save(
                {"bboxes": {"nose": torch.ones(1, 4)}}, folder / "annotation" / "region_bbox.pth"
            ),
            "no boxes of lowerface, eyebrow, wholeface",
        ),
    ],
)
def test_what_is_not_there_is_told_in_one_line(folder, change, message):
    change(folder)
    with pytest.raises(IdgenError, match=message) as error:
        CelebAHQIDI(folder, "train", 2)
    assert "\n" not in str(error.value)
