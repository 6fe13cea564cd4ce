"""Second-order damage: what is drawn, that it repeats, and that it hurts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.restore import damage as benchmark_damage
from idgen.data import real_world
from idgen.data.real_world import FIRST, LEAST, SECOND, RealDamage, degrade_photo, degrade_real_world, draw_real_world
from idgen.errors import IdgenError
from tests.data.test_degradation import picture, tensors


def drawn(count: int, height: int = 96, width: int = 80, seed: int = 0) -> list[RealDamage]:
    draws = np.random.RandomState(seed)
    return [draw_real_world(height, width, draws) for _ in range(count)]


def test_draws_stay_in_their_ranges_and_show_all_kinds():
    damages = drawn(200, 512, 256)
    for damage in damages:
        assert damage.size == (128, 64)
        for one, ranges, side in zip(damage.rounds, (FIRST, SECOND), (512, 128), strict=True):
            low, high = ranges.factor
            assert low * side - 1 <= one.size[0] <= high * side + 1 and abs(one.size[0] - 2 * one.size[1]) <= 2
            level = ranges.noise if one.gaussian else ranges.poisson
            assert level[0] <= one.level <= level[1] and 30 <= one.quality <= 95
            assert one.kernel.sum() == pytest.approx(1, abs=1e-5) and one.kernel.shape == (21, 21)
        assert damage.last.sum() == pytest.approx(1, abs=1e-5)
    rounds = [one for damage in damages for one in damage.rounds]
    assert {one.mode for one in rounds} == {"area", "bilinear", "bicubic"}
    assert {one.gaussian for one in rounds} == {one.grey for one in rounds} == {True, False}
    assert any(one.kernel.min() < 0 for one in rounds), "some ring"
    assert any((one.kernel > 0).sum() == 1 for one in rounds), "some are not blurred the second time"
    assert {damage.last_first for damage in damages} == {True, False}


def test_kernels_are_symmetric_so_that_nothing_moves():
    for damage in drawn(60):
        for kernel in (*(one.kernel for one in damage.rounds), damage.last):
            np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-6)


def test_a_batch_is_its_pictures_alone_and_repeats():
    images, damages = tensors([picture(seed=seed) for seed in range(4)]), drawn(4)
    made = degrade_real_world(images, damages)
    assert made.shape == images.shape and made.min() >= -1 and made.max() <= 1
    assert torch.equal(made, degrade_real_world(images, damages))
    for row, damage in enumerate(damages):
        alone = degrade_photo(picture(seed=row), damage)
        assert alone.dtype == np.uint8 and np.abs(tensors([alone])[0] - made[row]).max() < 0.02
    assert not torch.equal(made, degrade_real_world(images, drawn(4, seed=1)))


def test_it_hurts_but_does_not_move_or_tint():
    images = tensors([picture(128, 128, seed=seed) for seed in range(8)])
    made = degrade_real_world(images, drawn(8, 128, 128))
    error = (made - images).abs().mean((1, 2, 3))
    assert (error > 0.01).all() and error.mean() < 0.35
    assert (made - images).mean((2, 3)).abs().mean() < 0.06
    soft = torch.nn.functional.avg_pool2d(images, 9, 1, 4)
    moved = [(soft.roll(shift, 3) - made).abs().mean() for shift in (-3, 0, 3)]
    assert moved[1] == min(moved)


@pytest.mark.parametrize("last_first", [True, False])
def test_the_order_of_the_last_steps_acts(last_first, monkeypatch):
    sizes = []
    compress = real_world._compressed

    def seen(pictures, qualities):
        sizes.append(tuple(pictures[0].shape[2:]))
        return compress(pictures, qualities)

    monkeypatch.setattr(real_world, "_compressed", seen)
    (damage,) = drawn(1, 128, 128, seed=3)
    rounds = (damage.rounds[0], replace(damage.rounds[1], size=(40, 40)))
    degrade_real_world(tensors([picture(128, 128)]), [replace(damage, rounds=rounds, last_first=last_first)])
    assert sizes == [rounds[0].size, (32, 32) if last_first else (40, 40)]


def test_small_pictures_keep_some_pixels_and_tiny_ones_are_refused():
    assert degrade_photo(picture(20, 24), drawn(1, 20, 24)[0]).shape == (20, 24, 3)
    with pytest.raises(IdgenError, match=f"8 x 12 px are too small: this damage needs {LEAST} px"):
        drawn(1, 12, 8)
    with pytest.raises(IdgenError, match="1 damages for 2 pictures"):
        degrade_real_world(torch.zeros(2, 3, 96, 80), drawn(1))


def test_the_benchmark_takes_it_as_a_preset():
    images = torch.from_numpy(np.stack([picture(64, 64, seed=seed) for seed in range(2)]))
    made = benchmark_damage(images, "real_world", 0)
    assert made.shape == images.shape and torch.equal(made, benchmark_damage(images, "real_world", 0))
    assert not torch.equal(made, images)
