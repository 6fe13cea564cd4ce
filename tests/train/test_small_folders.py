"""Folders with fewer photos or people than a batch has: some come twice, as in the trainings of photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from idgen.train.arc2face import Arc2FaceStage, Arc2FaceTrainConfig
from idgen.train.autoencoder import AutoencoderConfig, AutoencoderStage
from idgen.train.base import BaseConfig, BaseStage
from idgen.train.recogniser import RecogniserConfig, RecogniserStage
from idgen.weights import mini_root

PHOTOS, PEOPLE = 24, 6  # of `people_folder`


@pytest.mark.parametrize(
    ("stage", "config", "weights"),
    [
        (AutoencoderStage, AutoencoderConfig, {}),
        (RecogniserStage, RecogniserConfig, {"name": "small"}),
        (BaseStage, BaseConfig, {"vae": "vae"}),
        (Arc2FaceStage, Arc2FaceTrainConfig, {"base": "", "recogniser": "recogniser"}),
    ],
)
def test_a_batch_is_as_large_as_was_asked_for(
    stage: Any, config: Any, weights: dict[str, str], people_folder: Path, tmp_path: Path
) -> None:
    given = {name: value if name == "name" else mini_root() / value for name, value in weights.items()}
    common = {"output_dir": tmp_path, "data": people_folder, "validation": people_folder}
    made = stage(config(train_batch_size=PHOTOS + 6, **common, **given), torch.device("cpu"))
    batch = made.batch(np.random.default_rng(0))
    seen = batch["photos"] if "photos" in batch else batch["ids"]
    assert len(seen) == PHOTOS + 6 and PEOPLE < len({str(one) for one in seen}) <= PHOTOS
