"""What one adapter adds to one attention layer during one call.

A part is data of a call: keys and values made once from the identity, and references to the adapter's weights where the
picture itself must pass through them. Rows are the UNet's batch. Four kinds cover every method:

* `LowRankPart`: a low-rank change of the layer's own projections (LoRA, arXiv 2106.09685).
* `JointPart`: further keys in the layer's own softmax (PVA, arXiv 2312.03556; CacheKV of ReF-LDM, arXiv 2412.05043).
* `DecoupledPart`: attention of its own over identity tokens (IP-Adapter, arXiv 2308.06721; PuLID, arXiv 2404.16022; the
  W+ adapter, arXiv 2404.00656, whose query is what the text attention returned).
* `GatedPart`: a gated self-attention ahead of the text attention (GLIGEN, arXiv 2301.07093, as used by FaceChain-FACT).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention import GatedSelfAttentionDense
from torch import Tensor, nn

Combine = Literal["add", "ortho", "ortho_v2"]
Projection = Literal["q", "k", "v", "out"]


@dataclass(frozen=True)
class LowRankPart:
    """Changes of the layer's projections by name: `up(down(x))`, weights (rank, in) and (out, rank).

    `strength` multiplies them in the place of the entry's scale, where a method keeps the two apart.
    """

    weights: Mapping[Projection, tuple[Tensor, Tensor]]
    strength: float | None = None

    def take(self, rows: Tensor) -> LowRankPart:
        """The same weights serve every row."""
        return self

    def delta(self, projection: Projection, x: Tensor, scale: float | Tensor) -> Tensor | None:
        """What is added to a projection of x (rows, tokens, in), or None."""
        pair = self.weights.get(projection)
        if pair is None or self.strength == 0:
            return None
        change = F.linear(F.linear(x, pair[0].to(x)), pair[1].to(x))
        factor = scale if self.strength is None else self.strength
        return change if isinstance(factor, float) and factor == 1.0 else factor * change


@dataclass(frozen=True)
class JointPart:
    """Further keys and values in the layer's own softmax.

    Attributes:
        key, value: (rows, tokens, hidden).
        query: (hidden, hidden) weight of an own query projection, or None to use the layer's.
        bias: (rows, tokens) added to the logits, such as -inf where a row has no identity; or None.
    """

    key: Tensor
    value: Tensor
    query: Tensor | None = None
    bias: Tensor | None = None

    def take(self, rows: Tensor) -> JointPart:
        """The part for some rows of the batch, in their order."""
        bias = None if self.bias is None else self.bias[rows]
        return replace(self, key=self.key[rows], value=self.value[rows], bias=bias)


@dataclass(frozen=True)
class DecoupledPart:
    """Attention of its own over identity tokens, whose result is added to the text attention's, ahead of the output projection.

    Attributes:
        key, value: (rows, tokens, hidden).
        query: (hidden, hidden) weight that makes the query from the text attention's result (W+); None: the layer's query.
        combine: `"add"`; `"ortho"` and `"ortho_v2"` first take away what the text attention already says (PuLID).
        zeros: how many all-zero tokens share the softmax (PuLID's NUM_ZERO): they take weight and give nothing.
    """

    key: Tensor
    value: Tensor
    query: Tensor | None = None
    combine: Combine = "add"
    zeros: int = 0

    def take(self, rows: Tensor) -> DecoupledPart:
        """The part for some rows of the batch, in their order."""
        return replace(self, key=self.key[rows], value=self.value[rows])

    def increment(self, query: Tensor, text: Tensor, heads: int) -> Tensor:
        """What this part adds at scale 1: (rows, picture tokens, hidden).

        Args:
            query: (rows, heads, picture tokens, head dim) of the layer.
            text: (rows, picture tokens, hidden) what the text attention returned, heads merged, not yet projected.
        """
        if self.query is not None:
            query = split_heads(F.linear(text, self.query.to(text)), heads)
        key, value = (F.pad(x.to(text), (0, 0, 0, self.zeros)) for x in (self.key, self.value))
        key, value = split_heads(key, heads), split_heads(value, heads)
        own = merge_heads(F.scaled_dot_product_attention(query, key, value))
        if self.combine == "add":
            return own
        return _orthogonal(own, text, query, key, second=self.combine == "ortho_v2").to(text.dtype)


@dataclass(frozen=True)
class GatedPart:
    """Gated self-attention of the picture over itself and the identity tokens, between a block's own two attentions.

    Attributes:
        fuser: diffusers' GatedSelfAttentionDense of this block.
        key, value: (rows, tokens, hidden) of the identity tokens in the fuser's attention.
        norm: a layer norm that takes the place of the block's own ahead of the text attention, or None.
    """

    fuser: GatedSelfAttentionDense
    key: Tensor
    value: Tensor
    norm: nn.Module | None = None

    @classmethod
    def of(cls, fuser: GatedSelfAttentionDense, tokens: Tensor, norm: nn.Module | None = None) -> GatedPart:
        """Keys and values once per call: the norm ahead of them sees each token alone, so no step changes them.

        Args:
            tokens: (rows, tokens, context).
        """
        normed = fuser.norm1(fuser.linear(tokens))
        return cls(fuser, fuser.attn.to_k(normed), fuser.attn.to_v(normed), norm)

    def take(self, rows: Tensor) -> GatedPart:
        """The part for some rows of the batch, in their order."""
        return replace(self, key=self.key[rows], value=self.value[rows])

    def increment(self, hidden: Tensor, scale: float | Tensor) -> Tensor:
        """What the fuser adds to hidden (rows, picture tokens, hidden); the scale multiplies its two gates."""
        fuser, attn = self.fuser, self.fuser.attn
        normed = follow(fuser.norm1, hidden)
        query, key, value = (
            split_heads(x, attn.heads)
            for x in (
                follow(attn.to_q, normed),
                torch.cat([follow(attn.to_k, normed), self.key.to(normed)], 1),
                torch.cat([follow(attn.to_v, normed), self.value.to(normed)], 1),
            )
        )
        attended = follow(attn.to_out[0], merge_heads(F.scaled_dot_product_attention(query, key, value)))
        first = scale * fuser.alpha_attn.to(hidden).tanh() * attended
        second = follow(fuser.ff, follow(fuser.norm2, hidden + first))
        return first + scale * fuser.alpha_dense.to(hidden).tanh() * second


Part = LowRankPart | JointPart | DecoupledPart | GatedPart


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(rows, tokens, hidden) -> (rows, heads, tokens, head dim)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(rows, heads, tokens, head dim) -> (rows, tokens, hidden)."""
    return x.transpose(1, 2).flatten(2)


def follow(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)` with its weights on x's device and in its dtype: under offloading the picture moves and the adapter stays."""
    weight = next(module.parameters())
    if weight.device == x.device and (weight.dtype == x.dtype or torch.is_autocast_enabled(x.device.type)):
        return module(x)
    moved = {name: value.to(x) for name, value in module.named_parameters()}
    return torch.func.functional_call(module, moved, (x,))


def _orthogonal(own: Tensor, text: Tensor, query: Tensor, key: Tensor, *, second: bool) -> Tensor:
    """PuLID's combination: the part of `own` along `text`, per channel over the picture tokens, is taken away.

    The second version keeps it where the picture looks at the first five identity tokens (github.com/ToTheBeginning/PuLID,
    encoders_transformer.py and attention_processor.py): its attention map is not divided by the root of the head size.
    """
    own, text = own.float(), text.float()
    along = (text * own).sum(-2, keepdim=True) / (text * text).sum(-2, keepdim=True) * text
    if not second:
        return own - along
    looks = (query.float() @ key.float().transpose(-1, -2)).softmax(-1).mean(1)  # (rows, picture tokens, tokens)
    return own + (looks[..., :5].sum(-1, keepdim=True) - 1) * along
