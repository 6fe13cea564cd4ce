"""Where a PVA model comes from: the mini family, the authors' layout beside an inpainting model, or a saved pipeline."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn

from idgen.adapters.pva.adapter import PVAAdapter, own_attention
from idgen.adapters.pva.prompt import PLACEHOLDER
from idgen.adapters.wplus.sources import find_base, load_base
from idgen.checkpoint import load_strict, load_weights
from idgen.errors import IdgenError
from idgen.headers import ADAPTER as FORMAT
from idgen.headers import read_header
from idgen.hub import fetch_folder, is_hub_id
from idgen.models.iresnet import from_state, load_iresnet
from idgen.models.published import part
from idgen.weights import find_mini

DEFAULT_BASE = "stabilityai/stable-diffusion-2-inpainting"  # as in the authors' config.json
ADAPTERS = ("FPIP.bin", "FPIP.safetensors")
RECOGNISERS = ("ms1mv3_arcface_r50.pth", "ms1mv3_arcface_r50.safetensors", "backbone.pth")
SAVED = "pva"  # folder of a saved pipeline, and the files in it
ADAPTER, RECOGNISER = "adapter.safetensors", "recogniser.safetensors"


@dataclass(frozen=True)
class Source:
    """The files that make up a model.

    Attributes:
        adapter: PVA's weights.
        recogniser: of the face recogniser's weights, or None where they are not at hand, or in the adapter's file.
        base: a diffusers folder.
        unet: the inpainting UNet's folder.
        placeholder: the word that stands for the person in a prompt; None where the saved pipeline says it.
        published: whether it is the authors' layout.
    """

    adapter: Path
    recogniser: Path | None
    base: Path
    unet: Path
    placeholder: str | None = PLACEHOLDER
    published: bool = True


def locate(
    name: str | os.PathLike[str], base: str | os.PathLike[str] | None = None, options: Mapping[str, Any] | None = None
) -> Source:
    """Find every file of a model; what is on the hub is fetched into its cache.

    Args:
        name: `"mini"`; a folder with `FPIP.bin` and `config.json`, or the file alone; a hub id; a saved pipeline, or what
            train/inpaint.py writes (`pva/`, and `unet/` where that was trained too).
        base: hub id or folder of the inpainting model; default: the one that config.json names, or the folder itself.
        options: `variant`, and for the hub `revision` (of `name`), `cache_dir`, `token`, `local_files_only`, `force_download`.
    Raises:
        IdgenError: something is not there.
    """
    options = options or {}
    path = find_mini("inpaint") if name == "mini" else Path(name).expanduser()
    if name == "mini" and base is None:
        base = path.parent
    if not path.exists():
        if not is_hub_id(str(name)):
            raise IdgenError(f"no such folder: {path} (a PVA model is 'mini', a folder with FPIP.bin, or a hub id)")
        files = [*ADAPTERS, *RECOGNISERS, "config.json", f"{SAVED}/*", "unet/*"]
        path = fetch_folder(str(name), files, options.get("revision"), options)
    if (path / SAVED / ADAPTER).is_file():
        own = path if base is None else find_base(base, options)
        unet = path / "unet" if (path / "unet").is_dir() else own / "unet"
        word = PLACEHOLDER if own != path else None
        return Source(path / SAVED / ADAPTER, _first(path / SAVED, (RECOGNISER,)), own, unet, word, published=False)
    folder = path if path.is_dir() else path.parent
    adapter = _first(path, ADAPTERS) if path.is_dir() else path
    if adapter is None:
        raise IdgenError(
            f"{path} holds no {ADAPTERS[0]}: name the folder that PVA's training wrote, or a saved pipeline"
        )
    config = _config(folder)
    known = config.get("pretrained_model_name_or_path", DEFAULT_BASE)
    found = find_base(base if base is not None else known, options)
    word = config.get("modifier_token", {}).get("name", PLACEHOLDER)
    return Source(adapter, _first(folder, RECOGNISERS), found, found / "unet", word)


def load_parts(source: Source, options: Mapping[str, Any]) -> dict[str, Any]:
    """UNet, text encoder and autoencoder, strictly; not those that `options` brings. See `wplus.sources.load_base`."""
    others = load_base(source.base, {"unet": None, **options})
    return others | load_base(source.unet.parent, {"text_encoder": None, "vae": None, **options})


def load_adapter(path: Path, unet: UNet2DConditionModel) -> PVAAdapter:
    """A published or saved file. A published one's text attention (CrossQKV), where it has one, goes into the UNet to stay."""
    if read_header(path).get("format") == FORMAT:
        return PVAAdapter.from_pretrained(path, unet)
    adapter = PVAAdapter.from_pretrained(path, unet, own_attention_too=True)
    own = own_attention(load_weights(path))
    if own:
        wanted = {key: value for key, value in unet.state_dict().items() if ".attn2." in key}
        missing = sorted(wanted.keys() - own.keys())
        wrong = sorted(key for key in own if key not in wanted or own[key].shape != wanted[key].shape)
        if missing or wrong:
            raise IdgenError(
                f"{path}: the UNet's own text attention does not fit: {len(missing)} weights missing, {len(wrong)} unknown or"
                f" misshapen, such as {[*missing, *wrong][0]}"
            )
        unet.load_state_dict(own, strict=False)
    return adapter


def load_recogniser(adapter: Path, recogniser: nn.Module | str | os.PathLike[str] | None) -> nn.Module | None:
    """The recogniser of a model: as tuned with the adapter ('face_net' in its file), else the one given, else None.

    Args:
        adapter: a published or saved file.
        recogniser: a file of arcface_torch's IResNet, or a network, into which tuned weights are put.
    """
    what = f"the face recogniser in {adapter}"
    tuned = {key.removeprefix("facenet."): value for key, value in part(load_weights(adapter), "face_net.").items()}
    if isinstance(recogniser, nn.Module):
        if tuned:
            load_strict(recogniser, tuned, what)
        return recogniser
    if tuned:
        return from_state(tuned, what)
    return None if recogniser is None else load_iresnet(recogniser)


def _config(folder: Path) -> dict[str, Any]:
    """config.json beside FPIP.bin, or nothing: all that is read from it has a default."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IdgenError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("modifier_token", {}), dict):
        raise IdgenError(f"{path} is not the settings of a PVA training")
    return config


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)
