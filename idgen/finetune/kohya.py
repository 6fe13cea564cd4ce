"""LoRA files in the naming of kohya-ss/sd-scripts, which most programs and most shared LoRAs use.

Facts from its networks/lora.py: `lora_unet_(name with _ for .).lora_down.weight`, `.lora_up.weight`, `.alpha`; text encoders as
`lora_te_` (SDXL: `lora_te1_`, `lora_te2_`). The UNets of Stable Diffusion 1.5 and 2 have diffusers' names there, that of SDXL the
names of Stability's sgm (`input_blocks_4_1_...`); both are read for SDXL. LyCORIS adds `.dora_scale` for DoRA.

Every name is looked up among the layers of the model, so nothing is guessed from underscores. diffusers has a reader of its
own, which loses alphas that differ from layer to layer, and DoRA.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from idgen.checkpoint import load_weights, save_weights
from idgen.errors import IdgenError
from idgen.families import require_family
from idgen.finetune.config import FinetuneConfig
from idgen.finetune.files import describe, install, published, trained_tensors
from idgen.finetune.places import Models, components, places
from idgen.finetune.targets import name_targets

# kohya's word -> the part of peft's layer
PARTS = {
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "dora_scale": "lora_magnitude_vector.weight",
}
RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
SGM_TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def save_kohya(path: str | os.PathLike[str], models: Models, name: str = "default") -> None:
    """Write a LoRA or DoRA in kohya's naming, with an alpha for every layer.

    Raises:
        IdgenError: no such adapter, one of another kind, or a place that can not be written.
    """
    config = describe(models, name)
    if config.kind not in ("lora", "dora"):
        raise IdgenError(f"kohya's format holds LoRA and DoRA, and this adapter is {config.kind}: use save_adapter")
    chosen = components(models, config.modules)
    names = {ours: kohya[0] for ours, kohya in _names(chosen).items()}
    words = {ours: word for word, ours in PARTS.items()}
    tensors: dict[str, Tensor] = {}
    for key, value in trained_tensors(chosen, name).items():
        layer, part = next(
            (key.removesuffix(f".{ours}"), word) for ours, word in words.items() if key.endswith(f".{ours}")
        )
        if part == "dora_scale":
            value = value.reshape(-1, *[1] * (max(2, value.ndim) - 1))  # LyCORIS keeps the axes of the weight
        tensors[f"{names[layer]}.{part}"] = value
        alpha = config.alphas.get(layer, config.alpha)
        tensors[f"{names[layer]}.alpha"] = torch.tensor(float(alpha or config.rank))
    header = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(config.alpha),
        "ss_base_model_version": "sdxl_base_v1-0" if _is_sdxl(chosen) else "sd_v1",
    }
    save_weights(path, tensors, header)


def load_kohya(path: str | os.PathLike[str], models: Models, name: str = "default") -> FinetuneConfig:
    """Put a LoRA or DoRA from a file in kohya's naming into models, active beside what is active, and frozen.

    Layers without an alpha have the rank as theirs. What the file holds for a text encoder that `models` has not is an error.

    Returns:
        Its settings; `save_adapter` writes it in idgen's format.

    Raises:
        IdgenError: a file of another naming or base, a layer that the models do not have, a layer with a part missing.
    """
    loaded = load_weights(path)
    if not any(re.fullmatch(r"lora_(unet|te\d?)_.+\.lora_down\.weight", key) for key in loaded):
        raise IdgenError(f"{path} has no LoRA in kohya's naming: `idgen convert --inspect` says what it is")
    everything = components(models)
    if "unet" in everything:
        width = getattr(everything["unet"].config, "cross_attention_dim", None)
        if isinstance(width, int):
            require_family(loaded, width, str(path))
    layers = {kohya: ours for ours, names in _names(everything).items() for kohya in names}
    tensors: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    unknown = []
    for key, value in loaded.items():
        kohya, _, part = key.partition(".")
        if kohya not in layers or part not in (*PARTS, "alpha"):
            unknown.append(key)
        elif part == "alpha":
            alphas[layers[kohya]] = float(value)
        else:
            tensors[f"{layers[kohya]}.{PARTS[part]}"] = value
    if unknown:
        shown = ", ".join(sorted(unknown)[:5]) + (", ..." if len(unknown) > 5 else "")
        raise IdgenError(f"{path}: {len(unknown)} keys fit no layer of {', '.join(everything)}: {shown}")
    config = _config(tensors, alphas, everything)
    chosen = {component: everything[component] for component in config.modules}
    install(chosen, config, dict(_reshaped(tensors, chosen, config)), name, str(path))
    return config


def _config(
    tensors: Mapping[str, Tensor], alphas: Mapping[str, float], models: Mapping[str, nn.Module]
) -> FinetuneConfig:
    down = ".lora_A.weight"
    ranks = {key.removesuffix(down): len(value) for key, value in tensors.items() if key.endswith(down)}
    if not ranks:
        raise IdgenError("the LoRA has no lora_down weights: it is damaged")
    known = {layer: alphas.get(layer, float(rank)) for layer, rank in ranks.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(known.values()).most_common(1)[0][0]
    layers: dict[str, list[str]] = {}
    for layer in ranks:
        component, _, rest = layer.partition(".")
        layers.setdefault(component, []).append(rest)
    ordered = {component: layers[component] for component in models if component in layers}
    return FinetuneConfig(
        kind="dora" if any("lora_magnitude_vector" in key for key in tensors) else "lora",
        rank=rank,
        alpha=alpha,
        targets=tuple(name_targets({component: models[component] for component in ordered}, ordered)),
        modules=tuple(ordered),
        ranks={layer: value for layer, value in ranks.items() if value != rank},
        alphas={layer: value for layer, value in known.items() if value != alpha},
    )


def _reshaped(
    tensors: Mapping[str, Tensor], models: Mapping[str, nn.Module], config: FinetuneConfig
) -> Iterator[tuple[str, Tensor]]:
    """Linear layers may be stored as 1 x 1 convolutions and the other way round, magnitudes with or without axes of 1."""
    layers = {
        f"{component}.{place.name}": place.layer for component, model in models.items() for place in places(model)
    }
    for key, value in tensors.items():
        layer, ours = next((key.removesuffix(f".{ours}"), ours) for ours in PARTS.values() if key.endswith(f".{ours}"))
        linear = isinstance(layers[layer], nn.Linear)
        if ours == "lora_magnitude_vector.weight":
            value = value.flatten() if linear else value.reshape(1, -1, 1, 1)
        elif linear and value.shape[2:] == (1, 1):
            value = value[..., 0, 0]
        elif not linear and value.ndim == 2:
            value = value[..., None, None]
        yield key, value


def _names(models: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """`component.layer` -> its names in kohya's files, the one that is written first."""
    sdxl = _is_sdxl(models)
    found = {}
    for component, model in models.items():
        for place in places(model):
            ours = f"{component}.{place.name}"
            plain = published(ours).removeprefix(f"{component}.").replace(".", "_")
            if component == "unet":
                names = [f"lora_unet_{plain}"]
                if sdxl:
                    names.insert(0, f"lora_unet_{_sgm(place.name, model).replace('.', '_')}")
            elif component == "text_encoder_2":
                names = [f"lora_te2_{plain}"]
            else:
                names = [f"lora_te1_{plain}", f"lora_te_{plain}"][:: 1 if sdxl else -1]
            found[ours] = names
    return found


