"""Variants of IP-Adapter-FaceID."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from idgen.adapters.base import AdapterConfig
from idgen.adapters.embeddings import Norm
from idgen.errors import IdgenError


@dataclass(frozen=True)
class FaceIDConfig(AdapterConfig):
    """What tells FaceID, FaceID-Plus, Plus-v2 and Portrait apart.

    Attributes:
        projection: sizes of the token projection, arguments of `FaceIDProjection` or, with `clip_dim`, `FaceIDPlusProjection`.
        rank: of the low-rank change of all attention projections, 0 for none (Portrait).
        concatenate: each reference has tokens of its own (Portrait); otherwise the references are pooled.
        shortcut: Plus-v2 adds what it reads from CLIP to the embedding's own tokens, Plus replaces them.
        norm: of the embeddings; one Portrait file for SDXL reads raw ones.
    """

    recogniser: str = "buffalo_l"
    projection: Mapping[str, int] = field(default_factory=lambda: {"cross_attention_dim": 768})
    rank: int = 128
    concatenate: bool = False
    shortcut: bool = False
    norm: Norm = "unit"

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise IdgenError(f"rank is {self.rank}, expected 0 or more")
        if self.shortcut and not self.plus:
            raise IdgenError(
                "only the Plus variants have a shortcut: give the projection a clip_dim, or leave the shortcut out"
            )

    @property
    def plus(self) -> bool:
        """Whether the tokens also read CLIP's features of the face."""
        return "clip_dim" in self.projection
