"""When a training by reward must end: the reward still climbs, and nobody else agrees any more.

A model that is paid by one recogniser finds what that recogniser likes, and after a while only that: fine patterns, faces like
each other, prompts forgotten. So figures that no loss has seen are watched beside the reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

# Figures of a check. The held-out recogniser's is a cosine; the others are shares of the base's, or of all pictures.
HELD_OUT = "held_out"
REWARD = "reward"
KEPT = ("adherence", "diversity", "detection")


class GuardConfig(BaseModel):
    """What ends a training by reward."""

    model_config = ConfigDict(extra="forbid")

    act: bool = Field(True, description="false: watch and log, but never stop")
    patience: int = Field(3, ge=1, description="checks over which the held-out recogniser may stand still")
    held_out_gain: float = Field(0.002, ge=0, description="less than this over them is standing still")
    reward_gain: float = Field(0.002, ge=0, description="more than this over them is climbing")
    margin: float = Field(
        0.02, ge=0, lt=1, description="share that adherence, diversity and detection may lose of the base's"
    )


@dataclass
class Guards:
    """The figures of all checks so far, the base's first, and what they say.

    Attributes:
        history: figures by name, each check's; a figure that can not be measured is left out.
    """

    config: GuardConfig
    history: list[dict[str, float]] = field(default_factory=list)

    def check(self, figures: Mapping[str, float]) -> str | None:
        """Adds a check; why training should end, or None."""
        self.history.append(dict(figures))
        if not self.config.act or len(self.history) < 2:
            return None
        return self._lost(self.history[-1]) or self._stalled()

    @property
    def best(self) -> int:
        """The check whose weights to keep: of those that lost nothing beyond the margin, the one that the held-out recogniser (or
        else the reward) likes best. The base if none kept it."""
        fine = [place for place, figures in enumerate(self.history) if place == 0 or not self._lost(figures)]
        return max(fine, key=lambda place: self._worth(self.history[place]))

    def _worth(self, figures: Mapping[str, float]) -> float:
        return figures.get(HELD_OUT, figures.get(REWARD, float("-inf")))

    def _lost(self, figures: Mapping[str, float]) -> str | None:
        base = self.history[0]
        for name in KEPT:
            if name in figures and name in base and figures[name] < (1 - self.config.margin) * base[name]:
                return (
                    f"{name} fell from {base[name]:.3f} to {figures[name]:.3f}, by more than {self.config.margin:.0%}"
                )
        return None

    def _stalled(self) -> str | None:
        patience = self.config.patience
        held_out = [figures[HELD_OUT] for figures in self.history if HELD_OUT in figures]
        reward = [figures[REWARD] for figures in self.history if REWARD in figures]
        if len(held_out) <= patience or len(reward) <= patience:
            return None
        gained = max(held_out[-patience:]) - max(held_out[:-patience])
        climbed = reward[-1] - reward[-1 - patience]
        if gained < self.config.held_out_gain and climbed > self.config.reward_gain:
            return (
                f"the reward rose by {climbed:.3f} over {patience} checks and the held-out recogniser by {gained:.3f}"
            )
        return None


def relative(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The last check's figures less the base's, for a log."""
    return {f"{name}_gain": value - figures[0][name] for name, value in figures[-1].items() if name in figures[0]}
