"""How well similarity scores tell "the same person" from "another person".

Protocols: ten-fold accuracy as in Labelled Faces in the Wild (Huang et al. 2007: the threshold is chosen
on nine folds and measured on the tenth), and the true accept rate at a fixed false accept rate as in
NIST's IJB reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TarAtFar:
    """The true accept rate at the threshold where impostors are accepted at `far`."""

    far: float
    threshold: float
    tar: float


def ten_fold_accuracy(same: Tensor, different: Tensor, *, folds: int = 10, seed: int = 0) -> float:
    """Share of pairs judged right, with each fold's threshold chosen on the other folds.

    Same and different pairs weigh equally whatever their numbers (balanced accuracy), so guessing
    scores 0.5.

    Args:
        same: (n,) scores of pairs of one person.
        different: (m,) scores of pairs of two people.
        folds: number of parts; pairs are dealt to them at random by `seed`.

    Raises:
        ValueError: with fewer pairs of a kind than folds.
    """
    if min(len(same), len(different)) < folds:
        raise ValueError(f"{folds} folds need as many pairs of each kind, got {len(same)} and {len(different)}")
    generator = torch.Generator().manual_seed(seed)
    same_fold = torch.randperm(len(same), generator=generator) % folds
    different_fold = torch.randperm(len(different), generator=generator) % folds
    accuracies = []
    for fold in range(folds):
        threshold = _best_threshold(same[same_fold != fold], different[different_fold != fold])
        accepted = (same[same_fold == fold] > threshold).double().mean()
        rejected = (different[different_fold == fold] <= threshold).double().mean()
        accuracies.append((accepted + rejected) / 2)
    return float(torch.stack(accuracies).mean())


def tar_at_far(genuine: Tensor, impostor: Tensor, far: float) -> TarAtFar:
    """The share of genuine scores above the threshold that lets through `far` of the impostor scores.

    Args:
        genuine: (n,) scores of pairs of one person.
        impostor: (m,) scores of pairs of two people.
        far: false accept rate, in (0, 1).

    Raises:
        ValueError: when the impostor scores are too few for this rate (fewer than 1 / far).
    """
    return tar_curve(genuine, impostor, [far])[0]


def tar_curve(genuine: Tensor, impostor: Tensor, fars: Sequence[float]) -> list[TarAtFar]:
    """`tar_at_far` at several rates; the impostor scores are gone through once."""
    for far in fars:
        if not 0 < far < 1:
            raise ValueError(f"the false accept rate must lie between 0 and 1, got {far}")
        if len(impostor) * far < 1 - 1e-9:
            raise ValueError(
                f"a false accept rate of {far} needs at least {1 / far:.0f} impostor scores, got {len(impostor)}"
            )
    places = [len(impostor) - 1 - int(len(impostor) * far + 1e-9) for far in fars]
    known = impostor if impostor.dtype == torch.float32 else impostor.double()
    ordered = np.partition(known.numpy(), sorted(set(places)))  # as sorted at these places, and much faster
    scores, points = genuine.double(), []
    for far, place in zip(fars, places, strict=True):
        threshold = float(ordered[place])
        points.append(TarAtFar(far, threshold, float((scores > threshold).double().mean())))
    return points


def equal_error_rate(genuine: Tensor, impostor: Tensor) -> float:
    """The error rate at the threshold where misses and false accepts are equally frequent."""
    thresholds = torch.cat([genuine, impostor]).double().sort().values
    misses = torch.searchsorted(genuine.double().sort().values, thresholds, right=True) / len(genuine)
    accepts = 1 - torch.searchsorted(impostor.double().sort().values, thresholds, right=True) / len(impostor)
    nearest = (misses - accepts).abs().argmin()
    return float((misses[nearest] + accepts[nearest]) / 2)


def _best_threshold(same: Tensor, different: Tensor) -> float:
    """The threshold of the highest balanced accuracy: the middle of the widest-scoring gap."""
    scores = torch.cat([same, different]).double().sort().values
    middles = torch.cat([scores[:1] - 1e-6, (scores[1:] + scores[:-1]) / 2])
    rejected_same = torch.searchsorted(same.double().sort().values, middles, right=True) / len(same)
    rejected_different = torch.searchsorted(different.double().sort().values, middles, right=True) / len(different)
    return float(middles[(rejected_different - rejected_same).argmax()])
