"""Latents and embeddings of a whole folder, computed once and kept beside it under the hash of the weights that made them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from idgen.checkpoint import sha256
from idgen.console import progress
from idgen.data.faces import CACHE, FaceFolder
from idgen.faces.align_torch import norm_crop_torch
from idgen.files import atomic_write


def encode_latents(data: FaceFolder, vae: nn.Module, weights: Path, device: torch.device) -> np.ndarray:
    """Scaled latents (n, channels, h, w) float16 of every photo; `weights` is the file that `vae` was loaded from."""
    scale = vae.config.scaling_factor  # type: ignore[union-attr]

    def encode(images: Tensor, _: Tensor) -> Tensor:
        return vae.encode(images).latents * scale  # type: ignore[operator]

    return _encode(data, f"latents-{sha256(weights)[:12]}", encode, device)


def encode_identities(data: FaceFolder, recogniser: nn.Module, weights: Path, device: torch.device) -> np.ndarray:
    """Raw embeddings (n, dim) float16 of every photo, aligned by its true landmarks."""

    def encode(images: Tensor, landmarks: Tensor) -> Tensor:
        return recogniser(norm_crop_torch(images, landmarks))

    return _encode(data, f"embeddings-{sha256(weights)[:12]}", encode, device)


@torch.no_grad()
def _encode(
    data: FaceFolder, name: str, encode: Callable[[Tensor, Tensor], Tensor], device: torch.device
) -> np.ndarray:
    path = data.folder / CACHE / f"{name}.npy"
    if path.exists():
        stored = np.load(path, mmap_mode="r")
        if len(stored) == len(data):
            return stored
    parts = []
    starts = range(0, len(data), 128)
    for start in progress(starts, len(starts), name.split("-")[0]):
        images = torch.from_numpy(data.images[start : start + 128]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        landmarks = torch.from_numpy(data.landmarks[start : start + 128]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            parts.append(encode(images, landmarks).float().half().cpu().numpy())
    result = np.concatenate(parts)
    with atomic_write(path) as temporary, temporary.open("wb") as handle:
        np.save(handle, result)
    return result
