"""Adapters on disk: one safetensors file for all kinds and components, with every setting in its header.

Keys are `component.layer.part` in peft's names. A LoRA or DoRA file is at the same time what diffusers reads:
`pipe.load_lora_weights("person.safetensors")`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from idgen.checkpoint import load_weights, save_weights
from idgen.errors import IdgenError
from idgen.families import family_name
from idgen.finetune.adapters import adapter_parameters, inject, remove_adapter
from idgen.finetune.config import FinetuneConfig, read_peft
from idgen.finetune.places import Models, adapted, components, holds, places
from idgen.finetune.strength import dial_of
from idgen.finetune.targets import name_targets
from idgen.headers import FINETUNE, require_format
from idgen.settings import build
from idgen.version import __version__

KIND = "finetune"  # in idgen/signatures.py
DIFFUSERS_HEADER = "lora_adapter_metadata"  # where diffusers looks for rank and alpha
OLD_TEXT = "text_model."  # what CLIP's layers began with before transformers 5, and what files still say
# What each kind's parameters are called: the ends of keys.
PARTS = ("lora_", "oft_R", "boft_", "hra_u", "hada_", "lokr_")


def save_adapter(path: str | os.PathLike[str], models: Models, name: str = "default") -> None:
    """Write an adapter to one `.safetensors` file, whole or not at all: the values as trained, at whatever strength it stands.

    Raises:
        IdgenError: no such adapter, options that the format does not have, or a place that can not be written.
    """
    found = adapted(models, name)
    config = describe(models, name)
    header: dict[str, Any] = {
        "format": FINETUNE,
        "version": __version__,
        "kind": KIND,
        "base": _family(found),
        "config": config.model_dump(mode="json"),
        "models": {component: shape_of(model) for component, model in found.items()},
    }
    if config.kind in ("lora", "dora", "lokr"):
        header[DIFFUSERS_HEADER] = {
            f"{component}.{key}": value
            for component, model in found.items()
            for key, value in plain_settings(model.peft_config[name]).items()  # type: ignore[index]
        }
    save_weights(path, {published(key): value for key, value in trained_tensors(models, name).items()}, header)


def load_adapter(
    path: str | os.PathLike[str], models: Models, name: str = "default", *, dtype: torch.dtype | None = None
) -> FinetuneConfig:
    """Put an adapter that `save_adapter` wrote into models, active beside those that are, and frozen.

    Args:
        dtype: of its parameters; by default as they were saved, which is exact.

    Returns:
        Its settings.

    Raises:
        IdgenError: another kind of file, another base, a key that is missing, unknown or misshapen, a name that is taken. The
            models are as they were.
    """
    tensors, header = load_weights(path), _header(path)
    config = read_settings(path)
    chosen = components(models, config.modules)
    for component, model in chosen.items():
        made_for, here = header["models"].get(component), shape_of(model)
        if made_for != here:
            raise IdgenError(f"{path}: made for {_words(made_for)}, and this {component} is {_words(here)}")
    install(chosen, config, {own_key(key, chosen): value for key, value in tensors.items()}, name, str(path), dtype)
    return config


def read_settings(path: str | os.PathLike[str]) -> FinetuneConfig:
    """The settings of an adapter that `save_adapter` wrote.

    Raises:
        IdgenError: another kind of file, or a damaged header.
    """
    return build(FinetuneConfig, _header(path)["config"], f"{path}: ")


def describe(models: Models, name: str) -> FinetuneConfig:
    """The settings of an adapter that is in models, whoever put it there.

    Raises:
        IdgenError: no such adapter, or one with options that idgen has not.
    """
    found = adapted(models, name)
    here = [
        (component, place.name, layer)
        for component, model in found.items()
        for place in places(model)
        for layer in place.stack
        if holds(layer, name)
    ]
    sizes = {
        f"{component}.{place}": (
            layer.r[name],
            (layer.lora_alpha if isinstance(layer, LoraLayer) else layer.alpha)[name],
        )
        for component, place, layer in here
        if hasattr(layer, "scaling")
    }
    layers: dict[str, list[str]] = {component: [] for component in found}
    for component, place, _ in here:
        layers[component].append(place)
    configs = {component: model.peft_config[name] for component, model in found.items()}  # type: ignore[index]
    return read_peft(configs, name_targets(found, layers), sizes)


def trained_tensors(models: Models, name: str) -> dict[str, Tensor]:
    """An adapter's values at strength 1, by the keys of `adapter_parameters`."""
    tensors: dict[str, Tensor] = {key: value.detach() for key, value in adapter_parameters(models, name).items()}
    for component, model in adapted(models, name).items():
        for key, kept in dial_of(model, name).trained.items():
            tensors[f"{component}.{key}"] = kept
    return tensors


