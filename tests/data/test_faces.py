"""Folders of labelled faces that a user made: what is missing or wrong is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from idgen.data.clutter import face_boxes
from idgen.data.faces import FaceFolder
from idgen.data.portraits import SynthPortraits
from idgen.errors import IdgenError

POINTS = [[10, 12], [22, 12], [16, 18], [11, 24], [21, 24]]


def folder(root: Path, **changes: Any) -> Path:
    """Three photos; in the second line `changes` replace what is there, None takes it away."""
    rows = []
    for number in range(3):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(root / f"{number}.png")
        Image.new("L", (32, 32), number).save(root / f"{number}-mask.png")
        row = {"file_name": f"{number}.png", "mask_file_name": f"{number}-mask.png", "person": 7 + number // 2}
        rows.append(row | {"landmarks5": POINTS, "caption": "a face"})
    rows[1] = {name: value for name, value in (rows[1] | changes).items() if value is not None}
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def test_a_folder_in_the_layout_of_synth(tmp_path: Path) -> None:
    data = FaceFolder.open(folder(tmp_path))
    assert data.people.tolist() == [0, 0, 1] and data.captions == ["a face"] * 3
    assert data.landmarks.shape == (3, 5, 2) and data.landmarks.dtype == np.float32
    assert data.images[:, 0, 0, 0].tolist() == [0, 60, 120] and data.masks[:, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mask_file_name": None}, r"metadata\.jsonl, line 2 lacks mask_file_name: `idgen synth` writes"),
        ({"file_name": None}, r"metadata\.jsonl, line 2 lacks file_name: "),
        ({"landmarks5": None}, r"metadata\.jsonl, line 2 lacks landmarks5: "),
        ({"person": None}, r"metadata\.jsonl, line 2 lacks person: "),
        ({"person": "anna"}, r"metadata\.jsonl, line 2: person is a whole number"),
        ({"landmarks5": POINTS[:4]}, r"metadata\.jsonl, line 2: .* five points"),
        ({"file_name": "large.png"}, r"large\.png has the shape \(48, 64, 3\) and not \(32, 32, 3\)"),
        ({"mask_file_name": "large.png"}, r"large\.png has the shape \(48, 64, 3\) and not \(32, 32\)"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "large.png")
    with pytest.raises(IdgenError, match=says) as caught:
        FaceFolder.open(folder(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_captions_are_asked_for_where_they_are_needed(tmp_path: Path) -> None:
    data = FaceFolder.open(folder(tmp_path, caption=None))
    with pytest.raises(IdgenError, match=r"line 2 lacks caption"):
        _ = data.captions


@pytest.mark.parametrize(
    ("use", "lacks"),
    [
        (lambda data: data.column("pose"), "pose"),
        (SynthPortraits, "landmarks68"),
        (face_boxes, "landmarks68"),
        (lambda data: SynthPortraits.caption(SimpleNamespace(data=data), 0), "caption"),
    ],
)
def test_what_only_some_uses_need_is_named_by_them(
    tmp_path: Path, use: Callable[[FaceFolder], object], lacks: str
) -> None:
    data = FaceFolder.open(folder(tmp_path, caption=None))
    with pytest.raises(IdgenError, match=rf"metadata\.jsonl, line [12] lacks {lacks}: `idgen synth` writes it"):
        use(data)
