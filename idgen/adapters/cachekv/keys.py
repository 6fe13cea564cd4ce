"""ReF-LDM's published keys <-> those of diffusers' UNet2DModel and VQModel.

A `KeyMap` pairs the modules of the two sides one to one, so it converts in both directions: into diffusers to load, and
back to write trained weights (or gradients) under their published names. Which modules there are is read from the keys and
shapes of the weights. Names from CompVis/latent-diffusion `openaimodel.py` and taming-transformers `model.py`, which
ReF-LDM uses unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from idgen.errors import IdgenError
from idgen.models.published import shape

State = Mapping[str, Tensor]

UNET_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET_ATTENTION = {"norm": "group_norm", "qkv": "to_qkv", "proj_out": "to_out.0"}
VQ_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
VQ_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}

FUSED = "to_qkv"  # published as one projection, three in diffusers
APART = ("to_q", "to_k", "to_v")
ATTENTION_PROJECTION = re.compile(r"\.(to_[qkv]|to_out\.0)$")


@dataclass(frozen=True)
class KeyMap:
    """Modules by their published name, and what they are called in diffusers.

    Attributes:
        modules: published module -> diffusers module; `to_qkv` stands for diffusers' three projections.
        head_channels: channels of one attention head: the fused projection holds query, key and value head by head.
        kernel_dims: the published attention projects by convolutions with so many kernel axes of length 1.
    """

    modules: Mapping[str, str]
    kernel_dims: int
    head_channels: int = 0

    def to_diffusers(self, state: State, what: str) -> dict[str, Tensor]:
        """
        Raises:
            IdgenError: names keys that the map does not know.
        """
        unknown = [key for key in state if key.rpartition(".")[0] not in self.modules]
        if unknown:
            raise IdgenError(f"{what}: {_listed('unknown', unknown)}: these are other weights, or newer ones")
        converted: dict[str, Tensor] = {}
        for key, value in state.items():
            module, _, leaf = key.rpartition(".")
            ours = self.modules[module]
            if ours.endswith(FUSED):
                parts = self._split(value.flatten(1) if value.ndim > 1 else value)
                converted |= {
                    f"{ours.removesuffix(FUSED)}{name}.{leaf}": part for name, part in zip(APART, parts, strict=True)
                }
            elif ATTENTION_PROJECTION.search(ours) and value.ndim > 1:
                converted[f"{ours}.{leaf}"] = value.flatten(1)
            else:
                converted[f"{ours}.{leaf}"] = value
        return converted

    def to_published(self, state: State) -> dict[str, Tensor]:
        """The inverse: a diffusers state dict (or its gradients) under the published names, in the order of the map.

        Raises:
            IdgenError: a key that the map does not know.
        """
        published: dict[str, Tensor] = {}
        taken: set[str] = set()
        for module, ours in self.modules.items():
            for leaf in ("weight", "bias"):
                names = [f"{ours}.{leaf}"]
                if ours.endswith(FUSED):
                    names = [f"{ours.removesuffix(FUSED)}{name}.{leaf}" for name in APART]
                if any(name not in state for name in names):
                    continue
                taken.update(names)
                value = state[names[0]] if len(names) == 1 else self._fuse([state[name] for name in names])
                if value.ndim == 2 and ATTENTION_PROJECTION.search(names[0].removesuffix(f".{leaf}")):
                    value = value.reshape(*value.shape, *[1] * self.kernel_dims)
                published[f"{module}.{leaf}"] = value
        unknown = [key for key in state if key not in taken]
        if unknown:
            raise IdgenError(f"{_listed('unknown', unknown)}: not of this model")
        return published

    def _split(self, fused: Tensor) -> tuple[Tensor, ...]:
        by_head = fused.unflatten(0, (-1, 3, self.head_channels))  # (heads, 3, head channels, ...)
        return tuple(part.flatten(0, 1).contiguous() for part in by_head.unbind(1))

    def _fuse(self, parts: list[Tensor]) -> Tensor:
        return torch.stack([part.unflatten(0, (-1, self.head_channels)) for part in parts], 1).flatten(0, 2)


@dataclass(frozen=True)
class Described:
    """What a model's weights say of it: the arguments of its diffusers class, and its keys."""

    config: dict[str, Any]
    keys: KeyMap


