"""The W+ Adapter behind the adapter contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from idgen.adapters.base import Adapter, AdapterConfig
from idgen.adapters.injections.parts import DecoupledPart, Part
from idgen.adapters.injections.tokens import key_values, rename
from idgen.adapters.layers import AttentionLayer
from idgen.adapters.wplus.mapping import GROUPS, WPlusProjector
from idgen.errors import IdgenError
from idgen.models.published import part


@dataclass(frozen=True)
class WPlusConfig(AdapterConfig):
    """Sizes of the projector, see `WPlusProjector`. The "recogniser" is the encoder whose codes it reads."""

    recogniser: str = "e4e_ffhq"
    cross_attention_dim: int = 768
    groups: tuple[int, ...] = GROUPS
    style_dim: int = 512


class WPlusAdapter(Adapter):
    """W+ Adapter (Li et al., CVPR 2024, arXiv 2311.17461; github.com/csxmli2016/w-plus-adapter).

    `condition(w)` with codes (18, 512) or (people, 18, 512), such as e4e's. Its attention asks with what the text attention
    returned instead of with the picture ("residual cross-attention"). The authors let it rest over the first steps:
    `StepScales.after`.
    """

    method = "wplus"
    config_class = WPlusConfig

    def __init__(self, config: WPlusConfig, layers: Sequence[AttentionLayer]) -> None:
        super().__init__(config, layers)
        self.w_proj = WPlusProjector(config.cross_attention_dim, config.groups, config.style_dim)
        self.kv = key_values(layers, config.cross_attention_dim)
        self.query: Any = nn.ModuleDict(
            {str(layer.index): nn.Linear(layer.hidden, layer.hidden, bias=False) for layer in layers if layer.cross}
        )

    def embed(self, codes: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Codes (levels, dim) of one person, (people, levels, dim), or a list of (levels, dim)."""
        if isinstance(codes, (list, tuple)):
            if not codes:
                raise IdgenError("no identity given: pass W+ codes (18, 512), or a list of them")
            if not all(isinstance(code, Tensor) and code.shape == codes[0].shape for code in codes):
                raise IdgenError("W+ codes of one batch must be tensors of one shape, (18, 512)")
            codes = torch.stack(list(codes))
        if not isinstance(codes, Tensor):
            raise IdgenError(
                f"the W+ Adapter takes codes (18, 512) as a tensor, not {type(codes).__name__}: e4e makes them"
            )
        rows = codes[None] if codes.ndim == 2 else codes
        wanted = (sum(self.config.groups), self.config.style_dim)
        if rows.ndim != 3 or rows.shape[1:] != wanted or not len(rows):
            raise IdgenError(f"W+ codes have the shape {list(codes.shape)}, expected {list(wanted)} per person")
        if not rows.isfinite().all():
            raise IdgenError("the W+ codes hold NaN or infinity: encode the photo again")
        return (rows.to(self.w_proj.norm.weight),)

    def project(self, *inputs: Tensor) -> Tensor:
        """Four tokens per person; zeros, for guidance, give the norm's bias."""
        return self.w_proj(inputs[0])

    def parts(self, tokens: Tensor) -> dict[str, list[Part]]:
        """Residual cross-attention at every cross-attention."""
        made: dict[str, list[Part]] = {}
        for layer in self.layers:
            if layer.cross:
                key, value = self.kv[str(layer.index)](tokens)
                made[layer.name] = [DecoupledPart(key, value, query=self.query[str(layer.index)].weight)]
        return made

    @classmethod
    def convert(
        cls, tensors: Mapping[str, Tensor], layers: Sequence[AttentionLayer], *, source: str = ""
    ) -> tuple[AdapterConfig, dict[str, Tensor]]:
        """`wplus_adapter.bin`: {'w_proj': ..., 'wplus_adapter': {'1.to_k_wplus.weight': ...}} by published layer numbers."""
        what = f"W+ Adapter file {source}".rstrip()
        projector = part(tensors, "w_proj.")
        config = WPlusConfig(**WPlusProjector.sizes(projector, what))  # type: ignore[arg-type]
        names = {f"w_proj.{key}": f"w_proj.{key}" for key in projector}
        for layer in layers:
            if layer.cross:
                published = f"wplus_adapter.{layer.index}"
                names[f"{published}.to_q_wplus.weight"] = f"query.{layer.index}.weight"
                for letter in ("k", "v"):
                    names[f"{published}.to_{letter}_wplus.weight"] = f"kv.{layer.index}.to_{letter}.weight"
        return config, rename(tensors, names, what)