def _is_sdxl(models: Mapping[str, Any]) -> bool:
    unet = models.get("unet")
    return (
        "text_encoder_2" in models or getattr(getattr(unet, "config", None), "addition_embed_type", None) == "text_time"
    )


def _sgm(name: str, unet: Any) -> str:
    """diffusers' name of a layer -> sgm's, where every residual block, resampling included, has a number of its own."""
    if name in SGM_TOP:
        return SGM_TOP[name]
    each = int(unet.config.layers_per_block)
    part, *rest = name.split(".")
    if part == "mid_block":
        kind, number, *rest = rest
        block = f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}"
    else:
        level, kind, number, *rest = rest
        if part == "down_blocks":
            place = 1 + int(level) * (each + 1) + (each if kind == "downsamplers" else int(number))
            block = f"input_blocks.{place}.{1 if kind == 'attentions' else 0}"
        else:
            place = int(level) * (each + 1) + (each if kind == "upsamplers" else int(number))
            behind = 2 if getattr(unet.up_blocks[int(level)], "has_cross_attention", False) else 1
            block = f"output_blocks.{place}.{ {'resnets': 0, 'attentions': 1}.get(kind, behind) }"
    inner = ".".join(rest)
    if kind == "resnets":
        inner = RESNET.get(inner, inner)
    elif kind == "downsamplers":
        inner = "op"
    return f"{block}.{inner}"
