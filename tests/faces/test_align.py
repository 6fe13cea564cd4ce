"""Aligned crops: where the landmarks end up, what lies beyond the photo, and gradients."""

import numpy as np
import pytest
import torch
from PIL import Image

from idgen.errors import IdgenError
from idgen.faces.align import ARCFACE_TEMPLATE, ffhq_crop, norm_crop, similarity_matrix, template
from idgen.faces.align_torch import ffhq_crop_torch, norm_crop_torch, similarity_matrix_torch

RNG = np.random.default_rng(0)


def turned(angle, scale=1.5, shift=(90.0, 70.0)):
    """The template, turned by `angle` degrees, scaled and shifted: where a face might be in a photo."""
    a = np.deg2rad(angle)
    rotation = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    return (ARCFACE_TEMPLATE - 56) @ rotation.T * scale + 56 + np.array(shift)


def smooth_photo(height=300, width=340):
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 17 + c) + np.cos(y / (13 + c) - c) for c in range(3)]
    return ((np.stack(waves, -1) + 2) * 63).astype(np.uint8)


@pytest.mark.parametrize("angle", [0, 30, -90, 180, 137])
@pytest.mark.parametrize("size", [112, 128, 224, 256])
def test_landmarks_land_on_the_template_from_any_angle(angle, size):
    landmarks = turned(angle)
    matrix = similarity_matrix(landmarks, size)
    assert np.allclose(landmarks @ matrix[:, :2].T + matrix[:, 2], template(size), atol=1e-9)


def test_the_fit_is_the_least_squares_one_of_insightface():
    from insightface.utils.face_align import estimate_norm

    for _ in range(10):
        landmarks = (turned(RNG.uniform(-60, 60)) + RNG.normal(0, 6, (5, 2))).astype(np.float32)
        assert np.allclose(similarity_matrix(landmarks), estimate_norm(landmarks), atol=1e-3)


def test_crops_equal_those_of_insightface():
    from insightface.utils.face_align import norm_crop as original

    photo = smooth_photo()
    for angle in (0, 20, -70):
        landmarks = turned(angle).astype(np.float32)
        difference = np.abs(norm_crop(photo, landmarks).astype(int) - original(photo, landmarks).astype(int))
        assert difference.mean() < 0.2 and difference.max() <= 4  # OpenCV may round positions to 1/32 px


def test_a_mirrored_face_is_not_mirrored_back():
    matrix = similarity_matrix(turned(0) * [-1, 1] + [300, 0])
    assert np.linalg.det(matrix[:, :2]) > 0


def test_beyond_the_photo_is_black():
    photo = np.full((60, 60, 3), 200, np.uint8)
    crop = norm_crop(photo, turned(0, scale=1.0, shift=(30, 0)))
    assert (crop[:, :20] == 200).all(-1).any() and (crop[:, 60:] == 0).all()
    images = torch.full((1, 3, 60, 60), 0.5)
    crops = norm_crop_torch(images, torch.from_numpy(turned(0, scale=1.0, shift=(30, 0)))[None])
    assert (crops[..., 60:] == -1).all() and crops.max() == 0.5
    crops = norm_crop_torch(images, torch.from_numpy(turned(0, scale=1.0, shift=(30, 0)))[None], value_range=(0, 1))
    assert (crops[..., 60:] == 0).all()


@pytest.mark.parametrize("bad", [np.zeros((5, 2)), np.ones((4, 2)), np.full((5, 2), np.nan), np.ones((68, 2))])
def test_landmarks_that_are_no_face_are_refused(bad):
    with pytest.raises(IdgenError, match="landmarks"):
        norm_crop(smooth_photo(), bad)


@pytest.mark.parametrize("size", [0, 100, -112])
def test_other_crop_sizes_are_refused(size):
    with pytest.raises(IdgenError, match="112"):
        norm_crop(smooth_photo(), turned(0), size)


