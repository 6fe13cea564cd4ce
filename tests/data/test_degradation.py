"""Damage to photos: what is drawn, what it does, and that tensors show the same as OpenCV."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from idgen.data.degradation import PRESETS, DegradationConfig, compress, degrade, draw_damage, gaussian_kernel, shrink
from idgen.data.degradation_torch import degrade_batch, shrink_batch
from idgen.data.jpeg import jpeg
from idgen.data.resampling import resize
from idgen.errors import IdgenError


def picture(height: int = 96, width: int = 80, seed: int = 0) -> np.ndarray:
    """uint8 RGB with soft and hard edges in every channel."""
    y, x = np.mgrid[0:height, 0:width] / 16.0
    waves = np.stack([np.sin(x + seed) + np.cos(y), np.cos(2 * x) * np.sin(y), np.sin(x * y / 2)], -1)
    disc = ((x - 2.5) ** 2 + (y - 3) ** 2 < 3)[..., None] * np.array([0.8, -0.6, 0.4])
    return ((waves / 4 + disc / 2 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)


def tensors(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_the_same_seed_damages_the_same_and_another_differently() -> None:
    first, again, other = (degrade(picture(), draw_damage(PRESETS["train"], 96, 80, seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_drawing_leaves_the_global_generators_alone() -> None:
    random.seed(0), np.random.seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist()
    draw_damage(PRESETS["train"], 96, 80, seed=5)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.parametrize("preset", PRESETS)
def test_draws_stay_in_their_preset(preset: str) -> None:
    config = PRESETS[preset]
    low, high = (512 // factor for factor in reversed(config.downsample_range))
    generators = random.Random(0), np.random.RandomState(0)
    for _ in range(20):
        damage = draw_damage(config, 512, 256, generators=generators)
        assert low <= damage.size[0] <= high and abs(damage.size[0] - 2 * damage.size[1]) <= 1
        assert config.jpeg_range[0] <= damage.quality <= config.jpeg_range[1]
        assert damage.noise.std() < 1.1 * config.noise_range[1] / 255
        assert damage.kernel.sum() == pytest.approx(1)


def test_severe_damage_is_worse_than_moderate() -> None:
    def error(preset: str) -> float:
        damaged = [degrade(picture(), draw_damage(PRESETS[preset], 96, 80, seed)) for seed in range(4)]
        return float(np.mean([np.abs(image.astype(float) - picture()).mean() for image in damaged]))

    assert error("severe") > 1.2 * error("moderate")


def test_a_kernel_spreads_along_its_axes() -> None:
    kernel = gaussian_kernel(41, 4.0, 2.0)
    axis = np.arange(41) - 20
    assert np.sqrt((kernel.sum(0) * axis**2).sum()) == pytest.approx(4, rel=1e-3)  # sigma_x runs over columns
    assert np.sqrt((kernel.sum(1) * axis**2).sum()) == pytest.approx(2, rel=1e-3)
    assert gaussian_kernel(5, 0, 0)[2, 2] == 1


def test_a_picture_smaller_than_the_factor_keeps_a_pixel() -> None:
    config = DegradationConfig(downsample_range=(32, 32), blur_kernel_size=3)
    assert degrade(picture(20, 20), draw_damage(config, 20, 20, 0)).shape == (20, 20, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"blur_kernel_size": 4},
        {"blur_kernel_list": ("box",)},
        {"blur_kernel_prob": (1.0,)},
        {"downsample_range": (0, 2)},
    ],
)
def test_a_range_that_makes_no_sense_is_refused(wrong: dict) -> None:
    with pytest.raises(IdgenError):
        DegradationConfig(**wrong)


def test_tensors_show_the_same_damage_as_opencv() -> None:
    images = [picture(seed=seed) for seed in range(6)]
    presets = ["train", "severe", "moderate"] * 2
    damages = [draw_damage(PRESETS[name], 96, 80, seed) for seed, name in enumerate(presets)]

    small, sizes = shrink_batch(tensors(images), damages)
    for row, size, image, damage in zip(small, sizes.tolist(), images, damages, strict=True):
        assert tuple(size) == damage.size
        found = row[:, : size[0], : size[1]].permute(1, 2, 0).numpy()
        assert np.abs(found - shrink(image, damage)[..., ::-1]).max() < 1e-5

    result = degrade_batch(tensors(images), damages)
    wanted = tensors([degrade(image, damage) for image, damage in zip(images, damages, strict=True)])
    difference = (result - wanted).abs() * 127.5
    # Enlarged from 4 pixels, one coefficient of the JPEG that rounds the other way shows everywhere.
    assert difference.mean((1, 2, 3)).median() < 0.6 and difference.mean() < 1 and difference.max() < 12


@pytest.mark.parametrize("quality", [30, 49, 50, 75, 96, 100])
def test_jpeg_is_libjpegs(quality: int) -> None:
    sizes = [(48, 64), (37, 51), (16, 9), (6, 6), (5, 4), (3, 3)]
    images = [picture(*size, seed=index) for index, size in enumerate(sizes)]
    batch = torch.zeros(len(sizes), 3, 48, 64)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[0], : image.shape[1]] = torch.from_numpy(image).permute(2, 0, 1) / 255
    result = jpeg(batch, torch.tensor(sizes), torch.full((len(sizes),), quality)) * 255
    for row, image in zip(result, images, strict=True):
        height, width = image.shape[:2]
        wanted = compress(image[..., ::-1] / 255, quality)[..., ::-1] * 255
        difference = np.abs(row[:, :height, :width].permute(1, 2, 0).numpy() - wanted)
        # libjpeg's cosines are whole numbers: now and then a coefficient rounds the other way, and shows in its block.
        assert difference.mean() < 0.7 and np.median(difference) <= 1 and difference.max() < 12, (height, width)


def test_resizing_is_opencvs() -> None:
    import cv2

    generator = np.random.default_rng(0)
    sources, targets = [(30, 40), (17, 9), (5, 64)], [(11, 64), (64, 9), (1, 3)]
    batch = torch.zeros(3, 3, 64, 64)
    pictures = [generator.random((*size, 3), np.float32) for size in sources]
    for row, image in zip(batch, pictures, strict=True):
        row[:, : image.shape[0], : image.shape[1]] = torch.from_numpy(image).permute(2, 0, 1)
    result = resize(batch, torch.tensor(sources), torch.tensor(targets), (64, 64))
    for row, image, (height, width) in zip(result, pictures, targets, strict=True):
        wanted = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        assert np.abs(row[:, :height, :width].permute(1, 2, 0).numpy() - wanted).max() < 1e-5
        assert torch.equal(row[:, height - 1 : height].expand(-1, 64 - height, -1), row[:, height:])


def test_pictures_and_damages_that_do_not_fit_are_refused() -> None:
    with pytest.raises(IdgenError, match="too small"):
        degrade_batch(torch.zeros(1, 3, 20, 32), [draw_damage(PRESETS["train"], 20, 32, 0)])
    with pytest.raises(IdgenError, match="1 damages for 2 pictures"):
        degrade_batch(torch.zeros(2, 3, 32, 32), [draw_damage(PRESETS["train"], 32, 32, 0)])


def test_importing_it_does_not_import_opencv() -> None:
    code = "import sys, idgen.data.degradation_torch; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
