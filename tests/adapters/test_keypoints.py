"""InstantID's key-point picture: OpenCV as the oracle, several faces, borders, and what is refused."""

import math

import cv2
import numpy as np
import pytest

from idgen.adapters.instantid.keypoints import COLOURS, LIMBS, draw_keypoints
from idgen.adapters.instantid.polygon import ellipse_polygon, fill_convex
from idgen.errors import IdgenError

FACE = np.array([[36.8, 27.66], [88.6, 32.32], [60.14, 59.14], [35.42, 92.62], [79.03, 98.27]], np.float32)


def random_faces(count, dtype):
    """Sizes and landmarks: whole faces, parts beyond the border, points on one spot, and tiny pictures."""
    rng = np.random.default_rng(0)
    for index in range(count):
        size = tuple(int(side) for side in rng.integers(1, 260, 2))
        margin = (0.0, 0.2, 1.5)[index % 3]
        face = np.array(size) * rng.uniform(-margin, 1 + margin, (5, 2))
        if index % 7 == 0:
            face = face.mean(0) + rng.integers(-1, 2, (5, 2))
        yield size, face.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_pixel_is_opencvs(dtype):
    for size, face in random_faces(60, dtype):
        canvas = np.zeros((size[1], size[0], 3))
        for first, last in LIMBS:
            (x0, y0), (x1, y1) = face[first], face[last]
            length = ((x0 - x1) ** 2 + (y0 - y1) ** 2) ** 0.5
            centre = int(np.mean([x0, x1], dtype=dtype)), int(np.mean([y0, y1], dtype=dtype))
            angle = int(math.degrees(math.atan2(y0 - y1, x0 - x1)))
            limb = cv2.ellipse2Poly(centre, (int(length / 2), 4), angle, 0, 360, 1)
            canvas = cv2.fillConvexPoly(canvas, limb, COLOURS[first])
        canvas = (canvas * 0.6).astype(np.uint8)
        for (x, y), colour in zip(face, COLOURS, strict=True):
            canvas = cv2.circle(canvas, (int(x), int(y)), 10, colour, -1)
        assert np.array_equal(np.asarray(draw_keypoints(face, size)), canvas), (size, face.tolist())


def test_each_point_has_its_colour_and_limbs_are_dimmer():
    picture = draw_keypoints(FACE, (120, 128))
    assert picture.size == (120, 128) and picture.mode == "RGB"
    pixels = np.asarray(picture)
    for (x, y), colour in zip(FACE, COLOURS, strict=True):
        assert tuple(pixels[int(y), int(x)]) == colour
    assert tuple(pixels[43, 48]) == (153, 0, 0), "between the left eye and the nose"
    assert pixels[0, 0].sum() == 0


def test_faces_apart_are_drawn_as_if_alone():
    left, right = FACE, FACE + np.float32([130, 0])
    both = np.asarray(draw_keypoints(np.stack([left, right]), (256, 128)))
    alone = [np.asarray(draw_keypoints(face, (256, 128))) for face in (left, right)]
    assert np.array_equal(both, np.maximum(*alone))


def test_faces_beyond_the_picture_leave_it_black():
    for shift in ([-500, 0], [500, 0], [0, -500], [0, 500], [9e5, 9e5]):
        assert not np.asarray(draw_keypoints(FACE + np.float32(shift), (128, 128))).any()


def test_whole_numbers_are_landmarks_too():
    whole = FACE.astype(np.int64)
    assert draw_keypoints(whole, (120, 128)).tobytes() == draw_keypoints(whole.astype(float), (120, 128)).tobytes()


@pytest.mark.parametrize("radius", [1, 3, 4])
def test_a_limb_without_length_is_a_stroke(radius):
    canvas = np.zeros((20, 20, 1), np.uint8)
    fill_convex(canvas, ellipse_polygon(10, 10, 0, radius, 0), (1,))
    rows, columns = canvas[..., 0].nonzero()
    assert set(columns) == {10} and rows.tolist() == list(range(10 - radius, 11 + radius))


@pytest.mark.parametrize(
    ("landmarks", "size", "message"),
    [
        (FACE[:4], (64, 64), r"not \[4, 2\]"),
        (FACE[None, None], (64, 64), r"not \[1, 1, 5, 2\]"),
        (FACE * np.nan, (64, 64), "not finite"),
        (FACE * 1e30, (64, 64), "more than 1000000 pixels away"),
        (FACE, (0, 64), r"size from \(1, 1\), not \(0, 64\)"),
    ],
)
def test_what_can_not_be_drawn_is_refused(landmarks, size, message):
    with pytest.raises(IdgenError, match=message):
        draw_keypoints(landmarks, size)
