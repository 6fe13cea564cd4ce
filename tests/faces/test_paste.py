"""A portrait that is cut and put back is where it was: tilted, at the border, tiny and huge."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from idgen.errors import IdgenError
from idgen.faces.align import ffhq_crop
from idgen.faces.paste import feathered, paste_portrait, portrait_corners

FACE = np.array([[-0.25, -0.15], [0.25, -0.15], [0.0, 0.1], [-0.2, 0.32], [0.2, 0.32]])  # eyes half a unit apart


def landmarks(centre, unit, degrees=0.0):
    turn = np.deg2rad(degrees)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return FACE @ matrix.T * unit + centre


def photo(width, height, grain=24):
    """Smooth and different everywhere, so that a shift of a pixel shows."""
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (height // grain + 2, width // grain + 2, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def difference(first, second):
    return np.abs(np.asarray(first, float) - np.asarray(second, float))


@pytest.mark.parametrize(
    ("size", "grain", "points", "portrait", "most"),
    [
        ((400, 300), 24, landmarks((200, 150), 120), 256, 8),
        ((400, 300), 24, landmarks((200, 150), 110, 38), 256, 8),
        ((400, 300), 24, landmarks((200, 150), 110, 170), 256, 8),
        ((400, 300), 24, landmarks((30, 40), 130, -20), 256, 32),  # FFHQ's alignment blurs towards the photo's edge
        ((300, 300), 6, landmarks((150, 150), 20, 10), 256, 12),
        ((1200, 900), 100, landmarks((600, 450), 350, 10), 64, 8),
    ],
    ids=["upright", "tilted", "upside down", "at the border", "tiny", "huge"],
)
def test_cut_and_put_back_the_photo_is_what_it_was(size, grain, points, portrait, most):
    before = photo(*size, grain)
    crop = Image.fromarray(ffhq_crop(before, points, portrait, 4 * portrait))
    after = paste_portrait(before, crop, points)
    assert after.size == before.size
    assert difference(before, after).max() < most and difference(before, after).mean() < 0.6
    wrong = paste_portrait(before, crop, points + 0.05 * np.hypot(*(points[1] - points[0])))
    assert difference(before, wrong).max() > 2 * difference(before, after).max(), "this test sees a shift"


def test_outside_of_the_portrait_every_bit_stays():
    before, points = photo(400, 300), landmarks((200, 150), 90, 25)
    after = paste_portrait(before, Image.new("RGB", (64, 64), "red"), points)
    inside = Image.new("L", before.size)
    ImageDraw.Draw(inside).polygon([tuple(corner) for corner in portrait_corners(before.size, points, 64)], fill=255)
    outside = np.asarray(inside.filter(ImageFilter.MaxFilter(5))) == 0
    changed = difference(before, after).max(-1)
    assert outside.any() and not changed[outside].any()
    middle = points.mean(0).astype(int)
    assert after.getpixel(tuple(int(value) for value in middle)) == (255, 0, 0)


def test_the_mask_is_whole_within_and_fades_to_nothing():
    mask = np.asarray(feathered(128)).astype(int)
    assert mask[64, 64] == 255 and mask[64, 20] == 255 and mask[64, 0] < 4 and mask[2, 2] == 0
    assert (mask == mask.T).all() and (np.diff(mask[64, :64]) >= 0).all()


def test_a_face_outside_the_photo_is_refused():
    with pytest.raises(IdgenError, match="outside the photo"):
        paste_portrait(photo(100, 100), Image.new("RGB", (64, 64)), landmarks((900, 900), 40))
