"""Adapters for other programs: peft's folders, diffusers' LoRA files, and plain models with the adapters in their weights."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from diffusers import ModelMixin

from idgen.checkpoint import save_weights
from idgen.errors import IdgenError
from idgen.files import check_output
from idgen.finetune.files import describe, layer_of, save_adapter, trained_tensors
from idgen.finetune.merging import merged_state_dict
from idgen.finetune.places import Models, adapted, components, refuse_merged


def export_diffusers(path: str | os.PathLike[str], models: Models, name: str = "default") -> None:
    """Write a LoRA or DoRA that `pipe.load_lora_weights` loads, with its alpha; a LoKr is read by `pipe.unet.load_lora_adapter`.

    It is the file of `save_adapter`, so that `load_adapter` reads it too.

    Raises:
        IdgenError: diffusers loads no adapters of this kind; says what it does load.
    """
    config = describe(models, name)
    if config.kind == "lokr" and config.modules != ("unet",):
        raise IdgenError("diffusers loads a lokr adapter into the UNet only: export it merged or for peft")
    if config.kind not in ("lora", "dora", "lokr"):
        raise IdgenError(f"diffusers loads no {config.kind} adapters: export it merged or for peft")
    save_adapter(path, models, name)


def export_peft(folder: str | os.PathLike[str], models: Models, name: str = "default") -> None:
    """Write a folder per component for `PeftModel.from_pretrained(unet, folder / "unet")`, whatever the kind.

    Raises:
        IdgenError: no such adapter, or a folder that can not be written.
    """
    folder = Path(check_output(folder, folder=True))
    tensors = trained_tensors(models, name)
    for component, model in adapted(models, name).items():
        own = {
            key.removeprefix(f"{component}."): value
            for key, value in tensors.items()
            if key.startswith(f"{component}.")
        }
        place = folder / component
        save_weights(
            place / "adapter_model.safetensors", {f"base_model.model.{key}": value for key, value in own.items()}
        )
        config: Any = copy.deepcopy(model.peft_config[name])  # type: ignore[index]
        config.target_modules = {layer_of(key) for key in own}
        config.inference_mode = True
        config.save_pretrained(place)


def export_merged(folder: str | os.PathLike[str], models: Models) -> None:
    """Write every component that has active adapters as a plain model, with the adapters at their strength in its weights.

    `UNet2DConditionModel.from_pretrained(folder, subfolder="unet")` loads it without peft; the models here stay as they are.

    Raises:
        IdgenError: no adapter is active, adapters are merged already, or a folder that can not be written.
    """
    folder = Path(check_output(folder, folder=True))
    chosen: dict[str, Any] = {
        key: model for key, model in components(models).items() if getattr(model, "peft_config", {})
    }
    if not chosen:
        raise IdgenError("no adapter is in these models: there is nothing to merge")
    refuse_merged(chosen)
    for component, model in chosen.items():
        with init_empty_weights():
            plain = (
                type(model).from_config(model.config) if isinstance(model, ModelMixin) else type(model)(model.config)
            )
        plain.load_state_dict(merged_state_dict(model), assign=True)
        plain.save_pretrained(folder / component)
