"""Where an InstantID model comes from: a hub repository, the same as a folder, or a saved pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ControlNetModel

from idgen.adapters.arc2face.convert import MODEL_FILE, read_config, read_weights
from idgen.checkpoint import load_strict
from idgen.errors import IdgenError
from idgen.hub import fetch_folder, is_hub_id

PUBLISHED = "InstantX/InstantID"
DEFAULT_BASE = "stabilityai/stable-diffusion-xl-base-1.0"  # the authors show YamerMIX, a finetune of it
ADAPTERS = ("ip-adapter.bin", "ip-adapter.safetensors")  # as published, and rewritten by `idgen convert`
IDENTITYNET = "ControlNetModel"
SAVED = "instantid/adapter.safetensors"  # in a saved pipeline


@dataclass(frozen=True)
class Source:
    """The files that make up a model.

    Attributes:
        adapter: the file with the face projection and the attention's weights.
        identitynet: IdentityNet's folder; None where `base` names it among its own parts.
        base: a diffusers folder of SDXL.
    """

    adapter: Path
    identitynet: Path | None
    base: Path


def locate(
    name: str | os.PathLike[str], base: str | os.PathLike[str] | None = None, options: Mapping[str, Any] | None = None
) -> Source:
    """Find every file of a model; what is on the hub is fetched into its cache.

    Args:
        name: a hub id, which `owner/name@revision` pins, or a folder: `ip-adapter.bin` and `ControlNetModel/` as published,
            or a saved pipeline.
        base: hub id or folder of the SDXL model; default: the folder itself if it holds one, else the original.
        options: `variant` (of the base), `revision` (of `name`), and for the hub `cache_dir`, `token`, `local_files_only`,
            `force_download`.
    Raises:
        IdgenError: not there, or not a model of this kind.
    """
    options = options or {}
    folder = _find(
        name, [*ADAPTERS, f"{IDENTITYNET}/*", SAVED, "controlnet*/*", *_base_files(None)], options, "revision"
    )
    if base is None and (folder / "model_index.json").is_file():
        base = folder
    if (folder / SAVED).is_file():
        own = base == folder
        return Source(folder / SAVED, None if own else folder / "controlnet", folder if own else _base(base, options))
    adapter = next((folder / file for file in ADAPTERS if (folder / file).is_file()), None)
    if adapter is None or not (folder / IDENTITYNET).is_dir():
        raise IdgenError(
            f"{folder} is not an InstantID model: expected {ADAPTERS[0]} and {IDENTITYNET}/ as in {PUBLISHED}, or a"
            " pipeline saved by InstantIDPipeline.save_pretrained"
        )
    return Source(adapter, folder / IDENTITYNET, _base(base, options))


def load_identitynet(folder: Path, dtype: torch.dtype = torch.float32) -> ControlNetModel:
    """IdentityNet from its published folder, in eval mode.

    Raises:
        IdgenError: a missing or broken file, a key that is missing, unknown or of another shape.
    """
    config, state = read_config(folder), read_weights(folder, [MODEL_FILE])
    with init_empty_weights(include_buffers=False):  # no time lost on random values for 1.25 G parameters
        net = ControlNetModel.from_config(config)
    net._apply(lambda t: torch.empty_like(t, device="cpu", dtype=dtype) if t.is_meta else t)
    load_strict(net, state, f"IdentityNet in {folder}")
    return net.eval()


def _base(base: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> Path:
    return _find(base or DEFAULT_BASE, _base_files(options.get("variant")), options)


def _base_files(variant: str | None) -> list[str]:
    """One set of weights of an SDXL repository, which holds several."""
    dot = f".{variant}" if variant else ""
    stems = {"unet": MODEL_FILE, "vae": MODEL_FILE, "text_encoder": "model", "text_encoder_2": "model"}
    weights = [f"{part}/{stem}{middle}.safetensors" for part, stem in stems.items() for middle in (dot, f"{dot}-*")]
    return [
        "model_index.json",
        "scheduler/*",
        "tokenizer/*",
        "tokenizer_2/*",
        *(f"{part}/*.json" for part in stems),
        *weights,
    ]


def _find(
    name: str | os.PathLike[str], files: list[str], options: Mapping[str, Any], revision: str | None = None
) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise IdgenError(f"{folder} is a file: pass the folder that holds the model")
    if name == "mini":
        raise IdgenError(f"there is no mini InstantID, it needs SDXL: pass {PUBLISHED!r}, or a folder with its files")
    if not is_hub_id(str(name)):
        raise IdgenError(f"no such folder: {folder} (a model is a folder or a hub id such as {PUBLISHED})")
    return fetch_folder(str(name), files, options.get(revision) if revision else None, options)
