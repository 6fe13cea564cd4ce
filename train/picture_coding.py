"""Autoencoders of any family, for trainings: photos to latents once, latents to pictures with gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from idgen.data.encoded import encode_latents
from idgen.data.faces import FaceFolder
from idgen.errors import IdgenError
from idgen.models.tiny_decoder import load_tiny_decoder
from idgen.rewards.views import Decoder, vae_decoder
from idgen.train.pictures import to_float


def load_tiny(source: str, device: torch.device) -> Decoder:
    """A small decoder: a folder of train/tiny_decoder.py, or an AutoencoderTiny by folder or hub id (madebyollin/taesd)."""
    config = Path(source) / "config.json"
    try:
        if config.is_file() and json.loads(config.read_text()).get("architecture") == "tiny_decoder":
            small: Any = load_tiny_decoder(Path(source))
            return small.to(device, memory_format=torch.channels_last)
        vae: Any = AutoencoderTiny.from_pretrained(source, torch_dtype=torch.float32)
        vae.to(device, memory_format=torch.channels_last)
    except (OSError, ValueError, NotImplementedError) as error:  # weights of another class stay on meta
        reason = " ".join(str(error).split())[:200]
        raise IdgenError(f"cannot load the small decoder {source}: {reason}") from error
    return vae_decoder(vae.requires_grad_(False))


def encode_photos(data: FaceFolder, vae: Any, weights: Path, device: torch.device) -> np.ndarray:
    """`encode_latents` by any autoencoder of diffusers."""
    coder = vae if isinstance(vae, AutoencoderTiny) else _Mode(vae)
    return encode_latents(data, coder, weights, device)


def picture_encoder(vae: Any, device: torch.device) -> Callable[[np.ndarray], Tensor]:
    """uint8 (n, h, w, 3) -> scaled latents (n, channels, h / f, w / f) float32 on the CPU, by any autoencoder of diffusers."""
    coder = vae if isinstance(vae, AutoencoderTiny) else _Mode(vae)

    @torch.no_grad()
    def encode(images: np.ndarray) -> Tensor:
        latents = coder.encode(to_float(images, device)).latents - (vae.config.get("shift_factor") or 0)
        return (latents * vae.config.scaling_factor).float().cpu()

    return encode


class _Mode(torch.nn.Module):
    """A variational autoencoder that encodes as AutoencoderTiny does."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae, self.config = vae, vae.config

    def encode(self, images: Tensor) -> Any:
        return SimpleNamespace(latents=self.vae.encode(images).latent_dist.mode())
