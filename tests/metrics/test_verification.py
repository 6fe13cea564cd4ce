"""Verification figures of scores whose answer is known."""

import pytest
import torch

from idgen.metrics import equal_error_rate, tar_at_far, ten_fold_accuracy


def normal(mean: float, count: int, seed: int) -> torch.Tensor:
    return mean + torch.randn(count, generator=torch.Generator().manual_seed(seed))


def test_scores_that_never_overlap_are_all_judged_right() -> None:
    same, different = torch.linspace(0.5, 0.9, 50), torch.linspace(-0.2, 0.4, 70)
    assert ten_fold_accuracy(same, different) == 1.0
    assert tar_at_far(same, different, 0.1).tar == 1.0
    assert equal_error_rate(same, different) == pytest.approx(0.0, abs=0.02)


def test_scores_of_one_distribution_are_judged_by_chance() -> None:
    same, different = normal(0, 4000, 1), normal(0, 4000, 2)
    assert ten_fold_accuracy(same, different) == pytest.approx(0.5, abs=0.02)
    assert tar_at_far(same, different, 0.1).tar == pytest.approx(0.1, abs=0.02)
    assert equal_error_rate(same, different) == pytest.approx(0.5, abs=0.02)


def test_two_normals_give_the_accuracy_and_rates_of_theory() -> None:
    # Means 2 apart: best threshold 1, accuracy Phi(1) = .8413; at FAR .01 the threshold is 2.326, TAR Phi(-.326) = .372.
    same, different = normal(2, 40000, 3), normal(0, 40000, 4)
    assert ten_fold_accuracy(same, different) == pytest.approx(0.8413, abs=0.01)
    assert equal_error_rate(same, different) == pytest.approx(0.1587, abs=0.01)
    at = tar_at_far(same, different, 0.01)
    assert at.tar == pytest.approx(0.372, abs=0.03)
    assert at.threshold == pytest.approx(2.326, abs=0.1)


def test_many_more_impostor_pairs_do_not_buy_accuracy() -> None:
    same, different = normal(0, 200, 5), normal(0, 20000, 6)
    assert ten_fold_accuracy(same, different) == pytest.approx(0.5, abs=0.06)


def test_no_more_than_the_false_accept_rate_gets_through() -> None:
    impostor = torch.arange(1000.0)
    at = tar_at_far(torch.tensor([989.0, 990.0]), impostor, 0.01)
    assert (impostor > at.threshold).sum() == 10
    assert at.tar == 0.5


def test_a_rate_finer_than_the_impostor_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="1000 impostor"):
        tar_at_far(torch.ones(5), torch.zeros(999), 1e-3)


def test_fewer_pairs_than_folds_are_refused() -> None:
    with pytest.raises(ValueError, match="10 folds"):
        ten_fold_accuracy(torch.ones(9), torch.zeros(100))


def test_scores_of_any_precision_are_taken() -> None:
    same, different = torch.linspace(0.5, 0.9, 50).bfloat16(), torch.linspace(-0.2, 0.4, 70).bfloat16()
    assert tar_at_far(same, different, 0.1).tar == 1.0
