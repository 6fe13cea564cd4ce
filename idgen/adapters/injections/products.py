"""Attention as plain matrix products, where those are faster than the fused kernel.

On a CPU, `scaled_dot_product_attention` computes bf16 attention at the speed of float32 products, about a fifth of that of bf16
ones (measured: AMD EPYC with AVX512-BF16), and spends more on bookkeeping than on arithmetic where there are four keys. Two
forms of the same softmax help:

* `attention`: long sequences, a few heads and queries at a time, so that their logits stay in the processor's cache.
* `block_keys`, `block_values`: the few tokens of an identity, the same at every step. All heads share one matrix, zero where a
  head meets another's channels; logits are laid out (tokens, picture), which makes the softmax over tokens one of vectors.

Products round logits to bf16, which the fused kernel does not. A softmax stays the same when one vector is taken from every
key; without what all keys share, logits are small and so is their rounding (SageAttention, arXiv 2410.02367, section 3.1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 22  # logits at a time: 8 MB in bf16, and as much for their softmax
FEW_COLUMNS = 160  # heads * tokens up to which a shared matrix is cheap


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(rows, tokens, hidden) -> (rows, heads, tokens, head dim)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(rows, heads, tokens, head dim) -> (rows, tokens, hidden)."""
    return x.transpose(1, 2).flatten(2)


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """`scaled_dot_product_attention`, by whichever way is faster here.

    Args:
        query, key, value: (rows, heads, tokens, head dim).
        bias: broadcast to (rows, heads, query tokens, key tokens), added to the logits.
    """
    if _products_win(query, key, value, bias):
        return attention_by_products(query, key, value, bias)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def attention_by_products(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same, without gradients. `bias` must be of keys alone: (rows or 1, 1, 1, key tokens)."""
    rows, heads, tokens, dim = query.shape
    keys = key.shape[2]
    every = rows * heads
    queries = query.reshape(every, tokens, dim)
    # The scale goes to the keys ahead of rounding; the mean over keys changes no softmax.
    centred = ((key - key.mean(2, keepdim=True)) * dim**-0.5).reshape(every, keys, dim).transpose(1, 2)
    values = value.reshape(every, keys, dim)
    biases = None if bias is None else bias.expand(rows, heads, 1, keys).reshape(every, 1, keys)
    length = max(1, min(tokens, CHUNK // keys))
    group = max(1, CHUNK // (keys * length))
    logits, weights = (query.new_empty(min(group, every) * length * keys) for _ in range(2))
    out = torch.empty_like(queries, memory_format=torch.contiguous_format)
    for first in range(0, every, group):
        some = slice(first, min(first + group, every))
        for start in range(0, tokens, length):
            part = queries[some, start : start + length]
            shape = (part.shape[0], part.shape[1], keys)
            size = part.shape[0] * part.shape[1] * keys
            here, probabilities = logits[:size].view(shape), weights[:size].view(shape)
            torch.bmm(part, centred[some], out=here)
            if biases is not None:
                here += biases[some]
            torch.softmax(here, -1, out=probabilities)
            out[some, start : start + length] = torch.bmm(probabilities, values[some])
    return out.view(rows, heads, tokens, dim)


def block_keys(key: Tensor, heads: int, query: Tensor | None = None, *, centre: bool = True) -> Tensor:
    """(rows, heads * tokens, hidden): its product with a layer's flat query is the scaled logits of all heads.

    Args:
        key: (rows, tokens, hidden).
        query: (hidden, hidden) weight of a query projection, which becomes part of the matrix; None: queries come projected.
        centre: takes the mean over tokens away, where no other keys share the softmax.
    """
    wide = key.float()
    wide = wide - wide.mean(1, keepdim=True) if centre else wide
    wide = (wide * (key.shape[-1] // heads) ** -0.5).to(key.dtype).unflatten(-1, (heads, -1))
    blocks = torch.diag_embed(wide.permute(0, 1, 3, 2), dim1=1, dim2=3)  # (rows, heads, tokens, heads, head dim)
    blocks = blocks.flatten(1, 2).flatten(2)
    return blocks if query is None else blocks @ query.to(blocks)


def block_values(value: Tensor, heads: int) -> Tensor:
    """(rows, heads * tokens, hidden): weights (rows, heads * tokens, picture) transposed, times this, is the attention's result.

    Args:
        value: (rows, tokens, hidden).
    """
    return (
        torch.diag_embed(value.unflatten(-1, (heads, -1)).permute(0, 1, 3, 2), dim1=1, dim2=3).flatten(1, 2).flatten(2)
    )


def _products_win(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> bool:
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return False
    if key.shape[2] < 64 or value.shape[-1] != query.shape[-1]:
        return False
    if bias is not None and (bias.ndim != 4 or bias.shape[1:3] != (1, 1) or bias.requires_grad):
        return False
    # With AMX the fused kernel has products of its own; without AVX512-BF16 there are none in bf16.
    return bool(torch.cpu._is_avx512_bf16_supported()) and not torch.cpu._is_amx_tile_supported()
