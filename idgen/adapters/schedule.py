"""Over which denoising steps an adapter acts."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from idgen.errors import IdgenError


@dataclass(frozen=True)
class StepScales:
    """A factor on an adapter's scale for each denoising step.

    Steps are known by their timesteps, so that nothing has to count: a UNet called twice a step (guidance in two passes, a
    second-order sampler) finds its place all the same.

    Attributes:
        timesteps: (steps,) as in `scheduler.timesteps`.
        factors: (steps,) float, 0 where the adapter rests.
    """

    timesteps: torch.Tensor
    factors: torch.Tensor

    def __post_init__(self) -> None:
        if self.timesteps.ndim != 1 or self.timesteps.shape != self.factors.shape or not len(self.timesteps):
            raise IdgenError(
                f"a step schedule needs one factor per timestep: got {list(self.factors.shape)} factors for timesteps"
                f" {list(self.timesteps.shape)}"
            )
        if not torch.isfinite(self.factors).all():
            raise IdgenError("a step schedule holds NaN or infinity")

    @classmethod
    def window(cls, timesteps: torch.Tensor, start: float = 0.0, end: float = 1.0) -> StepScales:
        """Acts from `start` to `end`, shares of the steps in [0, 1], as diffusers' control_guidance_start and _end.

        Raises:
            IdgenError: not 0 <= start < end <= 1.
        """
        if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end <= 1):
            raise IdgenError(f"a step window needs 0 <= start < end <= 1, got {start} and {end}")
        count = len(timesteps)
        acts = [not (step / count < start or (step + 1) / count > end) for step in range(count)]
        return cls(timesteps.detach().cpu().float(), torch.tensor(acts, dtype=torch.float32))

    @classmethod
    def after(cls, timesteps: torch.Tensor, step: int) -> StepScales:
        """Rests up to and including `step`, counted from 0, then acts."""
        acts = torch.arange(len(timesteps)) > step
        return cls(timesteps.detach().cpu().float(), acts.float())

    def at(self, timestep: torch.Tensor | float | int) -> torch.Tensor:
        """The factor at a timestep: 0-dimensional, or (batch,) for a batch of timesteps. Unknown timesteps take the nearest's."""
        time = torch.as_tensor(timestep, dtype=torch.float32)
        table = self.timesteps.to(time.device)
        nearest = (table - time.reshape(-1, 1)).abs().argmin(1)
        factors = self.factors.to(time.device)[nearest]
        return factors[0] if factors.numel() == 1 else factors


def sampling_timesteps(scheduler: Any, steps: int, **options: Any) -> torch.Tensor:
    """(steps,) the timesteps that a pipeline with this scheduler will use; the scheduler itself is left as it is."""
    own = copy.deepcopy(scheduler)
    own.set_timesteps(steps, **options)
    return own.timesteps.detach().cpu().float()


def layer_scales(
    scale: float | Sequence[float] | dict[str, float], names: Sequence[str], what: str
) -> dict[str, float]:
    """One finite scale per layer.

    Args:
        scale: one number for all; one per layer, in the UNet's order; or by the beginning of a layer's name
            (`{"up_blocks": 1.0, "down_blocks.2": 0.5}`, the longest match counts, layers that none matches get 0).
        names: the adapter's layers.
        what: the adapter, for the message.
    Raises:
        IdgenError: NaN, infinity, a list of another length, or a name that no layer begins with.
    """
    if isinstance(scale, dict):
        unmatched = [prefix for prefix in scale if not any(_begins(name, prefix) for name in names)]
        if unmatched:
            raise IdgenError(f"scale of {what}: no layer begins with {unmatched[0]!r}; the first layer is {names[0]!r}")
        values = []
        for name in names:
            matches = [prefix for prefix in scale if _begins(name, prefix)]
            values.append(scale[max(matches, key=len)] if matches else 0.0)
    elif isinstance(scale, (list, tuple)):
        if len(scale) != len(names):
            raise IdgenError(f"scale of {what}: {len(scale)} numbers given for {len(names)} layers")
        values = list(scale)
    else:
        values = [scale] * len(names)  # type: ignore[list-item]
    for name, value in zip(names, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise IdgenError(f"scale of {what} at {name}: {value!r} is not a finite number")
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _begins(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")
