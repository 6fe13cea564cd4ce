"""Matching of detections with faces."""

import math

import torch

from benchmarks.detector import match

FACE = torch.tensor([[0.0, 0.0], [10.0, 0.0], [5.0, 5.0], [2.0, 9.0], [8.0, 9.0]])


def test_the_error_is_a_share_of_the_distance_between_the_eyes() -> None:
    errors, left = match([FACE + torch.tensor([1.0, 0.0])], FACE[None])
    assert math.isclose(errors[0], 0.1, rel_tol=1e-5) and left == 0


def test_a_detection_counts_for_one_face_only_and_the_rest_are_false() -> None:
    truth = torch.stack([FACE, FACE + 2])
    errors, left = match([FACE + 0.1], truth)
    assert math.isfinite(errors[0]) and math.isinf(errors[1]) and left == 0
    errors, left = match([FACE, FACE + 0.5, FACE + 500], FACE[None])
    assert errors[0] == 0 and left == 2


def test_a_detection_far_from_every_face_finds_none() -> None:
    errors, left = match([FACE + 6], FACE[None])
    assert math.isinf(errors[0]) and left == 1
    assert match([], FACE[None]) == ([math.inf], 0)
    assert match([FACE], torch.zeros(0, 5, 2)) == ([], 1)
