"""Where a FaceChain-FACT model comes from: the authors' files, or a saved pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idgen.errors import IdgenError
from idgen.hub import fetch_folder, is_hub_id

DEFAULT_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SAVED = "fact"  # folder of a saved pipeline
ADAPTER, TRANSFACE = "adapter.safetensors", "transface.safetensors"  # in it
PUBLISHED = "ModelScope's yucheng1996/FaceChain-FACT"


@dataclass(frozen=True)
class Source:
    """The files that make up a model.

    Attributes:
        adapter: of the gates and the resampler.
        transface: of the recogniser, or None where it is not at hand: patch features must then be given.
        base: a diffusers folder of Stable Diffusion 1.5.
    """

    adapter: Path
    transface: Path | None
    base: Path


def locate(
    name: str | os.PathLike[str],
    base: str | os.PathLike[str] | None = None,
    adapter: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Source:
    """Find every file of a model; a base on the hub is fetched into its cache.

    Args:
        name: a folder with `adapter_*.ckpt` and `*TransFace*.pt` as the authors published them, or a saved pipeline.
        base: hub id or folder of the Stable Diffusion 1.5 model; default: the folder itself if it holds one, else the original.
        adapter: which `adapter_*.ckpt`, by a part of its name such as `"maj"`, where there are several.
        options: `variant`, and for the hub `cache_dir`, `token`, `local_files_only`, `force_download`.
    Raises:
        IdgenError: something is not there, or it is not clear which adapter is meant.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise IdgenError(f"no such folder: {folder}; FaceChain-FACT's files are {PUBLISHED}, or a saved pipeline")
    if (folder / SAVED / ADAPTER).is_file():
        transface = folder / SAVED / TRANSFACE
        own = find_base(base, options) if base is not None else folder
        return Source(folder / SAVED / ADAPTER, transface if transface.is_file() else None, own)
    found = sorted(file for file in folder.glob("adapter_*.ckpt") if adapter is None or adapter in file.name)
    if len(found) != 1:
        names = ", ".join(file.name for file in sorted(folder.glob("adapter_*.ckpt"))) or "none"
        raise IdgenError(
            f"{folder} must hold one FaceChain-FACT adapter, and has {names}: name one of them by adapter='maj',"
            f" or fetch {PUBLISHED}"
        )
    if base is None and (folder / "model_index.json").is_file():
        base = folder
    transfaces = sorted(folder.glob("*TransFace*.pt"))
    return Source(found[0], transfaces[0] if transfaces else None, find_base(base or DEFAULT_BASE, options))


def find_base(name: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Path:
    """A Stable Diffusion folder as it is, or a hub repository's snapshot with one set of weights.

    Raises:
        IdgenError: not there.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not is_hub_id(str(name)):
        raise IdgenError(f"no such folder: {folder} (a base is a diffusers folder or a hub id such as {DEFAULT_BASE})")
    options = options or {}
    dot = f".{options['variant']}" if options.get("variant") else ""
    weights = [f"*/{stem}{dot}.safetensors" for stem in ("diffusion_pytorch_model", "model")]
    files = ["model_index.json", "*/*config.json", "tokenizer/*", *weights]
    return fetch_folder(str(name), files, None, options)
