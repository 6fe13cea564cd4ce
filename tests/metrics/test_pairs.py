"""The field's verification figures against scikit-learn and plain loops."""

import numpy as np
import pytest
import torch
from sklearn.metrics import auc
from sklearn.metrics import roc_curve as sklearn_roc_curve
from sklearn.model_selection import KFold
from sklearn.preprocessing import normalize

from idgen.metrics import pair_accuracy, pool_templates, roc_curve, tar_at_nearest_far


def pairs(count: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, stranger, change = (torch.randn(count, 32, generator=generator) for _ in range(3))
    same = torch.rand(count, generator=generator) < 0.5
    return first * 7, torch.where(same[:, None], first + noise * change, stranger) * 3, same


@pytest.mark.parametrize("count", [60, 137])
def test_the_accuracy_is_that_of_consecutive_folds_and_a_grid_of_distances(count: int) -> None:
    first, second, same = pairs(count, 1.2)
    left, right = normalize(first.numpy().astype(np.float64)), normalize(second.numpy().astype(np.float64))
    distance = np.square(left - right).sum(1)
    grid, accuracies = np.arange(0, 4, 0.01), []
    for train, test in KFold(10).split(np.arange(count)):
        judged = [((distance[train] < t) == same.numpy()[train]).mean() for t in grid]
        best = grid[int(np.argmax(judged))]
        accuracies.append(((distance[test] < best) == same.numpy()[test]).mean())
    found = pair_accuracy(first, second, same)
    assert found.accuracy == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert found.std == pytest.approx(np.std(accuracies), abs=1e-12)
    assert 0.6 < found.accuracy < 1 and len(found.thresholds) == 10


def test_pairs_that_never_overlap_are_all_right_and_too_few_are_refused() -> None:
    assert pair_accuracy(*pairs(100, 0.05)).accuracy == 1
    with pytest.raises(ValueError, match="at least 10 pairs, got 9"):
        pair_accuracy(*pairs(9, 1.0))


def test_the_curve_agrees_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = (torch.randn(2000, generator=generator) * 20).round() / 20  # many equal ones
    same = torch.rand(2000, generator=generator) < 0.3
    scores = scores + same
    far, tar, thresholds = sklearn_roc_curve(same.numpy(), scores.double().numpy(), drop_intermediate=False)
    curve = roc_curve(scores, same)
    assert np.allclose(curve.far, far) and np.allclose(curve.tar, tar)
    assert np.allclose(curve.thresholds[1:], thresholds[1:])
    assert curve.area() == pytest.approx(auc(far, tar), abs=1e-9)


def test_the_rate_at_the_nearest_point_is_what_insightface_prints() -> None:
    generator = torch.Generator().manual_seed(2)
    same = torch.rand(3000, generator=generator) < 0.5
    scores = torch.randn(3000, generator=generator) + 2 * same
    far, tar, _ = sklearn_roc_curve(same.numpy(), scores.double().numpy())
    far, tar = np.flipud(far), np.flipud(tar)
    curve = roc_curve(scores, same)
    for rate in (1e-3, 1e-2, 1e-1):
        _, index = min(zip(abs(far - rate), range(len(far)), strict=True))
        assert tar_at_nearest_far(curve, rate) == pytest.approx(tar[index], abs=2e-3)


def test_a_curve_needs_pairs_of_both_kinds() -> None:
    with pytest.raises(ValueError, match="both kinds"):
        roc_curve(torch.rand(5), torch.ones(5, dtype=torch.bool))


def test_frames_of_one_video_count_as_one_picture() -> None:
    features = torch.tensor([[4.0, 0], [2.0, 0], [0, 1.0], [0, 5.0]])
    pooled, numbers = pool_templates(features, torch.tensor([7, 7, 7, 3]), torch.tensor([1, 1, 2, 9]))
    assert numbers.tolist() == [3, 7]
    assert torch.allclose(pooled, torch.nn.functional.normalize(torch.tensor([[0, 5.0], [3.0, 1.0]]).double()))
