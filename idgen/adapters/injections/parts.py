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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention import GatedSelfAttentionDense
from torch import Tensor, nn

from idgen.adapters.injections.products import (
    FEW_COLUMNS,
    attention,
    block_keys,
    block_values,
    merge_heads,
    split_heads,
)
from idgen.adapters.layers import AttentionLayer

Combine = Literal["add", "ortho", "ortho_v2"]
Projection = Literal["q", "k", "v", "out"]


@dataclass(frozen=True, repr=False)
class LowRankPart:
    """Changes of the layer's projections by name: `up(down(x))`, weights (rank, in) and (out, rank).

    `strength` multiplies them in the place of the entry's scale, where a method keeps the two apart.
    """

    weights: Mapping[Projection, tuple[Tensor, Tensor]]
    strength: float | None = None

    def ready(self, heads: int) -> LowRankPart:
        """Nothing here is constant over the steps but the weights."""
        return self

    def take(self, rows: Tensor) -> LowRankPart:
        """The same weights serve every row."""
        return self

    def change(self, projection: Projection, result: Tensor, x: Tensor, scale: float | Tensor) -> Tensor:
        """A projection's result (rows, tokens, out) for x (rows, tokens, in), changed."""
        pair = self.weights.get(projection)
        if pair is None or self.strength == 0:
            return result
        down, up = pair[0].to(x), pair[1].to(x)
        factor = scale if self.strength is None else self.strength
        inner = F.linear(x, down)
        inner = inner if _is_one(factor) else inner * factor
        if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type) or not result.is_contiguous():
            return result + F.linear(inner, up)
        result.flatten(0, 1).addmm_(inner.flatten(0, 1), up.t())  # nobody else has seen the result yet
        return result


@dataclass(frozen=True, repr=False)
class JointPart:
    """Further keys and values in the layer's own softmax.

    Attributes:
        key, value: (rows, tokens, hidden).
        query: (hidden, hidden) weight of an own query projection, or None to use the layer's.
        bias: (rows, tokens) added to the logits, such as -inf where a row has no identity; or None.
        blocks: `ready` makes it: keys and query as one matrix (rows, heads * tokens, hidden), see `block_keys`.
    """

    key: Tensor
    value: Tensor
    query: Tensor | None = None
    bias: Tensor | None = None
    blocks: Tensor | None = None

    def ready(self, heads: int) -> JointPart:
        """With what is the same at every step made once."""
        if self.query is None or not _few(self.key, heads):
            return self
        return replace(self, blocks=block_keys(self.key, heads, self.query, centre=False))

    def take(self, rows: Tensor) -> JointPart:
        """The part for some rows of the batch, in their order."""
        bias, blocks = (None if x is None else x[rows] for x in (self.bias, self.blocks))
        return replace(self, key=self.key[rows], value=self.value[rows], bias=bias, blocks=blocks)


