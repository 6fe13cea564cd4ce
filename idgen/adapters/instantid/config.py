"""Sizes of InstantID."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from idgen.adapters.base import AdapterConfig

PUBLISHED = {
    "dim": 1280,
    "depth": 4,
    "dim_head": 64,
    "heads": 20,
    "num_queries": 16,
    "embedding_dim": 512,
    "output_dim": 2048,
    "ff_mult": 4,
}


@dataclass(frozen=True)
class InstantIDConfig(AdapterConfig):
    """The face projection's sizes; the defaults are the published weights'.

    Attributes:
        recogniser: antelopev2's glintr100, whose embeddings are read raw.
        projection: arguments of `Resampler`.
    """

    recogniser: str = "antelopev2"
    projection: Mapping[str, int] = field(default_factory=lambda: dict(PUBLISHED))
