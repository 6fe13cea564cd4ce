"""Where a W+ model comes from: the authors' files beside a Stable Diffusion 1.5 model, or a saved pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from idgen.adapters.arc2face.convert import load_encoder, load_unet, load_vae
from idgen.errors import IdgenError
from idgen.hub import fetch_folder, is_hub_id

DEFAULT_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
BASE_FILES = (
    "model_index.json",
    "*/*config.json",
    "tokenizer/*",
    "*/diffusion_pytorch_model{}.safetensors",
    "text_encoder/model{}.safetensors",
)
PUBLISHED = "release v1 of github.com/csxmli2016/w-plus-adapter"
ADAPTERS = ("wplus_adapter.bin", "wplus_adapter.safetensors")
ENCODERS = ("e4e_ffhq_encode.pt", "e4e_ffhq_encode.safetensors")
SAVED = "wplus"  # folder of a saved pipeline, and the files in it
ADAPTER, ENCODER = "adapter.safetensors", "e4e.safetensors"


@dataclass(frozen=True)
class Source:
    """The files that make up a model.

    Attributes:
        adapter: the W+ Adapter's.
        e4e: the encoder's, or None where it is not at hand: codes must then be given.
        base: a diffusers folder of Stable Diffusion 1.5.
        saved: whether `base` is a pipeline that idgen saved.
    """

    adapter: Path
    e4e: Path | None
    base: Path
    saved: bool


def locate(
    name: str | os.PathLike[str], base: str | os.PathLike[str] | None = None, options: Mapping[str, Any] | None = None
) -> Source:
    """Find every file of a model; what is on the hub is fetched into its cache.

    Args:
        name: a folder with `wplus_adapter.bin` and, if faces are to be encoded, `e4e_ffhq_encode.pt`; the adapter's file, such as
            `wplus_adapter_stage1.bin`, beside which the encoder is looked for; a hub id; a saved pipeline.
        base: hub id or folder of the Stable Diffusion 1.5 model.
        options: `variant`, and for the hub `revision` (of `name`), `cache_dir`, `token`, `local_files_only`, `force_download`.
    Raises:
        IdgenError: something is not there.
    """
    options = options or {}
    path = Path(name).expanduser()
    if not path.exists():
        if not is_hub_id(str(name)):
            raise IdgenError(
                f"no such folder: {path} (fetch wplus_adapter.bin and e4e_ffhq_encode.pt from {PUBLISHED})"
            )
        path = fetch_folder(str(name), ADAPTERS + ENCODERS, options.get("revision"), options)
    if (path / SAVED / ADAPTER).is_file():
        encoder = path / SAVED / ENCODER
        own = path if base is None else find_base(base, options)
        return Source(path / SAVED / ADAPTER, encoder if encoder.is_file() else None, own, saved=base is None)
    folder = path if path.is_dir() else path.parent
    adapter = _first(path, ADAPTERS) if path.is_dir() else path
    if adapter is None:
        raise IdgenError(f"{path} holds no {ADAPTERS[0]}: fetch it from {PUBLISHED}, or name a saved WPlusPipeline")
    return Source(adapter, _first(folder, ENCODERS), find_base(base or DEFAULT_BASE, options), saved=False)


def find_base(name: str | os.PathLike[str], options: Mapping[str, Any]) -> Path:
    """A Stable Diffusion folder as it is, or a hub repository's snapshot with one set of weights."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(str(name)):
        raise IdgenError(f"no such folder: {folder} (base= is a diffusers folder or a hub id such as {DEFAULT_BASE})")
    dot = f".{options['variant']}" if options.get("variant") else ""
    return fetch_folder(str(name), [pattern.format(dot) for pattern in BASE_FILES], None, options)


def load_base(folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """A Stable Diffusion folder's UNet, text encoder and autoencoder, strictly; not those that `options` brings.

    Args:
        options: diffusers' `dtype` (older: `torch_dtype`), one for all or a dict by component, and `variant`.
    Raises:
        IdgenError: a missing or broken file, a key that is missing, unknown or of another shape.
    """
    dtype: Any = options.get("dtype") or options.get("torch_dtype") or torch.float32
    dtypes = dtype if isinstance(dtype, dict) else {"default": dtype}
    loaders: dict[str, Any] = {"unet": load_unet, "text_encoder": load_encoder, "vae": load_vae}
    made = {}
    for name, load in loaders.items():
        if name not in options:
            own = dtypes.get(name, dtypes.get("default", torch.float32))
            made[name] = load(folder / name, dtype=own, variant=options.get("variant"))
    return made


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)