def describe_unet(state: State, *, head_channels: int, norm_groups: int, what: str) -> Described:
    """A UNet2DModel from the published UNet's keys (`input_blocks.0.0.weight`, ...).

    Raises:
        IdgenError: a key that tells a size is missing, attention is at some blocks of a level only, or heads do not fit.
    """
    blocks = _numbers(state, r"input_blocks\.(\d+)\.")
    halvings = _numbers(state, r"input_blocks\.(\d+)\.0\.op\.")
    stride = min(halvings, default=max(blocks, default=0) + 1)  # residual blocks of a level, and the halving after them
    levels, per_level = len(halvings) + 1, stride - 1
    last = max(blocks, default=0)
    if per_level < 1 or last != levels * stride - 1:
        raise IdgenError(f"{what}: input_blocks.{last} does not end a UNet of {levels} levels: these are other weights")

    for key in state:
        if key.endswith(".qkv.weight") and state[key].shape[0] % (3 * head_channels):
            raise IdgenError(
                f"{what}: {key} has {state[key].shape[0]} rows, which is not 3 x heads of {head_channels} channels: set"
                " head_channels as in the model's config"
            )

    modules = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
    modules |= {"input_blocks.0.0": "conv_in"}
    channels, down_types = [], []
    for level in range(levels):
        first = 1 + level * stride
        channels.append(shape(state, f"input_blocks.{first}.0.in_layers.2.weight", 4, what)[0])
        attends = _attends(state, [f"input_blocks.{first + block}.1" for block in range(per_level)], what)
        down_types.append("AttnDownBlock2D" if attends else "DownBlock2D")
        for block in range(per_level):
            modules |= _unet_block(f"input_blocks.{first + block}", f"down_blocks.{level}", block, attends)
        if level < levels - 1:
            modules[f"input_blocks.{first + per_level}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"

    middle = _attends(state, ["middle_block.1"], what)
    modules |= _named("middle_block.0", "mid_block.resnets.0", UNET_RESNET)
    if middle:
        modules |= _named("middle_block.1", "mid_block.attentions.0", UNET_ATTENTION)
    modules |= _named(f"middle_block.{1 + middle}", "mid_block.resnets.1", UNET_RESNET)

    up_types = []
    for level in range(levels):
        first = level * stride
        attends = _attends(state, [f"output_blocks.{first + block}.1" for block in range(stride)], what)
        up_types.append("AttnUpBlock2D" if attends else "UpBlock2D")
        for block in range(stride):
            modules |= _unet_block(f"output_blocks.{first + block}", f"up_blocks.{level}", block, attends)
        if level < levels - 1:
            doubling = f"output_blocks.{first + per_level}.{1 + attends}.conv"
            modules[doubling] = f"up_blocks.{level}.upsamplers.0.conv"
    modules |= {"out.0": "conv_norm_out", "out.2": "conv_out"}

    config = {
        "in_channels": shape(state, "input_blocks.0.0.weight", 4, what)[1],
        "out_channels": shape(state, "out.2.weight", 4, what)[0],
        "block_out_channels": tuple(channels),
        "layers_per_block": per_level,
        "down_block_types": tuple(down_types),
        "up_block_types": tuple(up_types),
        "add_attention": middle,
        "attention_head_dim": head_channels,
        "norm_num_groups": norm_groups,
    }
    return Described(config, KeyMap(modules, kernel_dims=1, head_channels=head_channels))


def describe_vq(state: State, *, norm_groups: int, what: str) -> Described:
    """A VQModel from the published first stage's keys (`encoder.conv_in.weight`, ...).

    Raises:
        IdgenError: a key that tells a size is missing, or attention is at some blocks of a level only.
    """
    levels = len(_numbers(state, r"encoder\.down\.(\d+)\."))
    per_level = len(_numbers(state, r"encoder\.down\.0\.block\.(\d+)\."))
    modules: dict[str, str] = {}
    channels, attends_at = [], []
    for level in range(levels):
        channels.append(shape(state, f"encoder.down.{level}.block.0.conv1.weight", 4, what)[0])
        attends = _attends(state, [f"encoder.down.{level}.attn.{block}" for block in range(per_level)], what)
        attends_at.append(attends)
        for block in range(per_level):
            modules |= _vq_block(f"encoder.down.{level}", f"encoder.down_blocks.{level}", block, attends)
        if level < levels - 1:
            modules[f"encoder.down.{level}.downsample.conv"] = f"encoder.down_blocks.{level}.downsamplers.0.conv"
        place = levels - 1 - level  # the decoder's levels are numbered by resolution there, by order in diffusers
        for block in range(per_level + 1):
            modules |= _vq_block(f"decoder.up.{level}", f"decoder.up_blocks.{place}", block, attends)
        if level > 0:
            modules[f"decoder.up.{level}.upsample.conv"] = f"decoder.up_blocks.{place}.upsamplers.0.conv"
    for side in ("encoder", "decoder"):
        modules |= {f"{side}.conv_in": f"{side}.conv_in", f"{side}.conv_out": f"{side}.conv_out"}
        modules |= {f"{side}.norm_out": f"{side}.conv_norm_out"}
        modules |= _named(f"{side}.mid.block_1", f"{side}.mid_block.resnets.0", VQ_RESNET)
        modules |= _named(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0", VQ_ATTENTION)
        modules |= _named(f"{side}.mid.block_2", f"{side}.mid_block.resnets.1", VQ_RESNET)
    modules |= {name: name for name in ("quantize.embedding", "quant_conv", "post_quant_conv")}

    codes, code_channels = shape(state, "quantize.embedding.weight", 2, what)
    down = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
    up = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
    config = {
        "in_channels": shape(state, "encoder.conv_in.weight", 4, what)[1],
        "out_channels": shape(state, "decoder.conv_out.weight", 4, what)[0],
        "block_out_channels": tuple(channels),
        "layers_per_block": per_level,
        "down_block_types": tuple(down[attends] for attends in attends_at),
        "up_block_types": tuple(up[attends] for attends in reversed(attends_at)),
        "latent_channels": shape(state, "encoder.conv_out.weight", 4, what)[0],
        "num_vq_embeddings": codes,
        "vq_embed_dim": code_channels,
        "norm_num_groups": norm_groups,
        "scaling_factor": 1.0,
    }
    return Described(config, KeyMap(modules, kernel_dims=2))


def _numbers(state: State, pattern: str) -> set[int]:
    matches = (re.match(pattern, key) for key in state)
    return {int(match[1]) for match in matches if match}


def _attends(state: State, places: list[str], what: str) -> bool:
    """Whether a level's blocks have attention: diffusers knows all of them or none."""
    found = {place for place in places for name in ("norm", "proj_out") if f"{place}.{name}.weight" in state}
    if found and len(found) < len(places):
        lacking = next(place for place in places if place not in found)
        raise IdgenError(f"{what}: missing {lacking}.*, the attention that the blocks beside it have")
    return bool(found)


def _named(published: str, ours: str, leaves: Mapping[str, str]) -> dict[str, str]:
    return {f"{published}.{theirs}": f"{ours}.{name}" for theirs, name in leaves.items()}


def _unet_block(published: str, ours: str, block: int, attends: bool) -> dict[str, str]:
    modules = _named(f"{published}.0", f"{ours}.resnets.{block}", UNET_RESNET)
    return modules | (_named(f"{published}.1", f"{ours}.attentions.{block}", UNET_ATTENTION) if attends else {})


def _vq_block(published: str, ours: str, block: int, attends: bool) -> dict[str, str]:
    modules = _named(f"{published}.block.{block}", f"{ours}.resnets.{block}", VQ_RESNET)
    if attends:
        modules |= _named(f"{published}.attn.{block}", f"{ours}.attentions.{block}", VQ_ATTENTION)
    return modules


def _listed(kind: str, keys: list[str]) -> str:
    return f"{len(keys)} {kind}: {', '.join(keys[:10])}{', ...' if len(keys) > 10 else ''}"
