"""Scenes for the detector: what is said to be a face is where it is said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from idgen.data.clutter import compose, face_boxes
from idgen.data.faces import FaceFolder
from idgen.data.scenes import MOST, SceneMaker


def _marked(size: int = 128) -> FaceFolder:
    """One 'face': black, with a white dot on each landmark."""
    landmarks = np.array([[44, 50], [84, 50], [64, 70], [48, 90], [80, 90]], np.float32)
    image = np.zeros((size, size, 3), np.uint8)
    for x, y in landmarks.astype(int):
        image[y - 2 : y + 3, x - 2 : x + 3] = 255
    outline = np.array([[30, 40], [98, 40], [64, 110]], float)
    row = {"landmarks68": np.concatenate([landmarks, outline] * 9)[:68].tolist()}
    return FaceFolder(
        Path("."), image[None], np.ones((1, size, size), np.uint8), landmarks[None], np.zeros(1, np.int64), [row]
    )


def _lit(pictures: torch.Tensor, faces: torch.Tensor, present: torch.Tensor) -> int:
    """How many landmarks inside their picture were looked at; each must lie on its white dot."""
    looked, size = 0, pictures.shape[-1]
    for picture, landmarks, there in zip(pictures, faces, present, strict=True):
        for x, y in landmarks[there].flatten(0, 1).round().long().tolist():
            if 0 <= x < size and 0 <= y < size:
                assert picture[:, y, x].min() > 0.5
                looked += 1
    return looked


def test_landmarks_of_a_close_up_lie_on_their_dots() -> None:
    torch.manual_seed(0)
    batch = SceneMaker(_marked(), torch.device("cpu")).close_ups(np.random.default_rng(0), 16)
    assert batch.pictures.shape == (16, 3, 128, 128) and bool(batch.present.all())
    assert _lit(batch.pictures, batch.landmarks, batch.present) > 40


def test_batched_scenes_have_none_one_and_several_faces_whose_eyes_are_where_they_are_said_to_be() -> None:
    torch.manual_seed(1)
    batch = SceneMaker(_marked(), torch.device("cpu")).scenes(np.random.default_rng(1), 48)
    assert batch.boxes.shape == (48, MOST, 4) and bool(torch.isfinite(batch.pictures).all())
    counts = batch.present.sum(1)
    assert set(counts.clamp_max(2).tolist()) == {0, 1, 2}
    # Dots of small faces are blurred: look at the large ones.
    large = batch.present & (batch.boxes[..., 2] - batch.boxes[..., 0] > 90)
    assert _lit(batch.pictures, batch.landmarks, large) > 20
    inside = (batch.landmarks > batch.boxes[..., None, :2] - 30) & (batch.landmarks < batch.boxes[..., None, 2:] + 30)
    assert bool(inside[batch.present].all())


def test_boxes_hold_their_landmarks_and_scenes_have_none_one_and_several_faces() -> None:
    data = _marked()
    boxes = face_boxes(data)
    counts = set()
    for seed in range(60):
        scene = compose(data, boxes, np.random.default_rng(seed))
        counts.add(min(2, len(scene.boxes)))
        assert scene.picture.shape == (3, 256, 256) and bool(torch.isfinite(scene.picture).all())
        for box, points in zip(scene.boxes, scene.landmarks, strict=True):
            slack = 0.2 * (box[2:] - box[:2])
            assert bool((points > box[:2] - slack).all()) and bool((points < box[2:] + slack).all())
    assert counts == {0, 1, 2}


def test_the_same_seed_makes_the_same_scene() -> None:
    data = _marked()
    boxes = face_boxes(data)
    a, b = (compose(data, boxes, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(a.picture, b.picture) and torch.equal(a.landmarks, b.landmarks)
