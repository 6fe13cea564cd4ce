"""Sizes of a FaceChain-FACT adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from idgen.adapters.base import AdapterConfig


@dataclass(frozen=True)
class FACTConfig(AdapterConfig):
    """What the weights do not say by themselves once they are loaded.

    Attributes:
        recogniser: whose patch features the tokens are made of.
        resampler: arguments of `idgen.models.resampler.Resampler`; the defaults are the authors'.
        norm: whether the file brings a layer norm of its own for each text attention, in the place of the base's.
    """

    recogniser: str = "transface_s"
    resampler: Mapping[str, int] = field(
        default_factory=lambda: {"dim": 1024, "heads": 12, "embedding_dim": 512, "output_dim": 768}
    )
    norm: bool = False
