"""PuLID's attention behind the adapter contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idgen.adapters.base import Adapter, AdapterConfig
from idgen.adapters.injections.parts import Combine, DecoupledPart, Part
from idgen.adapters.injections.tokens import key_values, rename
from idgen.adapters.layers import AttentionLayer
from idgen.errors import IdgenError

ENCODER = "id_adapter."  # the identity encoder lies in the same file
ATTENTION = "id_adapter_attn_layers."


@dataclass(frozen=True)
class PuLIDConfig(AdapterConfig):
    """How identity tokens join the text's.

    Attributes:
        recogniser: the one whose raw embedding goes into the tokens, beside features of EVA-CLIP.
        cross_attention_dim: width of the identity tokens.
        combine: `"ortho_v2"` with 8 zeros is what the authors call fidelity, `"ortho"` with 16 what they call style.
        zeros: all-zero tokens in the softmax.
    """

    recogniser: str = "antelopev2"
    cross_attention_dim: int = 2048
    combine: Combine = "ortho_v2"
    zeros: int = 8

    def __post_init__(self) -> None:
        if self.combine not in ("add", "ortho", "ortho_v2"):
            raise IdgenError(f"combine is {self.combine!r}, expected add, ortho or ortho_v2")
        if self.zeros < 0:
            raise IdgenError(f"zeros is {self.zeros}, expected 0 or more")


class PuLIDAdapter(Adapter):
    """PuLID v1 and v1.1 for SDXL (Guo et al., NeurIPS 2024, arXiv 2404.16022; github.com/ToTheBeginning/PuLID).

    `condition(tokens)` with the encoder's identity tokens (people, 10 or 32, 2048) (`idgen.adapters.pulid.encoder`). The
    authors' modes, globals of their module, are settings of the adapter here.
    """

    method = "pulid"
    config_class = PuLIDConfig

    def __init__(self, config: PuLIDConfig, layers: Sequence[AttentionLayer]) -> None:
        super().__init__(config, layers)
        self.kv = key_values(layers, config.cross_attention_dim)

    def embed(self, tokens: Tensor | Sequence[Tensor], *, nobody: Tensor | None = None) -> tuple[Tensor, ...]:
        """
        Args:
            tokens: (people, tokens, dim) or a list of (tokens, dim): what the identity encoder made of each person.
            nobody: (1, tokens, dim) what it makes of zeros, which guidance compares with; tokens of zeros by default.
        """
        if isinstance(tokens, (list, tuple)):
            if not tokens:
                raise IdgenError("no identity given: pass the identity encoder's tokens")
            if not all(isinstance(one, Tensor) and one.shape == tokens[0].shape for one in tokens):
                raise IdgenError("identity tokens of one batch must be tensors of one shape")
            tokens = torch.stack(list(tokens))
        if not isinstance(tokens, Tensor):
            raise IdgenError(f"PuLID takes its encoder's identity tokens as a tensor, not {type(tokens).__name__}")
        rows = tokens[None] if tokens.ndim == 2 else tokens
        dim = self.config.cross_attention_dim
        nothing = torch.zeros_like(rows[:1]) if nobody is None else nobody
        for one in (rows, nothing):
            if one.ndim != 3 or one.shape[1:] != rows.shape[1:] or one.shape[2] != dim or not len(one):
                raise IdgenError(f"identity tokens have the shape {list(one.shape)}, expected (people, tokens, {dim})")
            if not one.isfinite().all():
                raise IdgenError("the identity tokens hold NaN or infinity: encode the photo again")
        weight = next(self.parameters())
        return rows.to(weight), nothing.to(weight).expand(len(rows), -1, -1)

    def null(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The tokens of nobody in the place of a person's."""
        return inputs[1][:1], inputs[1][:1]

    def project(self, *inputs: Tensor) -> Tensor:
        """The tokens as they came."""
        return inputs[0]

    def parts(self, tokens: Tensor) -> dict[str, list[Part]]:
        """Attention over the tokens, and zeros, at every cross-attention."""
        config: PuLIDConfig = self.config
        made: dict[str, list[Part]] = {}
        for layer in self.layers:
            if layer.cross:
                key, value = self.kv[str(layer.index)](tokens)
                made[layer.name] = [DecoupledPart(key, value, combine=config.combine, zeros=config.zeros)]
        return made

    @classmethod
    def convert(
        cls,
        tensors: Mapping[str, Tensor],
        layers: Sequence[AttentionLayer],
        *,
        source: str = "",
        combine: Combine = "ortho_v2",
        zeros: int = 8,
    ) -> tuple[AdapterConfig, dict[str, Tensor]]:
        """`pulid_v1.bin`, `pulid_v1.1.safetensors`: `id_adapter_attn_layers.{number}.id_to_{k,v}.weight`; the identity encoder
        beside them is left to `idgen.adapters.pulid.encoder`."""
        what = f"PuLID file {source}".rstrip()
        attention = {key: value for key, value in tensors.items() if not key.startswith(ENCODER)}
        names = {
            f"{ATTENTION}{layer.index}.id_to_{letter}.weight": f"kv.{layer.index}.to_{letter}.weight"
            for layer in layers
            if layer.cross
            for letter in ("k", "v")
        }
        state = rename(attention, names, what)
        width = next(iter(state.values())).shape[1]
        return PuLIDConfig(cross_attention_dim=width, combine=combine, zeros=zeros), state
