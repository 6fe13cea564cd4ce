"""Tiny models with adapters that were "trained": moved from where they start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig
from torch import Tensor, nn

from idgen.finetune import FinetuneConfig, adapter_parameters, add_adapter
from tests.adapters.bases import call_arguments, predict, tiny_unet
from tests.tiny import tiny_components
from tests.tiny import tiny_unet as mini_unet
from tests.tiny_sdxl import sdxl_components

KINDS = ("lora", "dora", "oft", "boft", "hra", "loha", "lokr")
BASES = ("sd15", "sd2-inpaint", "sdxl", "mini")


def config(kind: str, **changes: Any) -> FinetuneConfig:
    """Small enough for widths of 8; alpha is not the rank, so that a lost one shows."""
    return FinetuneConfig(**{"kind": kind, "rank": 4, "alpha": 6.0, "block_size": 4, **changes})


def unet(base: str) -> Any:
    if base != "mini":
        return tiny_unet(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mini_unet(32).requires_grad_(False)


def text_to_image(base: str) -> Any:
    """A pipeline; the same weights every time."""
    if base == "sdxl":
        pipe: Any = StableDiffusionXLPipeline(**sdxl_components())
    else:
        parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = StableDiffusionPipeline(**tiny_components(), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def train(parameters: Mapping[str, nn.Parameter], size: float = 0.05, seed: int = 0) -> None:
    """Move an adapter from its start, and freeze it: torch takes other matmuls where gradients are asked for."""
    random = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.data += torch.randn(parameter.shape, generator=random).to(parameter) * size
        parameter.requires_grad_(False)


def trained(models: Any, settings: FinetuneConfig, name: str = "person", seed: int = 0) -> dict[str, nn.Parameter]:
    """A new adapter, trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        add_adapter(models, settings, name)
    parameters = adapter_parameters(models, name)
    train(parameters, seed=seed)
    return parameters


def with_user_lora(model: Any, **changes: Any) -> Any:
    """A LoRA as diffusers puts it in."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        settings = {"r": 2, "target_modules": ["to_q", "to_v"], "init_lora_weights": False, **changes}
        model.add_adapter(LoraConfig(**settings), "user")
    return model


def output(model: Any) -> Tensor:
    """What a UNet predicts, or a pipeline draws, always for the same input."""
    if isinstance(model, nn.Module):
        return predict(model, call_arguments(model, 2))
    random = torch.Generator().manual_seed(0)
    made = model("photo of a person", num_inference_steps=2, generator=random, output_type="pt", height=32, width=32)
    return made.images


def state(model: nn.Module) -> tuple[str, dict[str, Tensor]]:
    """The module tree and the values, to compare with later."""
    return repr(model), {key: value.clone() for key, value in model.state_dict().items()}


def same_state(model: nn.Module, before: tuple[str, dict[str, Tensor]]) -> bool:
    tree, values = state(model)
    return (
        tree == before[0]
        and list(values) == list(before[1])
        and all(torch.equal(value, before[1][key]) for key, value in values.items())
    )
