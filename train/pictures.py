"""Between uint8 arrays, tensors in [-1, 1] and grids to look at."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_float(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (batch, h, w, 3) -> float (batch, 3, h, w) in [-1, 1], channels last in memory."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """(batch, 3, h, w) in [-1, 1] -> uint8 (batch, h, w, 3) on the CPU."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu()


def to_pil(images: Tensor) -> list[Image.Image]:
    """(batch, 3, h, w) in [-1, 1] -> pictures."""
    return [Image.fromarray(picture) for picture in to_bytes(images).numpy()]


def grid(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Equal pictures row by row."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet
