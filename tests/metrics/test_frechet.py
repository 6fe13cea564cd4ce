"""Fréchet and kernel distance against closed forms and scipy."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from idgen.metrics import frechet_distance, frechet_of_moments, kernel_distance, smallest_sample


def normal(count: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_lines_have_the_distance_of_their_means_and_widths() -> None:
    one = torch.ones(1, 1)
    assert frechet_of_moments(torch.zeros(1), one, torch.tensor([3.0]), 4 * one) == pytest.approx(9 + (2 - 1) ** 2)


def test_diagonal_covariances_have_a_closed_form() -> None:
    a, b = torch.tensor([1.0, 4, 9]), torch.tensor([4.0, 1, 0])
    expected = ((a.sqrt() - b.sqrt()) ** 2).sum()
    assert frechet_of_moments(torch.zeros(3), a.diag(), torch.zeros(3), b.diag()) == pytest.approx(float(expected))


def test_a_set_has_no_distance_to_itself_and_a_shift_its_square() -> None:
    features = normal(300, 20, 0)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features, features + 0.5) == pytest.approx(20 * 0.25, abs=1e-6)


@pytest.mark.parametrize("dim", [5, 64])
def test_the_distance_agrees_with_scipys_matrix_root(dim: int) -> None:
    x, y = normal(400, dim, 1) @ normal(dim, dim, 2), normal(300, dim, 3) @ normal(dim, dim, 4) + 1
    first, second = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    expected = float(shift) + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)


def test_singular_covariances_are_no_trouble() -> None:
    flat = torch.zeros(3, 3, dtype=torch.float64)
    flat[0, 0] = 1
    assert frechet_of_moments(torch.zeros(3), flat, torch.zeros(3), flat) == pytest.approx(0, abs=1e-9)


def test_fewer_images_than_features_are_refused_with_the_number() -> None:
    assert smallest_sample(64) == 65
    with pytest.raises(ValueError, match=r"at least 65 images on each side, got 64 and 100"):
        frechet_distance(normal(64, 64, 0), normal(100, 64, 1))
    with pytest.raises(ValueError, match=r"\(n, dim\) and \(m, dim\)"):
        frechet_distance(normal(9, 3, 0), normal(9, 4, 1))


def test_the_kernel_distance_is_the_plain_sum_over_pairs() -> None:
    x, y = normal(6, 3, 0), normal(6, 3, 1) + 0.3

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    within = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(6) for j in range(6) if i != j) / 30
    across = sum(kernel(a, b) for a in x for b in y) / 36
    whole = kernel_distance(x, y, subsets=3, subset_size=6)
    assert whole.mean == pytest.approx(within - 2 * across, rel=1e-10)
    assert whole.std == pytest.approx(0, abs=1e-12)  # every subset is the whole set


def test_the_kernel_distance_of_one_distribution_is_nought_on_average() -> None:
    same = kernel_distance(normal(2000, 16, 0), normal(2000, 16, 1), subsets=20, subset_size=500)
    other = kernel_distance(normal(2000, 16, 0), normal(2000, 16, 1) + 0.3, subsets=20, subset_size=500)
    assert abs(same.mean) < 0.01 < other.mean
    assert same == kernel_distance(normal(2000, 16, 0), normal(2000, 16, 1), subsets=20, subset_size=500)
