"""Diversity, sharpness and PSNR of pictures whose answer is known, and the bootstrap."""

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from idgen.metrics import (
    bootstrap_means,
    expression_spread,
    laplacian_energy,
    pixel_spread,
    pose_spread,
    psnr,
    sharpness_ratio,
    ssim,
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


@pytest.mark.parametrize("kind", [torch.float64, torch.uint8])
def test_psnr_and_ssim_agree_with_scikit_image(kind: torch.dtype) -> None:
    targets = torch.nn.functional.avg_pool2d(noise(3, 3, 47, 38), 5, 1, 2).permute(0, 2, 3, 1)
    images = (targets + 0.1 * noise(3, 47, 38, 3, seed=1)).clamp(0, 1)
    pair = [(part * 255).to(torch.uint8) if kind == torch.uint8 else part.double() for part in (images, targets)]
    for index, found in enumerate(zip(psnr(*pair), ssim(*pair), strict=True)):
        picture, target = (part[index].numpy() for part in pair)
        scale = 255 if kind == torch.uint8 else 1
        expected = structural_similarity(
            picture,
            target,
            data_range=scale,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert float(found[1]) == pytest.approx(expected, abs=1e-5)
        assert float(found[0]) == pytest.approx(peak_signal_noise_ratio(target, picture, data_range=scale), abs=1e-5)


def test_ssim_of_a_picture_with_itself_is_one_and_small_or_unequal_pictures_are_refused() -> None:
    assert ssim(noise(2, 16, 16, 3), noise(2, 16, 16, 3)).tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(noise(1, 10, 16, 3), noise(1, 10, 16, 3))
    with pytest.raises(ValueError, match="one size"):
        ssim(noise(1, 16, 16, 3), noise(1, 16, 17, 3))


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


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Skewed per-person values, as cosines are; 400 repetitions, so the share itself is known to 1 %."""
    people, truth, hits = 80, 1.0, 0
    generator = torch.Generator().manual_seed(0)
    for seed in range(400):
        values = -torch.rand(people, generator=generator).log()  # exponential, mean 1
        interval = bootstrap_means(values, resamples=300, seed=seed)
        hits += interval.low <= truth <= interval.high
    assert 0.91 <= hits / 400 <= 0.97


def test_the_interval_of_a_ratio_covers_the_truth_too() -> None:
    hits = 0
    generator = torch.Generator().manual_seed(1)
    for seed in range(300):
        bottom = torch.rand(80, generator=generator) + 0.5
        top = 0.6 * bottom + 0.2 * torch.randn(80, generator=generator)
        interval = bootstrap_means(
            torch.stack([top, bottom], 1), lambda m: m[..., 0] / m[..., 1], resamples=300, seed=seed
        )
        hits += interval.low <= 0.6 <= interval.high
    assert 0.91 <= hits / 300 <= 0.98


def test_people_and_not_images_are_drawn() -> None:
    """Ten images that are all alike say no more of a person than one: the interval must not shrink for them."""
    per_person = torch.randn(40, generator=torch.Generator().manual_seed(2))
    one = bootstrap_means(per_person)
    ten = bootstrap_means(per_person[:, None].expand(40, 10).mean(1))
    assert ten.high - ten.low == pytest.approx(one.high - one.low, rel=1e-6)


def test_the_bootstrap_refuses_nobody_and_parts_that_nothing_combines() -> None:
    with pytest.raises(ValueError, match="people"):
        bootstrap_means(torch.zeros(0))
    with pytest.raises(ValueError, match="combine"):
        bootstrap_means(torch.zeros(5, 2))
