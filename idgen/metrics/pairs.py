"""Face verification as the field's tables compute it, to the letter, so that numbers can be put beside published ones.

`verification.py` has the stricter forms that idgen uses for its own figures: there the threshold never depends on the
pairs that it is applied to, and no false accept rate is read off too few impostors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from idgen.metrics.identity import unit

# Squared distances of unit vectors lie in 0..4: the grid on which insightface's evaluation looks for the threshold.
STEP = 0.01


@dataclass(frozen=True)
class PairAccuracy:
    """Mean and standard deviation over the folds, and each fold's own accuracy and threshold (a squared distance)."""

    accuracy: float
    std: float
    folds: tuple[float, ...]
    thresholds: tuple[float, ...]


@dataclass(frozen=True)
class RocCurve:
    """False and true accept rates from the strictest threshold to the laxest; a pair is accepted at score >= threshold."""

    far: Tensor
    tar: Tensor
    thresholds: Tensor

    def area(self) -> float:
        """Under the curve, by trapezoids."""
        return float(torch.trapezoid(self.tar, self.far))


def pair_accuracy(first: Tensor, second: Tensor, same: Tensor, folds: int = 10) -> PairAccuracy:
    """Ten-fold accuracy as in insightface's `verification.py` (after facenet, David Sandberg).

    Folds are consecutive runs of pairs in the order of the file (as scikit-learn's KFold without shuffling); each fold's
    threshold is the smallest on a grid of squared distances of step 0.01 that judges most pairs of the other folds right.

    Args:
        first, second: (pairs, dim) embeddings, brought to unit length here.
        same: (pairs,) bool.

    Raises:
        ValueError: shapes that do not fit, or fewer pairs than folds.
    """
    pairs = len(same)
    if first.shape != second.shape or first.ndim != 2 or len(first) != pairs:
        raise ValueError(
            f"needs (pairs, dim) twice and (pairs,), got {tuple(first.shape)}, {tuple(second.shape)}, {tuple(same.shape)}"
        )
    if pairs < folds:
        raise ValueError(f"{folds} folds need at least {folds} pairs, got {pairs}")
    distance = (unit(first) - unit(second)).double().square().sum(-1)
    grid = torch.arange(0, 4, STEP, dtype=torch.float64)
    right = (distance[:, None] < grid) == same.bool()[:, None]  # (pairs, thresholds)
    fold = _consecutive(pairs, folds)
    accuracies, thresholds = [], []
    for number in range(folds):
        test = fold == number
        best = int(right[~test].double().mean(0).argmax())  # the first of equals
        accuracies.append(float(right[test, best].double().mean()))
        thresholds.append(float(grid[best]))
    values = torch.tensor(accuracies, dtype=torch.float64)
    return PairAccuracy(float(values.mean()), float(values.std(correction=0)), tuple(accuracies), tuple(thresholds))


def roc_curve(scores: Tensor, same: Tensor) -> RocCurve:
    """Every point of the curve, one per distinct score, begun with (0, 0).

    Args:
        scores: (pairs,) higher = more alike.
        same: (pairs,) bool, with at least one of each kind.
    """
    same = same.bool()
    if scores.shape != same.shape or bool(same.all()) or not bool(same.any()):
        raise ValueError("a ROC curve needs as many scores as labels, and pairs of both kinds")
    ordered, order = scores.double().sort(descending=True)
    hits = same[order].double()
    last = torch.cat(
        [ordered[1:] != ordered[:-1], torch.tensor([True])]
    )  # of a run of equal scores only its end is a point
    tar, far = hits.cumsum(0)[last] / hits.sum(), (1 - hits).cumsum(0)[last] / (1 - hits).sum()
    nought = torch.zeros(1, dtype=torch.float64)
    infinity = torch.full((1,), float("inf"), dtype=torch.float64)
    return RocCurve(torch.cat([nought, far]), torch.cat([nought, tar]), torch.cat([infinity, ordered[last]]))


def tar_at_nearest_far(curve: RocCurve, far: float) -> float:
    """The true accept rate at the point of the curve whose false accept rate lies nearest to `far`.

    As insightface's `ijb_11.py` prints it: among points of the same rate the highest, between two equally near the laxer.
    """
    distance = (curve.far - far).abs().flip(0)
    return float(curve.tar.flip(0)[distance.argmin()])


def pool_templates(features: Tensor, templates: Tensor, media: Tensor) -> tuple[Tensor, Tensor]:
    """IJB's templates: frames of one video count as one picture, then everything of a template is summed.

    Args:
        features: (images, dim), raw: longer vectors (sharper faces) count for more.
        templates, media: (images,) int, numbers of the template and of the photo or video that an image is of.

    Returns:
        (templates, dim) unit vectors and (templates,) their numbers, ascending.
    """
    keys, group = torch.stack([templates, media], 1).unique(dim=0, return_inverse=True)
    per_medium = _mean_by(features.double(), group, len(keys))
    numbers, member = keys[:, 0].unique(return_inverse=True)
    summed = torch.zeros(len(numbers), features.shape[1], dtype=torch.float64).index_add_(0, member, per_medium)
    return summed / summed.norm(dim=1, keepdim=True).clamp_min(1e-12), numbers


def _mean_by(rows: Tensor, group: Tensor, groups: int) -> Tensor:
    sums = torch.zeros(groups, rows.shape[1], dtype=rows.dtype).index_add_(0, group, rows)
    return sums / torch.bincount(group, minlength=groups)[:, None]


def _consecutive(count: int, folds: int) -> Tensor:
    """(count,): the fold of each; the first `count % folds` folds are longer by one."""
    sizes = torch.full((folds,), count // folds) + (torch.arange(folds) < count % folds)
    return torch.repeat_interleave(torch.arange(folds), sizes)
