"""A golden's weights in the containers in which the methods were published, and its base models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from idgen.checkpoint import load_strict
from tests.conformance.golden import Golden


def base_unet(golden: Golden) -> UNet2DConditionModel:
    """The UNet of `config["unet"]` with the golden's weights, as a diffusers folder would give it."""
    unet = UNet2DConditionModel(**golden.config["unet"]).eval().requires_grad_(False)
    load_strict(unet, golden.weights("unet."), "the golden's UNet")
    return unet


def nested_pickle(weights: Mapping[str, Tensor], path: Path) -> Path:
    """A pickle of dicts by the first part of each key: {"image_proj": {...}, "ip_adapter": {...}}."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        group, _, name = key.partition(".")
        groups.setdefault(group, {})[name] = value
    torch.save(groups, path)
    return path


def flat_pickle(weights: Mapping[str, Tensor], path: Path) -> Path:
    """A pickle of one dict."""
    torch.save(dict(weights), path)
    return path


def guided_batch(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's arguments for the usual inputs: latents twice, negative text then text."""
    latents = inputs["latents"]
    return {
        "sample": torch.cat([latents, latents]),
        "timestep": inputs["timestep"].reshape(-1)[0],
        "encoder_hidden_states": torch.cat([inputs["negative_text"], inputs["text"]]),
    }
