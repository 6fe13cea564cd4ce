"""Published Arc2Face weights (and the Stable Diffusion autoencoder they need) -> library modules, strictly.

A model's folder holds config.json and its weights as safetensors (one file, or shards with their index) or as the
authors' pickle. The finetuned UNet has diffusers' own keys. The text encoder was saved by transformers 4, whose keys
begin with `text_model.`, and may hold the constant buffer `position_ids`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from idgen.checkpoint import load_strict, load_weights
from idgen.errors import IdgenError

Module = TypeVar("Module", bound=torch.nn.Module)

MODEL_FILE = "diffusion_pytorch_model"  # diffusers' name
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_ATTENTION_KEY = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")
ENCODER_FILES = ("model", "pytorch_model")  # transformers' names for safetensors and for pickles
OLD_ENCODER_PREFIX = "text_model."
OLD_ENCODER_BUFFERS = ("embeddings.position_ids",)


def load_unet(folder: Path, *, dtype: torch.dtype = torch.float32, variant: str | None = None) -> UNet2DConditionModel:
    """The finetuned UNet (`arc2face/` of the published repository, `unet/` of a saved pipeline), in eval mode.

    Raises:
        IdgenError: a missing or broken file, a key that is missing, unknown or of another shape.
    """
    config = read_config(folder)
    state = read_weights(folder, [MODEL_FILE], variant)
    with init_empty_weights(include_buffers=False):  # no time lost on random values for 860 M parameters
        unet = UNet2DConditionModel.from_config(config)
    return _fill(unet, state, dtype, f"the UNet in {folder}")


def load_encoder(folder: Path, *, dtype: torch.dtype = torch.float32, variant: str | None = None) -> CLIPTextModel:
    """The finetuned text encoder (`encoder/` of the published repository, `text_encoder/` of a saved pipeline).

    Raises:
        IdgenError: as `load_unet`.
    """
    config = read_config(folder)
    state = modern_encoder_keys(read_weights(folder, ENCODER_FILES, variant))
    with init_empty_weights(include_buffers=False):
        encoder = CLIPTextModel(CLIPTextConfig.from_dict(config))
    return _fill(encoder, state, dtype, f"the text encoder in {folder}")


def load_vae(folder: Path, *, dtype: torch.dtype = torch.float32, variant: str | None = None) -> ModelMixin:
    """The autoencoder of a Stable Diffusion folder; as `load_model`."""
    return load_model(folder, "autoencoder", dtype=dtype, variant=variant)


def load_model(
    folder: Path, what: str, *, dtype: torch.dtype = torch.float32, variant: str | None = None
) -> ModelMixin:
    """A model of the diffusers class that the folder's config names, in eval mode.

    Args:
        what: "autoencoder", for messages.

    Raises:
        IdgenError: as `load_unet`, or a class that diffusers does not have.
    """
    config = read_config(folder)
    kind: Any = getattr(diffusers, str(config.get("_class_name")), None)
    known = isinstance(kind, type) and issubclass(kind, ModelMixin)
    if not known:
        raise IdgenError(f"{folder / 'config.json'} names no {what} of diffusers: {config.get('_class_name')!r}")
    state = modern_attention_keys(read_weights(folder, [MODEL_FILE], variant))
    with init_empty_weights(include_buffers=False):
        model = kind.from_config(config)
    return _fill(model, state, dtype, f"the {what} in {folder}")


def modern_attention_keys(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stable Diffusion 1.5's autoencoder was published with the attention's old names."""

    def modern(key: str) -> str:
        return OLD_ATTENTION_KEY.sub(lambda match: f"{match[1]}.{OLD_ATTENTION[match[2]]}.", key)

    return {modern(key): value for key, value in state.items()}


def modern_encoder_keys(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Old `text_model.*` keys -> those of transformers 5; new keys pass through, constant buffers are dropped."""
    renamed: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        new = key.removeprefix(OLD_ENCODER_PREFIX)
        if new in renamed:
            raise IdgenError(f"the text encoder's weights hold {new!r} twice, with and without {OLD_ENCODER_PREFIX!r}")
        if new not in OLD_ENCODER_BUFFERS:
            renamed[new] = value
    return renamed


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON object beside the weights: config.json, model_index.json."""
    path = folder / name
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise IdgenError(f"cannot read {path}: {error.strerror}; the folder is not complete, fetch it again") from error
    except ValueError as error:
        raise IdgenError(f"{path} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(config, dict):
        raise IdgenError(f"{path} holds a {type(config).__name__}, expected a JSON object; fetch it again")
    return config


def read_weights(folder: Path, stems: Sequence[str], variant: str | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a model's folder, by their keys in the files; safetensors are preferred to pickles."""
    dot = f".{variant}" if variant else ""
    for stem in stems:
        index = folder / f"{stem}.safetensors.index{dot}.json"
        if index.is_file():
            return load_weights(index)
        if (folder / f"{stem}{dot}.safetensors").is_file():
            return load_weights(folder / f"{stem}{dot}.safetensors")
    for stem in stems:
        if (folder / f"{stem}{dot}.bin").is_file():
            return load_weights(folder / f"{stem}{dot}.bin")
    what = f"weights of the variant {variant!r}" if variant else "weights"
    raise IdgenError(f"no {what} in {folder}: expected {' or '.join(f'{stem}{dot}.safetensors' for stem in stems)}")


def _fill(module: Module, state: dict[str, torch.Tensor], dtype: torch.dtype, what: str) -> Module:
    """Give a module without values (parameters on the meta device) its weights, in `dtype`."""
    module._apply(lambda t: torch.empty_like(t, device="cpu", dtype=dtype) if t.is_meta else t)
    load_strict(module, state, what)
    return module.eval()
