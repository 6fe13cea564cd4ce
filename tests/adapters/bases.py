"""Tiny random UNets of the shapes that adapters are published for."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

WIDTH = 32  # of the text

SHAPES: dict[str, dict[str, Any]] = {
    "sd15": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
    },
    "sd2-inpaint": {
        "in_channels": 9,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
    },
    "sdxl": {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 8,
    },
}


def tiny_unet(base: str, seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """A UNet of a base's shape; the same seed gives the same weights."""
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": WIDTH,
        **SHAPES[base],
        **changes,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(**config).eval().requires_grad_(False)


def call_arguments(unet: UNet2DConditionModel, rows: int, seed: int = 0, size: int = 8) -> dict[str, Any]:
    """What a UNet is called with, beside identities."""
    random = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(unet.dtype)

    arguments: dict[str, Any] = {
        "sample": noise(rows, unet.config["in_channels"], size, size),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": noise(rows, 7, unet.config["cross_attention_dim"]),
    }
    if unet.config["addition_embed_type"] == "text_time":
        arguments["added_cond_kwargs"] = {"text_embeds": noise(rows, 8), "time_ids": noise(rows, 6)}
    return arguments


def predict(unet: UNet2DConditionModel, arguments: dict[str, Any], conditioning: Any | None = None) -> Tensor:
    """The UNet's output, with identities if a conditioning is given."""
    with torch.no_grad():
        kwargs = conditioning.kwargs if conditioning is not None else None
        return unet(**arguments, cross_attention_kwargs=kwargs).sample


def rows_of(arguments: dict[str, Any], rows: slice) -> dict[str, Any]:
    """The same call for some rows of the batch."""
    part = dict(arguments)
    for name in ("sample", "encoder_hidden_states"):
        part[name] = arguments[name][rows]
    if "added_cond_kwargs" in arguments:
        part["added_cond_kwargs"] = {name: value[rows] for name, value in arguments["added_cond_kwargs"].items()}
    return part
