"""Confidence intervals by resampling people.

The images of one person are not independent of each other, so the unit that is drawn with replacement
is the person (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993: the percentile interval
over clusters).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """A value with the interval that holds the middle `level` of its bootstrap values."""

    value: float
    low: float
    high: float
    level: float = 0.95

    def as_dict(self) -> dict[str, float]:
        """The numbers rounded to four places, for JSON."""
        return {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_means(
    per_person: Tensor,
    combine: Callable[[Tensor], Tensor] | None = None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The interval of a mean over people, or of a function of several such means.

    Args:
        per_person: (people,) or (people, quantities): each person's own mean of each quantity.
        combine: maps means (..., quantities) to the statistic (...); None for one quantity.
        resamples: how many times the people are drawn with replacement.
        level: share of the resampled values inside the interval.
        seed: makes the draw repeatable.

    Raises:
        ValueError: with no person, or with several quantities and no `combine`.
    """
    values = per_person.double()
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or len(values) == 0:
        raise ValueError(f"per_person must be (people,) or (people, quantities), got {tuple(per_person.shape)}")
    if combine is None:
        if values.shape[1] != 1:
            raise ValueError(f"{values.shape[1]} quantities need a `combine` that makes one number of them")
        combine = _only
    generator = torch.Generator().manual_seed(seed)
    people = len(values)
    drawn = torch.randint(people, (resamples, people), generator=generator)  # (resamples, people)
    statistics = combine(values[drawn].mean(1))  # (resamples,)
    tail = (1.0 - level) / 2
    low, high = torch.quantile(statistics, torch.tensor([tail, 1.0 - tail], dtype=torch.double)).tolist()
    return Interval(float(combine(values.mean(0))), low, high, level)


def _only(means: Tensor) -> Tensor:
    return means[..., 0]
