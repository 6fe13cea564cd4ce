"""Where a restoration model comes from: the mini family, the authors' files, or a pipeline that was saved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idgen.errors import IdgenError
from idgen.hub import fetch_folder, is_hub_id
from idgen.weights import find_mini

PUBLISHED, AUTOENCODER = ("refldm.ckpt", "refldm.safetensors"), ("vqgan.ckpt", "vqgan.safetensors")
FILES = ("model_index.json", "unet/*", "vq/*", "scheduler/*", *PUBLISHED, *AUTOENCODER)


@dataclass(frozen=True)
class Source:
    """What to load.

    Attributes:
        checkpoint: the authors' refldm.ckpt; None for a saved pipeline.
        vqgan: their vqgan.ckpt, where it lies beside it.
        folder: of the pipeline; None for the authors' files.
        vq: of a pipeline's autoencoder.
    """

    checkpoint: Path | None = None
    vqgan: Path | None = None
    folder: Path | None = None
    vq: Path | None = None


def locate(name: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Source:
    """Find a model; what is on the hub is fetched into its cache.

    Args:
        name: `"mini"`, refldm.ckpt, a folder that holds it, a saved pipeline, or a hub id.
        options: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download` for the hub.

    Raises:
        IdgenError: not there, or not a model of this kind.
    """
    options = options or {}
    if name == "mini":
        folder = find_mini("restore")
        return Source(folder=folder, vq=folder / "vq" if (folder / "vq").is_dir() else find_mini("vae"))
    path = Path(name).expanduser()
    if path.is_file():
        return Source(checkpoint=path, vqgan=_first(path.parent, AUTOENCODER))
    if not path.is_dir():
        if not is_hub_id(str(name)):
            raise IdgenError(
                f"no such file or folder: {path} (a model is 'mini', refldm.ckpt, its folder, a saved pipeline or a hub id)"
            )
        path = fetch_folder(str(name), FILES, options.get("revision"), options)
    checkpoint = _first(path, PUBLISHED)
    if checkpoint is not None:
        return Source(checkpoint=checkpoint, vqgan=_first(path, AUTOENCODER))
    if not (path / "model_index.json").is_file():
        raise IdgenError(
            f"{path} holds no restoration model: expected refldm.ckpt (github.com/ChiWeiHsiao/ref-ldm), or a pipeline saved"
            " by ReferenceRestorePipeline.save_pretrained"
        )
    return Source(folder=path, vq=path / "vq")


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)