def to_batch(photos):
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_a_batch_of_differentiable_crops_equals_the_crops_one_by_one():
    photos = [smooth_photo(), smooth_photo()[::-1].copy()]
    landmarks = [turned(15), turned(-40, scale=2.2)]
    crops = norm_crop_torch(to_batch(photos), torch.from_numpy(np.stack(landmarks)), 128)
    for crop, photo, points in zip(crops, photos, landmarks, strict=True):
        expected = norm_crop(photo, points, 128)
        got = (crop.permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(got - expected).max() < 0.6  # the other one rounds
        matrix = similarity_matrix_torch(torch.from_numpy(points)[None], 128)[0]
        assert np.allclose(matrix, similarity_matrix(points, 128), atol=1e-3)


def test_gradients_reach_the_picture_and_the_landmarks():
    images = to_batch([smooth_photo()]).requires_grad_()
    landmarks = torch.from_numpy(turned(10))[None].requires_grad_()
    norm_crop_torch(images, landmarks).square().sum().backward()
    assert images.grad.abs().sum() > 0 and landmarks.grad.abs().min() > 0
    assert landmarks.grad.isfinite().all()


def test_the_gradient_of_the_landmarks_is_the_true_one():
    g = torch.Generator().manual_seed(0)
    landmarks = torch.from_numpy(turned(10))[None].double()
    step = 0.01 * torch.randn(landmarks.shape, generator=g, dtype=torch.float64)
    images = to_batch([smooth_photo()])

    def value(points):
        return norm_crop_torch(images, points).square().mean()

    points = landmarks.clone().requires_grad_()
    (grad,) = torch.autograd.grad(value(points), points)
    numeric = value(landmarks + step) - value(landmarks - step)
    assert numeric.item() == pytest.approx(2 * (grad * step).sum().item(), rel=0.05)


def test_half_precision_crops_stay_in_half_precision():
    images = to_batch([smooth_photo()])
    landmarks = torch.from_numpy(turned(10))[None]
    crops = norm_crop_torch(images.bfloat16(), landmarks)
    assert crops.dtype == torch.bfloat16
    assert (crops.float() - norm_crop_torch(images, landmarks)).abs().mean() < 0.02


def test_autocast_does_not_move_a_crop():
    images, landmarks = to_batch([smooth_photo()]), torch.from_numpy(turned(10))[None]
    with torch.autocast("cpu", torch.bfloat16):
        crops = norm_crop_torch(images, landmarks)
    assert torch.equal(crops, norm_crop_torch(images, landmarks))


# FFHQ portraits


def five_to_68(points):
    """68 points whose eye centres and mouth corners are the given ones; the others do not matter."""
    many = RNG.normal(100, 30, (68, 2))
    ring = np.stack([np.cos(np.arange(6)), np.sin(np.arange(6))], -1)
    ring -= ring.mean(0)
    many[36:42], many[42:48] = points[0] + 4 * ring, points[1] + 4 * ring
    many[48], many[54] = points[3], points[4]
    return many


def test_five_and_68_landmarks_give_the_same_portrait():
    points = turned(12, scale=1.0)
    photo = smooth_photo()
    five, many = (ffhq_crop(photo, p, 64, 128) for p in (points, five_to_68(points)))
    assert five.shape == (64, 64, 3)
    assert np.abs(five.astype(int) - many.astype(int)).max() <= 1


def test_a_portrait_is_upright():
    photo = smooth_photo()
    upright = ffhq_crop(photo, turned(0, scale=0.6), 64, 128)
    quarter = np.rot90(photo).copy()  # the top right corner moves to the top left
    width = photo.shape[1]
    points = turned(0, scale=0.6)
    turned_points = np.stack([points[:, 1], width - 1 - points[:, 0]], -1)
    assert np.abs(ffhq_crop(quarter, turned_points, 64, 128).astype(int) - upright.astype(int)).mean() < 2


@pytest.mark.parametrize("case", ["inside", "edge", "large", "no padding"])
def test_differentiable_portraits_equal_the_portraits_and_pass_gradients(case):
    photo = smooth_photo()
    points = {"inside": turned(8, 0.7), "edge": turned(8, 1.0, (-40, -30)), "large": turned(8, 2.0)}.get(
        case, turned(8, 1.0, (-40, -30))
    )
    padding = case != "no padding"
    images = to_batch([photo, photo[:, ::-1].copy()]).requires_grad_()
    both = torch.from_numpy(np.stack([points, points]))
    portraits = ffhq_crop_torch(images, both, 48, 96, padding)
    for portrait, image in zip(portraits, (photo, photo[:, ::-1]), strict=True):
        got = (portrait.detach().permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(got - ffhq_crop(image, points, 48, 96, padding)).max() <= 1.01
    portraits.sum().backward()
    # Each pixel of the portrait is an average of the photo: the gradient is not lost in the rounding.
    assert images.grad[0].sum().item() == pytest.approx((portraits[0] > -1).sum().item(), rel=0.35)


def test_padding_continues_the_photo_and_no_padding_is_black():
    photo = np.full((120, 120, 3), 180, np.uint8)
    points = turned(0, 1.0, (-50, -50))
    assert ffhq_crop(photo, points, 32, 64).min() >= 179
    assert ffhq_crop(photo, points, 32, 64, enable_padding=False).min() == 0


def test_a_face_outside_the_photo_and_landmarks_on_one_spot_are_refused():
    with pytest.raises(IdgenError, match="outside"):
        ffhq_crop(smooth_photo(), turned(0) + 5000, 64, 128)
    with pytest.raises(IdgenError, match="one spot"):
        ffhq_crop(smooth_photo(), np.ones((5, 2)), 64, 128)
    with pytest.raises(IdgenError, match="68 or 5"):
        ffhq_crop(smooth_photo(), np.ones((7, 2)), 64, 128)


def test_pil_images_are_taken_too():
    photo = smooth_photo()
    assert np.array_equal(norm_crop(Image.fromarray(photo), turned(3)), norm_crop(photo, turned(3)))
