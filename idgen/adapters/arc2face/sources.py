"""Where an Arc2Face model comes from: the mini family, a hub repository, or a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idgen.adapters.arc2face.config import Arc2FaceConfig
from idgen.adapters.arc2face.convert import read_config
from idgen.errors import IdgenError
from idgen.hub import fetch_folder, is_hub_id
from idgen.weights import find_mini

DEFAULT_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
PIPELINE_CLASS = "Arc2FacePipeline"

MODEL_FILES = ("*.json", "arc2face/*", "encoder/*", "unet/*", "text_encoder/*", "vae/*", "tokenizer/*", "scheduler/*")
BASE_FILES = ("model_index.json", "vae/*.json", "vae/*.safetensors", "tokenizer/*", "scheduler/*")


@dataclass(frozen=True)
class Source:
    """The folders that make up a model.

    Attributes:
        unet: the finetuned UNet's.
        encoder: the finetuned text encoder's.
        base: a diffusers folder with the autoencoder, tokenizer and scheduler.
        recogniser: who made the embeddings the weights were trained with; None when `base` says it.
    """

    unet: Path
    encoder: Path
    base: Path
    recogniser: str | None


def locate(
    name: str | os.PathLike[str], base: str | os.PathLike[str] | None = None, options: Mapping[str, Any] | None = None
) -> Source:
    """Find every folder of a model; what is on the hub is fetched into its cache.

    Args:
        name: `"mini"`, a folder, or a hub id, which `owner/name@revision` pins.
        base: hub id or folder of Stable Diffusion for the published layout, which lacks the parts that were not finetuned.
        options: `revision` (of `name`), `cache_dir`, `token`, `local_files_only`, `force_download` for the hub.
    Raises:
        IdgenError: not there, or not a model of this kind.
    """
    options = options or {}
    if name == "mini":
        root = find_mini("arc2face").parent
    else:
        root = find_folder(name, MODEL_FILES, options, revision=options.get("revision"))
    index = root / "model_index.json"
    if index.is_file() and read_config(root, index.name).get("_class_name") == PIPELINE_CLASS:
        return Source(root / "unet", root / "text_encoder", root, None)
    if not (root / "arc2face").is_dir() or not (root / "encoder").is_dir():
        raise IdgenError(
            f"{root} is not an Arc2Face model: expected the folders arc2face/ and encoder/ as in the published repository,"
            f" or a pipeline saved by {PIPELINE_CLASS}.save_pretrained"
        )
    if base is None and index.is_file():
        base = root
    base_folder = find_folder(base or DEFAULT_BASE, BASE_FILES, options)
    return Source(root / "arc2face", root / "encoder", base_folder, _recogniser(root))


def _recogniser(root: Path) -> str:
    """Named by the encoder's config, or by the recogniser in the same family of weights; else the authors' own."""
    named = read_config(root / "encoder").get("recogniser")
    if named is None and (root / "recogniser").is_dir():
        named = read_config(root / "recogniser").get("name")
    return str(named or Arc2FaceConfig.recogniser)


def find_folder(
    name: str | os.PathLike[str], files: Sequence[str], options: Mapping[str, Any], revision: str | None = None
) -> Path:
    """A folder as it is, or a hub repository's snapshot with the files that match the patterns."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise IdgenError(f"{folder} is a file: pass the folder that holds the model")
    if not is_hub_id(str(name)):
        raise IdgenError(
            f"no such folder: {folder} (a model is 'mini', a folder, or a hub id such as FoivosPar/Arc2Face)"
        )
    return fetch_folder(str(name), files, revision, options)