@dataclass(frozen=True, repr=False)
class DecoupledPart:
    """Attention of its own over identity tokens, whose result is added to the text attention's, ahead of the output projection.

    Attributes:
        key, value: (rows, tokens, hidden).
        query: (hidden, hidden) weight that makes the query from the text attention's result (W+); None: the layer's query.
        combine: `"add"`; `"ortho"` and `"ortho_v2"` first take away what the text attention already says (PuLID).
        zeros: how many all-zero tokens share the softmax (PuLID's NUM_ZERO): they take weight and give nothing.
        blocks: `ready` makes it: keys (with the query's weight) and values as matrices, see `block_keys`, `block_values`.
    """

    key: Tensor
    value: Tensor
    query: Tensor | None = None
    combine: Combine = "add"
    zeros: int = 0
    blocks: tuple[Tensor, Tensor] | None = None

    def ready(self, heads: int) -> DecoupledPart:
        """With what is the same at every step made once."""
        if not _few(self.key, heads):
            return self
        keys = block_keys(self.key, heads, self.query, centre=not self.zeros and self.combine != "ortho_v2")
        return replace(self, blocks=(keys, block_values(self.value, heads)))

    def take(self, rows: Tensor) -> DecoupledPart:
        """The part for some rows of the batch, in their order."""
        blocks = None if self.blocks is None else (self.blocks[0][rows], self.blocks[1][rows])
        return replace(self, key=self.key[rows], value=self.value[rows], blocks=blocks)

    def act(self, total: Tensor, query: Tensor, text: Tensor, heads: int, scale: float | Tensor) -> Tensor:
        """What the attention returns with this part: (rows, picture tokens, hidden).

        Args:
            total: what it returns without, (rows, picture tokens, hidden).
            query: (rows, picture tokens, hidden) of the layer.
            text: (rows, picture tokens, hidden) what the text attention returned, heads merged, not yet projected.
        """
        if self.blocks is not None and self.blocks[0].device == total.device:
            return self._act_in_blocks(total, query, text, heads, scale, *(block.to(text) for block in self.blocks))
        own_query = query if self.query is None else F.linear(text, self.query.to(text))
        key, value = (F.pad(x.to(text), (0, 0, 0, self.zeros)) for x in (self.key, self.value))
        split, key, value = (split_heads(x, heads) for x in (own_query, key, value))
        own = merge_heads(F.scaled_dot_product_attention(split, key, value))
        if self.combine != "add":
            own = _orthogonal(own, text, split, key, second=self.combine == "ortho_v2").to(text.dtype)
        return total + (own if _is_one(scale) else scale * own)

    def _act_in_blocks(
        self,
        total: Tensor,
        query: Tensor,
        text: Tensor,
        heads: int,
        scale: float | Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        source = query if self.query is None else text
        logits = torch.bmm(keys, source.transpose(1, 2)).unflatten(1, (heads, -1))  # (rows, heads, tokens, picture)
        weights = self._softmax(logits).flatten(1, 2)
        weights = weights if _is_one(scale) else weights * scale
        if self.combine != "add":
            # The sum over the picture of text times own, per channel, without own itself.
            shared = (torch.bmm(weights, text) * values).sum(1, keepdim=True)
            square = text * text if text.dtype == torch.bfloat16 else text.float().square()
            along = text * (shared / square.sum(1, keepdim=True)).to(text)
            if self.combine == "ortho":
                total = total - along
            else:
                looks = self._softmax(logits * (text.shape[-1] // heads) ** 0.5).mean(1)[:, :5].sum(1)
                total = torch.addcmul(total, (looks - 1)[..., None], along)
        return torch.baddbmm(total, weights.transpose(1, 2), values)

    def _softmax(self, logits: Tensor) -> Tensor:
        """Over the tokens (rows, heads, tokens, picture), some weight going to those of zeros."""
        if not self.zeros:
            return logits.softmax(2)
        return F.pad(logits, (0, 0, 0, self.zeros)).softmax(2)[:, :, : logits.shape[2]]


@dataclass(frozen=True, repr=False)
class GatedPart:
    """Gated self-attention of the picture over itself and the identity tokens, between a block's own two attentions.

    Only the picture asks and is fed forward: what GLIGEN's module computes for the tokens themselves is thrown away there.

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

    def ready(self, heads: int) -> GatedPart:
        """Keys and values are made already."""
        return self

    def take(self, rows: Tensor) -> GatedPart:
        """The part for some rows of the batch, in their order."""
        return replace(self, key=self.key[rows], value=self.value[rows])

    def act(self, hidden: Tensor, scale: float | Tensor) -> Tensor:
        """What the fuser makes of hidden (rows, picture tokens, hidden); the scale multiplies its two gates."""
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
        attended = follow(attn.to_out[0], merge_heads(attention(query, key, value)))
        hidden = torch.addcmul(hidden, attended, _gate(scale, fuser.alpha_attn, hidden))
        fed = follow(fuser.ff, follow(fuser.norm2, hidden))
        return torch.addcmul(hidden, fed, _gate(scale, fuser.alpha_dense, hidden))


Part = LowRankPart | JointPart | DecoupledPart | GatedPart


def made_ready(
    parts: Mapping[str, list[Part]], layers: Sequence[AttentionLayer], rows: Tensor
) -> dict[str, list[Part]]:
    """An adapter's parts for some rows of the batch, with all that is the same at every step made once."""
    heads = {name: layer.heads for layer in layers for name in (layer.name, layer.block)}
    return {name: [part.ready(heads[name]).take(rows) for part in here] for name, here in parts.items()}


def _few(key: Tensor, heads: int) -> bool:
    """Whether one matrix for all heads is the faster form: on a CPU, for a handful of tokens."""
    return key.device.type == "cpu" and heads * key.shape[1] <= FEW_COLUMNS


def _gate(scale: float | Tensor, alpha: Tensor, like: Tensor) -> Tensor:
    return (scale * alpha.to(like).tanh()).to(like)


def _is_one(scale: float | Tensor) -> bool:
    return isinstance(scale, float) and scale == 1.0


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
