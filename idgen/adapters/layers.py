"""The attention layers and transformer blocks of a UNet, by the names and the order that published checkpoints count in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention

from idgen.errors import IdgenError


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer, without the layer itself: what an adapter must know to build its own weights for it.

    Attributes:
        name: path in the UNet, `down_blocks.0.attentions.0.transformer_blocks.0.attn2`.
        index: its place in `unet.attn_processors` (down, up, middle), which published files number their keys by.
        cross: whether it attends to the text (attn2) rather than to the picture (attn1).
        hidden: channels of the picture tokens there.
        context: channels of what it attends to.
        heads: attention heads.
    """

    name: str
    index: int
    cross: bool
    hidden: int
    context: int
    heads: int

    @property
    def block(self) -> str:
        """Path of the transformer block that holds it."""
        return self.name.rpartition(".")[0]


def attention_layers(unet: UNet2DConditionModel) -> list[AttentionLayer]:
    """All attention layers of a UNet in the published order.

    Raises:
        IdgenError: the model has attention of a kind that adapters can not enter (no transformer blocks).
    """
    layers = []
    for index, path in enumerate(unet.attn_processors):
        name = path.removesuffix(".processor")
        attention = unet.get_submodule(name)
        if not isinstance(attention, Attention) or name.rpartition(".")[2] not in ("attn1", "attn2"):
            raise IdgenError(
                f"this UNet's {name} is not the attention of a transformer block: adapters need a Stable Diffusion UNet"
            )
        layers.append(
            AttentionLayer(
                name=name,
                index=index,
                cross=name.endswith("attn2"),
                hidden=attention.query_dim,
                context=attention.cross_attention_dim,
                heads=attention.heads,
            )
        )
    return layers


def attention(unet: torch.nn.Module, layer: AttentionLayer) -> Attention:
    """The layer's module."""
    module = unet.get_submodule(layer.name)
    assert isinstance(module, Attention)
    return module


def transformer_block(unet: torch.nn.Module, layer: AttentionLayer) -> BasicTransformerBlock:
    """The block around a layer."""
    module = unet.get_submodule(layer.block)
    assert isinstance(module, BasicTransformerBlock)
    return module


def family(layers: Sequence[AttentionLayer], in_channels: int = 4) -> str:
    """The base in words, for messages: told by what the cross-attention reads and how many layers there are."""
    width = next((layer.context for layer in layers if layer.cross), 0)
    known = {(768, 4): "Stable Diffusion 1.5", (1024, 4): "Stable Diffusion 2", (2048, 4): "SDXL"}
    known |= {(768, 9): "Stable Diffusion 1.5 inpainting", (1024, 9): "Stable Diffusion 2 inpainting"}
    return known.get((width, in_channels), f"a UNet with {len(layers)} attention layers over {width} text channels")
