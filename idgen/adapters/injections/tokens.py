"""Weights that turn identity tokens into keys and values of each cross-attention layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from idgen.adapters.layers import AttentionLayer
from idgen.errors import IdgenError


class KeyValue(nn.Module):
    """One layer's projections of identity tokens, without bias.

    Args:
        dim: width of the tokens.
        hidden: the layer's channels.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.to_k = nn.Linear(dim, hidden, bias=False)
        self.to_v = nn.Linear(dim, hidden, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, tokens, dim) -> keys and values (rows, tokens, hidden)."""
        return self.to_k(tokens), self.to_v(tokens)


def key_values(layers: Sequence[AttentionLayer], dim: int | None = None) -> nn.ModuleDict:
    """`KeyValue` of every cross-attention layer, by the layer's published index.

    Args:
        dim: width of the tokens; by default what the layer's own text has.
    """
    return nn.ModuleDict(
        {str(layer.index): KeyValue(dim or layer.context, layer.hidden) for layer in layers if layer.cross}
    )


def rename(tensors: Mapping[str, Tensor], names: Mapping[str, str], what: str) -> dict[str, Tensor]:
    """A published file's tensors under our names, by a declarative map from published name to ours.

    Only exact names count; what the map does not know, or the file lacks, is an error.

    Raises:
        IdgenError: names the first ten keys that are missing or unknown.
    """
    unknown = [key for key in tensors if key not in names]
    missing = [key for key in names if key not in tensors]
    problems = [
        f"{len(keys)} {kind}: {', '.join(keys[:10])}{', ...' if len(keys) > 10 else ''}"
        for kind, keys in (("missing", missing), ("unexpected", unknown))
        if keys
    ]
    if problems:
        raise IdgenError(f"{what}: this file's keys are not those of the published layout; {'; '.join(problems)}")
    return {names[key]: value for key, value in tensors.items()}
