"""Settings of losses on the pictures that noisy latents stand for, for the trainings that may have them."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from idgen.losses.identity import IdentitySchedule
from idgen.train.config import TrainConfig


class IdentityLossConfig(TrainConfig):
    """How a loss of identity acts over the noise (`idgen.losses.identity`); its weight is each training's own."""

    identity_schedule: IdentitySchedule = Field(
        "window", description="scaled: by what is left of the picture, as ReF-LDM; naive: alike at any noise; window"
    )
    identity_max_timestep: int = Field(
        400, ge=1, description="window: at more noise the predicted picture shows nobody"
    )
    tiny: str | None = Field(
        None, description="a small decoder for it, as train/reward.py's; the model's own by default"
    )


class WordsLossConfig(TrainConfig):
    """A loss of words (`idgen.losses.attributes`), scaled over the noise as ReF-LDM scales that of identity."""

    words_weight: float = Field(0.0, ge=0, description="of a loss of the caption's words; 0 is without")
    words_probe: Path | None = Field(None, description="folder of the reader, of train/probe.py; not one that measures")
    words_tiny: str | None = Field(None, description="a small decoder for it; the model's own by default")
    words_batch: int = Field(16, ge=1, description="samples of a batch that are decoded for it")
