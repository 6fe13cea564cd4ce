"""What defines ReF-LDM beside its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from idgen.errors import IdgenError

Schedule = Literal["uniform_trailing", "uniform"]
SCHEDULES: tuple[Schedule, ...] = ("uniform_trailing", "uniform")


@dataclass(frozen=True)
class ReFLDMConfig:
    """Sizes that the shapes of the weights do not show, and the authors' settings for a restoration.

    Attributes:
        head_channels: channels of one attention head in the UNet.
        norm_groups: groups of every group norm, in the UNet and in the autoencoder.
        steps: denoising steps.
        schedule: which timesteps they fall on, see `sampling.timesteps`.
        guidance_scale: how far the references are followed; 1 does without guidance.
        size: side of the photos in pixels.
        references: with how many of them it was trained.
    """

    head_channels: int = 32
    norm_groups: int = 32
    steps: int = 50
    schedule: Schedule = "uniform_trailing"
    guidance_scale: float = 1.5
    size: int = 512
    references: int = 5

    def __post_init__(self) -> None:
        for name in ("head_channels", "norm_groups", "steps", "size", "references"):
            if getattr(self, name) < 1:
                raise IdgenError(f"{name} is {getattr(self, name)}, expected a positive number")
        if self.schedule not in SCHEDULES:
            raise IdgenError(f"the schedule is {self.schedule!r}, expected one of {', '.join(SCHEDULES)}")