def install(
    chosen: Mapping[str, nn.Module],
    config: FinetuneConfig,
    tensors: Mapping[str, Tensor],
    name: str,
    what: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Put an adapter with these values, under the keys of `adapter_parameters`, into models: strictly, or not at all."""
    layers: dict[str, list[str]] = {component: [] for component in config.modules}
    known = {f"{component}.{place.name}" for component, model in chosen.items() for place in places(model)}
    unknown = sorted(key for key in tensors if layer_of(key) not in known)
    if unknown:
        raise _misfit(what, "unexpected", unknown)
    for layer in dict.fromkeys(layer_of(key) for key in tensors):
        component, _, rest = layer.partition(".")
        layers[component].append(rest)
    empty = [component for component, names in layers.items() if not names]
    if empty:
        raise IdgenError(f"{what}: nothing in it is for {', '.join(empty)}, though its settings name it; it is damaged")
    parameters = inject(chosen, config, layers, name)
    try:
        for kind, keys in (
            ("missing", [key for key in parameters if key not in tensors]),
            ("unexpected", [key for key in tensors if key not in parameters]),
            (
                "misshapen",
                [key for key, own in parameters.items() if key in tensors and tensors[key].shape != own.shape],
            ),
        ):
            if keys:
                raise _misfit(what, kind, keys)
    except IdgenError:
        remove_adapter(chosen, name)
        raise
    for key, parameter in parameters.items():
        # A tensor of its own: one from the file would keep the whole file's memory alive.
        parameter.data = tensors[key].to(parameter.device, dtype or tensors[key].dtype, copy=True)
        parameter.requires_grad_(False)


def layer_of(key: str) -> str:
    """`component.layer.part` -> `component.layer`."""
    parts = key.split(".")
    last = max((i for i, part in enumerate(parts) if part.startswith(PARTS)), default=len(parts))
    return ".".join(parts[:last])


def published(key: str) -> str:
    """Our key -> the file's: CLIP's layers under the name they have in all other files."""
    component, _, rest = key.partition(".")
    flat = component.startswith("text_encoder") and rest.startswith(("encoder.", "embeddings.", "final_layer_norm."))
    return f"{component}.{OLD_TEXT}{rest}" if flat else key


def own_key(key: str, models: Mapping[str, nn.Module]) -> str:
    """The file's key -> ours, for these models."""
    component, _, rest = key.partition(".")
    flat = rest.startswith(OLD_TEXT) and component in models and not hasattr(models[component], OLD_TEXT[:-1])
    return f"{component}.{rest.removeprefix(OLD_TEXT)}" if flat else key


def shape_of(model: Any) -> dict[str, Any]:
    """What tells bases apart, from a model's config."""
    keys = ("in_channels", "cross_attention_dim", "block_out_channels", "hidden_size", "num_hidden_layers")
    found = {key: getattr(model.config, key) for key in keys if hasattr(model.config, key)}
    return json.loads(json.dumps(found))


def plain_settings(config: Any) -> dict[str, Any]:
    """peft's settings as JSON has them."""
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    return json.loads(json.dumps(values, default=str))


def _header(path: str | os.PathLike[str]) -> dict[str, Any]:
    header = require_format(
        path,
        FINETUNE,
        f"{path} was not saved by idgen.finetune: load_kohya reads kohya's LoRA files, pipe.load_lora_weights those of diffusers",
    )
    try:
        read = {"config": json.loads(header["config"]), "models": json.loads(header["models"])}
        if not all(isinstance(value, dict) for value in read.values()):
            raise ValueError("not names and values")
    except (KeyError, ValueError) as error:
        raise IdgenError(f"{path}: the settings in its header are damaged ({error})") from None
    return read


def _family(models: Mapping[str, Any]) -> str:
    """The base in words, as far as the UNet tells."""
    width = getattr(models["unet"].config, "cross_attention_dim", None) if "unet" in models else None
    return family_name(width) if isinstance(width, int) else ""


def _misfit(what: str, kind: str, keys: list[str]) -> IdgenError:
    shown = ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
    return IdgenError(f"{what}: this adapter does not fit the models; {len(keys)} {kind}: {shown}")


def _words(shape: dict[str, Any] | None) -> str:
    if not shape:
        return "another component"
    if "cross_attention_dim" in shape and isinstance(shape["cross_attention_dim"], int):
        inputs = f" with {shape['in_channels']} input channels" if "in_channels" in shape else ""
        return (
            f"a UNet of {family_name(shape['cross_attention_dim'])}{inputs}, blocks {shape.get('block_out_channels')}"
        )
    return f"a text encoder of width {shape.get('hidden_size')} with {shape.get('num_hidden_layers')} layers"
