"""One softmax over a layer's own keys and those that parts bring."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from idgen.adapters.injections.parts import JointPart
from idgen.adapters.injections.products import attention, merge_heads, split_heads

FEW_KEYS = 256  # up to which the logits of all of a picture are held at once


def joint_attention(
    heads: int, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, parts: list[JointPart]
) -> Tensor:
    """(rows, picture tokens, hidden): attention to the layer's keys and those of the parts, heads merged.

    Args:
        hidden: (rows, picture tokens, hidden) what queries are made of.
        query: (rows, picture tokens, hidden) of the layer.
        key, value: (rows, tokens, hidden) of the layer.
        mask: (rows, heads, 1 or picture tokens, tokens) added to the layer's own logits.
    """
    blocks = [part.blocks for part in parts]
    keys = key.shape[1] + sum(part.key.shape[1] for part in parts)
    if keys <= FEW_KEYS and all(block is not None and block.device == hidden.device for block in blocks):
        return _by_products(heads, hidden, query, key, value, mask, parts)
    return _in_wide_heads(heads, hidden, query, key, value, mask, parts)


def _by_products(
    heads: int, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, parts: list[JointPart]
) -> Tensor:
    """Few keys, laid out (keys, picture); a part's own query projection lies in its matrix, see `block_keys`."""
    rows, tokens, _ = query.shape

    def apart(x: Tensor) -> Tensor:  # (rows * heads, tokens, head dim)
        return split_heads(x, heads).flatten(0, 1)

    logits = [torch.bmm(apart(key * (key.shape[-1] // heads) ** -0.5), apart(query).transpose(1, 2))]
    if mask is not None:
        logits[0] = logits[0] + mask.flatten(0, 1).transpose(1, 2)
    picture = hidden.transpose(1, 2)
    for part in parts:
        assert part.blocks is not None
        visual = torch.bmm(part.blocks.to(hidden), picture)  # (rows, heads * tokens, picture)
        if part.bias is not None:
            visual = visual + part.bias.to(visual).repeat(1, heads)[..., None]
        logits.append(visual.view(rows * heads, -1, tokens))
    weights = torch.cat(logits, 1).softmax(1)
    values = torch.cat([apart(value), *(apart(part.value.to(value)) for part in parts)], 1)
    return merge_heads(torch.bmm(weights.transpose(1, 2), values).unflatten(0, (rows, heads)))


def _in_wide_heads(
    heads: int, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, parts: list[JointPart]
) -> Tensor:
    """A part with a query projection of its own needs other logits for its keys. Queries and keys are laid side by side in wider
    heads, zero where they do not meet, so that one fused attention still computes all of it.
    """
    width = query.shape[-1] // heads
    own_queries = [part.query for part in parts if part.query is not None]
    wide = (1 + len(own_queries)) * width
    queries = [split_heads(query, heads)]
    queries += [split_heads(F.linear(hidden, weight.to(hidden)), heads) for weight in own_queries]
    keys = [_place(split_heads(key, heads), 0, wide)]
    values = [split_heads(value, heads)]
    biases = [torch.zeros_like(hidden[:, :1, :1]).expand(-1, 1, key.shape[1]) if mask is None else mask]
    slot = 0
    for part in parts:
        if part.query is not None:
            slot += 1
        offset = slot * width if part.query is not None else 0
        keys.append(_place(split_heads(part.key.to(hidden), heads), offset, wide))
        values.append(split_heads(part.value.to(hidden), heads))
        bias = part.bias if part.bias is not None else torch.zeros_like(part.key[..., 0])
        biases.append(bias[:, None].to(hidden))
    needs_bias = mask is not None or any(part.bias is not None for part in parts)
    joint_bias: Tensor | None = None
    if needs_bias:
        four = [b[:, None] if b.ndim == 3 else b for b in biases]  # (rows, heads or 1, picture tokens or 1, keys)
        shape = [max(b.shape[axis] for b in four) for axis in (0, 1, 2)]
        joint_bias = torch.cat([b.expand(*shape, -1) for b in four], -1)
    joined = torch.cat(queries, -1), torch.cat(keys, 2), torch.cat(values, 2)
    if own_queries:
        return merge_heads(F.scaled_dot_product_attention(*joined, attn_mask=joint_bias, scale=width**-0.5))
    return merge_heads(attention(*joined, joint_bias))


def _place(x: Tensor, offset: int, width: int) -> Tensor:
    """Zeros around the head dimension, so that x begins at `offset` of `width`."""
    return x if width == x.shape[-1] else F.pad(x, (offset, width - x.shape[-1] - offset))
