"""What a reward says of a batch, and what every reward is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from idgen.rewards.views import Asked, View


@dataclass(frozen=True)
class Scored:
    """A reward's values.

    Attributes:
        values: (batch,) higher is better; 0 where it could not be told.
        counted: (batch,) whether it could. What is not counted gives no gradient and is left out of means, never taken for 0.
    """

    values: Tensor
    counted: Tensor

    def mean(self, ceiling: float | None = None) -> Tensor:
        """Over what is counted; 0 where nothing is.

        Args:
            ceiling: beyond it a value counts as the ceiling: there is nothing more to gain.
        """
        values = self.values if ceiling is None else self.values.clamp_max(ceiling)
        return (values * self.counted).sum() / self.counted.sum().clamp_min(1)

    @property
    def share(self) -> Tensor:
        """Of the batch that is counted, a scalar."""
        return self.counted.float().mean()


class Reward(Protocol):
    """Scores pictures.

    Attributes:
        needs_whole: whether it must see whole pictures, not the part around the face.
    """

    needs_whole: bool

    def __call__(self, view: View, asked: Asked) -> Scored: ...


def everything(values: Tensor) -> Scored:
    """A reward that can be told of every picture."""
    return Scored(values, torch.ones(len(values), dtype=torch.bool, device=values.device))
