"""Regions of a face: CelebAHQ-IDI's boxes, their approximations from five points, strokes, and masks of users."""

import numpy as np
import pytest
import torch
from PIL import Image

from idgen.data.holes import check_holes, load_mask
from idgen.data.regions import BOXES, POINTS, REGIONS, region_box, region_mask, strokes
from idgen.errors import IdgenError
from idgen.faces.align import similarity_matrix
from idgen.synthetic import Renderer, sample_person, sample_shot

SIZE = (128, 128)


@pytest.fixture(scope="module")
def faces():
    """Landmarks (n, 5, 2) and (n, 68, 2) of rendered people."""
    people = [sample_person(0, 950_000 + index) for index in range(8)]
    shots = [sample_shot(0, person, 0, frontal=True) for person in people]
    rendered = Renderer("cpu").render(people, shots, size=128)
    return rendered.landmarks5, rendered.landmarks68


def test_boxes_are_those_of_the_original():
    points = np.zeros((68, 2))
    points[:, 0], points[:, 1] = np.arange(68) + 40, 80  # a line, so that the least height counts
    points[1:16] = [[50, 90]] * 14 + [[90, 121]]
    # 1.2 times as wide and high around the middle, whole pixels, cut off at 128.
    assert region_box("lowerface", points, SIZE) == (87, 46, 124, 94)
    # Height: a fifth of 128, cut to 25.
    assert region_box("eyes", points, SIZE)[::2] == (67, 92)


def test_five_points_give_nearly_the_box_of_68(faces):
    for region in POINTS:
        overlaps = []
        for five, many in zip(*faces, strict=True):
            one, other = (region_mask(region, points, SIZE) for points in (five, many))
            overlaps.append((one & other).sum() / (one | other).sum())
        assert np.mean(overlaps) > 0.8, region


def test_the_measured_boxes_are_those_of_the_renders(faces):
    for region, box in BOXES.items():
        found = []
        for five, many in zip(*faces, strict=True):
            matrix = similarity_matrix(five)
            points = many[POINTS[region]] @ matrix[:, :2].T + matrix[:, 2]
            found.append(np.concatenate([points.min(0), points.max(0)]))
        assert np.abs(np.mean(found, 0) - box).max() < 4, region


@pytest.mark.parametrize("region", REGIONS)
def test_a_mask_covers_some_of_the_picture(faces, region):
    first, again = (region_mask(region, faces[0][0], SIZE, np.random.default_rng(3)) for _ in range(2))
    assert first.shape == (128, 128) and first.dtype == bool
    assert 0.02 < first.mean() < 0.95 and np.array_equal(first, again)


def test_strokes_are_of_every_size():
    shares = [strokes(SIZE, np.random.default_rng(seed)).mean() for seed in range(50)]
    assert 0 < min(shares) < 0.05 and max(shares) > 0.15


@pytest.mark.parametrize(
    ("region", "landmarks", "message"),
    [
        ("nose", np.ones((68, 2)), "unknown region 'nose': use one of lowerface, eyes, brows, whole, random"),
        ("eyes", np.ones((4, 2)), r"68 or 5 finite landmarks, got shape \[4, 2\]"),
        ("eyes", np.full((68, 2), np.nan), "68 or 5 finite"),
        ("eyes", np.full((68, 2), -500.0), "lies outside the picture"),
    ],
)
def test_what_has_no_region_is_told(region, landmarks, message):
    with pytest.raises(IdgenError, match=message):
        region_mask(region, landmarks, SIZE)


def test_masks_of_files_are_checked(tmp_path):
    path = tmp_path / "mask.png"
    white = np.zeros((20, 30), np.uint8)
    white[5:9, 5:9] = 200
    Image.fromarray(white).save(path)
    assert np.array_equal(load_mask(path, (30, 20)), white > 0)
    with pytest.raises(IdgenError, match=r"mask\.png has 30 x 20 pixels and the picture 20 x 30"):
        load_mask(path, (20, 30))
    with pytest.raises(IdgenError, match="no such file"):
        load_mask(tmp_path / "no.png", (1, 1))


def test_masks_are_checked_in_every_form():
    image = torch.rand(2, 3, 8, 8)
    half = torch.zeros(2, 1, 8, 8)
    half[..., :4] = 1
    check_holes(image, half)
    check_holes([Image.new("RGB", (8, 8))] * 2, half[0])
    check_holes(image.permute(0, 2, 3, 1).numpy(), half[:, 0, :, :, None].numpy())
    half[1] = 0
    with pytest.raises(IdgenError, match="covers nothing"):
        check_holes(image, half)
    with pytest.raises(IdgenError, match="no picture or no mask"):
        check_holes([], half)
