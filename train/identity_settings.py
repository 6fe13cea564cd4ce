"""Settings of a loss of identity on noisy latents, for the trainings that may have one (`idgen.losses.identity`)."""

from __future__ import annotations

from pydantic import Field

from idgen.losses.identity import IdentitySchedule
from idgen.train.config import TrainConfig


class IdentityLossConfig(TrainConfig):
    """How it acts over the noise, and what shows the recogniser its pictures; its weight is each training's own."""

    identity_schedule: IdentitySchedule = Field(
        "window", description="scaled: by what is left of the picture, as ReF-LDM; naive: alike at any noise; window"
    )
    identity_max_timestep: int = Field(
        400, ge=1, description="window: at more noise the predicted picture shows nobody"
    )
    tiny: str | None = Field(
        None, description="a small decoder for it, as train/reward.py's; the model's own by default"
    )
