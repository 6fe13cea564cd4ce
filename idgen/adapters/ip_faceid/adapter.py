"""IP-Adapter-FaceID behind the adapter contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from idgen.adapters.base import Adapter, AdapterConfig, Scale
from idgen.adapters.call import Conditioning, Entry
from idgen.adapters.embeddings import People, pooled, stacked
from idgen.adapters.injections.low_rank import LowRank
from idgen.adapters.injections.parts import DecoupledPart, LowRankPart, Part
from idgen.adapters.injections.tokens import key_values
from idgen.adapters.ip_faceid.config import FaceIDConfig
from idgen.adapters.ip_faceid.convert import convert
from idgen.adapters.layers import AttentionLayer
from idgen.errors import IdgenError
from idgen.models.face_projections import FaceIDPlusProjection, FaceIDProjection


class IPFaceIDAdapter(Adapter):
    """IP-Adapter-FaceID, -Plus, -Plus-v2 and -Portrait (Ye et al., arXiv 2308.06721; github.com/tencent-ailab/IP-Adapter).

    `condition(identity)`, for the Plus variants `condition(identity, clip=features)` with CLIP's features of the face.
    """

    method = "ip_faceid"
    config_class = FaceIDConfig

    def __init__(self, config: FaceIDConfig, layers: Sequence[AttentionLayer]) -> None:
        super().__init__(config, layers)
        sizes = dict(config.projection)
        self.image_proj: Any = (FaceIDPlusProjection if config.plus else FaceIDProjection)(**sizes)
        self.ip = key_values(layers, sizes["cross_attention_dim"])
        self.lora = nn.ModuleDict()
        if config.rank:
            self.lora.update({str(layer.index): LowRank(layer, config.rank) for layer in layers})

    def embed(self, identity: People, *, clip: Tensor | None = None, s_scale: float = 1.0) -> tuple[Tensor, ...]:
        """
        Args:
            identity: one person or a list of them.
            clip: Plus variants: (people, patches, clip_dim) CLIP features of each face, `hidden_states[-2]` of the image
                encoder for the aligned face at 224 px. See `clip_features`, which also makes the row that guidance compares with.
            s_scale: Plus-v2: weight of what is read from CLIP.
        """
        config: FaceIDConfig = self.config
        dim = self.image_proj.proj[0].in_features
        gather = stacked if config.concatenate else pooled
        vectors = gather(identity, norm=config.norm, recogniser=config.recogniser, dim=dim)
        weight = next(self.parameters())
        vectors = vectors.to(weight)
        if not config.plus:
            if clip is not None:
                raise IdgenError("this FaceID variant reads no CLIP features: leave clip= out")
            return (vectors,)
        wanted = config.projection["clip_dim"]
        if clip is None or clip.ndim != 3 or len(clip) != len(vectors) + 1 or clip.shape[2] != wanted:
            shape = None if clip is None else list(clip.shape)
            raise IdgenError(
                f"FaceID-Plus reads CLIP features (people + 1, patches, {wanted}), got {shape}: clip_features(...) makes them"
            )
        strength = torch.full((len(vectors), 1, 1), s_scale).to(weight)
        self_null = clip[:1].to(weight)
        return vectors, clip[1:].to(weight), self_null.expand(len(vectors), -1, -1), strength

    def null(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Nobody: an embedding of zeros, and for Plus the features of a picture of zeros, with the same weight."""
        if not self.config.plus:
            return super().null(*inputs)
        vectors, _, nothing, strength = inputs
        return torch.zeros_like(vectors[:1]), nothing[:1], nothing[:1], strength[:1]

    def project(self, *inputs: Tensor) -> Tensor:
        """(rows, tokens, dim)."""
        if not self.config.plus:
            return self.image_proj(*inputs)
        vectors, clip, _, strength = inputs
        return self.image_proj(vectors, clip, shortcut=self.config.shortcut, s_scale=strength)

    def parts(self, tokens: Tensor) -> dict[str, list[Part]]:
        """A low-rank change everywhere, and at the cross-attentions attention over the tokens."""
        made: dict[str, list[Part]] = {}
        for layer in self.layers:
            here: list[Part] = []
            if self.config.rank:
                low_rank = self.lora[str(layer.index)]
                assert isinstance(low_rank, LowRank)
                here.append(LowRankPart(low_rank.weights(), strength=1.0))
            if layer.cross:
                here.append(DecoupledPart(*self.ip[str(layer.index)](tokens)))
            if here:
                made[layer.name] = here
        return made

    def condition(
        self, identity: Any, *, scale: Scale = 1.0, lora_scale: float | None = None, **options: Any
    ) -> Conditioning:
        """As `Adapter.condition`.

        Args:
            scale: of the identity tokens; 0 is the base, without the low-rank change.
            lora_scale: of the low-rank change. By default 1 wherever the adapter acts, as the authors have it; given
                explicitly it also acts where the tokens' scale is 0.
        """
        made = super().condition(identity, scale=scale, **options)
        if lora_scale is None:
            return made
        return replace(made, entries=tuple(_with_lora_scale(entry, float(lora_scale)) for entry in made.entries))

    @classmethod
    def convert(
        cls, tensors: Mapping[str, Tensor], layers: Sequence[AttentionLayer], **options: Any
    ) -> tuple[AdapterConfig, dict[str, Tensor]]:
        """See `idgen.adapters.ip_faceid.convert`."""
        return convert(tensors, layers, **options)


def _with_lora_scale(entry: Entry, lora_scale: float) -> Entry:
    parts: dict[str, Sequence[Part]] = {}
    scales = dict(entry.scales)
    for name, here in entry.parts.items():
        changed = [replace(part, strength=lora_scale) if isinstance(part, LowRankPart) else part for part in here]
        if scales[name] == 0 and lora_scale != 0:
            changed, scales[name] = [part for part in changed if isinstance(part, LowRankPart)], 1.0
        parts[name] = changed
    return replace(entry, parts=parts, scales=scales)
