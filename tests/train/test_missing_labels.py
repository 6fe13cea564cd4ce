"""A folder of labelled faces that lacks what a training needs: one line that names it, wherever it is missed first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from idgen.data.faces import FaceFolder
from idgen.errors import IdgenError
from idgen.train.probe import ProbeConfig, ProbeStage
from idgen.train.reward_checks import CheckConfig, Checks
from idgen.train.text_encoder import acting
from idgen.train.words import named_attributes

CPU = torch.device("cpu")


@pytest.fixture
def bare(tmp_path: Path) -> FaceFolder:
    """One photo with all that FaceFolder asks for, and a caption."""
    for name, mode in (("a.png", "RGB"), ("mask.png", "L")):
        Image.new(mode, (32, 32)).save(tmp_path / name)
    row = {"file_name": "a.png", "mask_file_name": "mask.png", "person": 1, "landmarks5": [[0, 0]] * 5}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row | {"caption": "a face"}))
    return FaceFolder.open(tmp_path)


def probe(data: FaceFolder) -> Any:
    return ProbeStage(ProbeConfig(output_dir=data.folder / "out", data=data.folder, validation=data.folder), CPU)


def adherence(data: FaceFolder) -> Any:
    """Of the checks this part alone: the rest needs a model."""
    checks: Any = SimpleNamespace(config=CheckConfig(), device=CPU)
    return Checks._adherence(checks, data, [0])


@pytest.mark.parametrize(
    ("use", "lacks"),
    [
        (probe, "attributes"),
        (acting, "pose"),
        (lambda data: named_attributes(data, ["head"]), "attributes"),
        (adherence, "attributes"),
    ],
    ids=["probe", "text_encoder", "words", "reward_checks"],
)
def test_what_a_training_misses_is_one_line(bare: FaceFolder, use: Callable[[FaceFolder], Any], lacks: str) -> None:
    with pytest.raises(IdgenError, match=rf"metadata\.jsonl, line 1 lacks {lacks}: `idgen synth` writes it") as caught:
        use(bare)
    assert "\n" not in str(caught.value)
