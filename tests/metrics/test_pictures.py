"""Diversity, sharpness and PSNR of pictures whose answer is known, and the bootstrap."""

import math

import pytest
import torch

from idgen.metrics import (
    bootstrap_means,
    expression_spread,
    laplacian_energy,
    pixel_spread,
    pose_spread,
    psnr,
    sharpness_ratio,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_picture_for_every_seed_has_no_diversity() -> None:
    same = noise(3, 1, 8, 8, 3).expand(3, 4, 8, 8, 3)
    assert pixel_spread(same).tolist() == [0, 0, 0]
    assert pose_spread(torch.ones(3, 4, 3)).tolist() == [0, 0, 0]
    assert expression_spread(torch.full((3, 4, 5), 0.2)).max() == pytest.approx(0, abs=1e-9)


def test_pixel_spread_is_the_root_mean_square_difference() -> None:
    black, white = torch.zeros(1, 1, 4, 4, 3, dtype=torch.uint8), torch.full((1, 1, 4, 4, 3), 255, dtype=torch.uint8)
    assert pixel_spread(torch.cat([black, white], 1)).tolist() == [1.0]
    assert pixel_spread(torch.cat([black, white, white], 1)).item() == pytest.approx(math.sqrt(2 / 3))


def test_pose_spread_is_in_degrees_and_ignores_differences_between_people() -> None:
    people = torch.randn(500, 4, 3, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([20.0, 0, 0])
    people += torch.arange(500.0)[:, None, None] * 10
    assert pose_spread(people).square().mean().sqrt() == pytest.approx(20, rel=0.05)


def test_blur_lowers_the_laplacian_energy_and_brightness_does_not_change_it() -> None:
    sharp = noise(2, 32, 32, 3) * 0.5
    blurred = torch.nn.functional.avg_pool2d(sharp.permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1)
    assert sharpness_ratio(blurred, sharp) < 0.3
    assert sharpness_ratio(sharp, sharp) == pytest.approx(1)
    assert laplacian_energy(sharp + 0.4) == pytest.approx(laplacian_energy(sharp), rel=1e-3)


def test_eight_bit_and_float_pictures_give_the_same_figures() -> None:
    eight_bit = (noise(2, 16, 16, 3) * 255).to(torch.uint8)
    assert laplacian_energy(eight_bit) == pytest.approx(laplacian_energy(eight_bit / 255), rel=1e-5)
    assert psnr(eight_bit, torch.zeros_like(eight_bit)) == pytest.approx(
        psnr(eight_bit / 255, torch.zeros(2, 16, 16, 3)), rel=1e-5
    )


def test_psnr_of_a_tenth_off_everywhere_is_twenty_decibels() -> None:
    images = torch.full((1, 4, 4, 3), 0.5)
    assert psnr(images + 0.1, images).item() == pytest.approx(20, abs=1e-3)


def test_pictures_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="height, width, 3"):
        laplacian_energy(torch.zeros(2, 3, 8, 8))


def test_the_bootstrap_interval_has_the_width_of_theory_and_repeats() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    interval = bootstrap_means(values)
    assert interval.value == pytest.approx(float(values.mean()), abs=1e-6)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert interval == bootstrap_means(values)
    assert interval.low < interval.value < interval.high


def test_the_bootstrap_of_a_ratio_resamples_its_parts_together() -> None:
    bottom = torch.rand(50, generator=torch.Generator().manual_seed(1)) + 0.5
    interval = bootstrap_means(torch.stack([3 * bottom, bottom], 1), lambda m: m[..., 0] / m[..., 1])
    assert interval.low == pytest.approx(3) and interval.high == pytest.approx(3)


def test_the_bootstrap_refuses_nobody_and_parts_that_nothing_combines() -> None:
    with pytest.raises(ValueError, match="people"):
        bootstrap_means(torch.zeros(0))
    with pytest.raises(ValueError, match="combine"):
        bootstrap_means(torch.zeros(5, 2))
