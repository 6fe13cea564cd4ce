"""Self-attention that lends its keys and values out, or reads those of references beside its own.

Which of the two it does is a matter of the call, which a context variable carries: threads and tasks have their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from idgen.adapters.cachekv.cache import MergedCache, ReferenceCache
from idgen.adapters.injections.products import merge_heads, split_heads
from idgen.errors import IdgenError


@dataclass(frozen=True)
class SelfAttention:
    """A self-attention layer: its path in the UNet, and the latents' resolution over its own."""

    name: str
    level: int


def block_levels(unet: UNet2DModel | UNet2DConditionModel) -> dict[str, int]:
    """By the beginning of a block's name, the latents' resolution over the block's, in the order in which they run."""
    last = len(unet.config["block_out_channels"]) - 1
    levels = {f"down_blocks.{i}.": 2**i for i in range(last + 1)}
    levels |= {"mid_block.": 2**last}
    return levels | {f"up_blocks.{i}.": 2 ** (last - i) for i in range(last + 1)}


def self_attention_layers(unet: UNet2DModel) -> list[SelfAttention]:
    """The layers in the order in which they run: down, middle, up."""
    names = [name for name, module in unet.named_modules() if isinstance(module, Attention)]
    return [
        SelfAttention(name, level)
        for block, level in block_levels(unet).items()
        for name in names
        if name.startswith(block)
    ]


class Complete(Exception):
    """The last keys and values that a call wants are there; the rest of the UNet need not run."""


@dataclass(repr=False)
class Writing:
    """Keeps the layers' keys and values, (rows, tokens, channels) each, and ends the call after the last one."""

    owner: object
    last: SelfAttention
    kept: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, layer: SelfAttention, attn: Attention, hidden: Tensor) -> Tensor:
        tokens = _normed_tokens(attn, hidden)
        key, value = self.kept[layer.name] = attn.to_k(tokens), attn.to_v(tokens)
        if layer == self.last:
            raise Complete
        query, keys, values = (split_heads(x, attn.heads) for x in (attn.to_q(tokens), key, value))
        return _finish(attn, F.scaled_dot_product_attention(query, keys, values), hidden)


@dataclass(frozen=True, repr=False)
class Reading:
    """Lets the layers read references beside themselves, in one softmax."""

    owner: object
    cache: ReferenceCache | MergedCache

    def __call__(self, layer: SelfAttention, attn: Attention, hidden: Tensor) -> Tensor | None:
        cache, rows = self.cache, hidden.shape[0]
        parts = (cache,) if isinstance(cache, ReferenceCache) else cache.parts
        if layer.name not in parts[0].layers:
            return None
        if cache.rows == 1:
            parts = tuple(part.expand(rows) for part in parts)
        elif cache.rows != rows:
            raise IdgenError(
                f"the UNet was called with {rows} rows, the references are for {cache.rows}: expand() or merge() the caches"
                " to the batch, those without references first"
            )
        tokens = _normed_tokens(attn, hidden)
        query, key, value = (split_heads(to(tokens), attn.heads) for to in (attn.to_q, attn.to_k, attn.to_v))
        counts = [part.rows for part in parts]
        attended = [
            _attend(attn.heads, part, layer.name, *qkv)
            for part, *qkv in zip(parts, *(x.split(counts) for x in (query, key, value)), strict=True)
        ]
        return _finish(attn, torch.cat(attended), hidden)


Call = Writing | Reading

_CALLS: ContextVar[tuple[Call, ...]] = ContextVar("idgen_cachekv_calls", default=())


@contextmanager
def calling(call: Call) -> Iterator[None]:
    """Within the block, in this thread, `call` decides what its owner's layers do."""
    token = _CALLS.set((call, *_CALLS.get()))
    try:
        yield
    finally:
        _CALLS.reset(token)


class CacheProcessor:
    """Stands in for a layer's processor, and runs it where no call of its owner says otherwise."""

    def __init__(self, owner: object, layer: SelfAttention, original: Callable[..., Tensor]) -> None:
        self.owner, self.layer, self.original = owner, layer, original

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        call = next((call for call in _CALLS.get() if call.owner is self.owner), None)
        result = None if call is None else call(self.layer, attn, hidden_states)
        if result is not None:
            return result
        return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def _attend(heads: int, cache: ReferenceCache, name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Rows of one cache: (rows, heads, tokens, head channels) each."""
    cached = cache.layers[name]
    own = key.shape[2]
    key = torch.cat([key, split_heads(cached.key.to(key), heads)], 2)
    value = torch.cat([value, split_heads(cached.value.to(value), heads)], 2)
    bias = None
    if cache.copies != 1:
        bias = query.new_zeros(1, 1, 1, key.shape[2])
        bias[..., own:] = math.log(cache.copies)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def _normed_tokens(attn: Attention, hidden: Tensor) -> Tensor:
    """(rows, channels, h, w) -> (rows, h * w, channels), normed."""
    return attn.group_norm(hidden.flatten(2)).transpose(1, 2)


def _finish(attn: Attention, attended: Tensor, hidden: Tensor) -> Tensor:
    """What the layer returns: heads merged, projected, added to what came in."""
    projection, dropout = attn.to_out
    out = dropout(projection(merge_heads(attended)))
    return (out.transpose(1, 2).reshape(hidden.shape) + hidden) / attn.rescale_output_factor
