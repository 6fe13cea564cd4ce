"""`degradation.degrade` for a batch of tensors, on any device: the same damage within the rounding of its JPEG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from idgen.data.degradation import Damage
from idgen.data.jpeg import CHROMA_BLOCK, jpeg
from idgen.data.resampling import resize
from idgen.errors import IdgenError


@torch.no_grad()
def degrade_batch(images: Tensor, damages: Sequence[Damage]) -> Tensor:
    """Damaged pictures.

    Args:
        images: (batch, 3, height, width) RGB in [-1, 1].
        damages: one for each, drawn for this size.

    Returns:
        Like `images`.

    Raises:
        IdgenError: there are not as many damages as pictures, or the pictures are smaller than the blur.
    """
    if len(damages) != len(images):
        raise IdgenError(f"{len(damages)} damages for {len(images)} pictures: draw one for each")
    reach = max(damage.kernel.shape[0] for damage in damages) // 2
    if min(images.shape[2:]) <= reach:
        raise IdgenError(f"pictures of {images.shape[3]} x {images.shape[2]} px are too small for a blur of {reach} px")
    with torch.autocast(images.device.type, enabled=False):  # a level of 255 is less than what bf16 tells apart
        return _degrade(images, damages)


def _degrade(images: Tensor, damages: Sequence[Damage]) -> Tensor:
    small, sizes = shrink_batch(images, damages)
    quality = torch.tensor([damage.quality for damage in damages], device=images.device)
    full = (images.shape[2], images.shape[3])
    large = resize(jpeg(small, sizes, quality), sizes, torch.tensor(full, device=images.device).expand_as(sizes), full)
    return ((large * 255).round().clamp(0, 255) / 127.5 - 1).to(images.dtype)


def shrink_batch(images: Tensor, damages: Sequence[Damage]) -> tuple[Tensor, Tensor]:
    """Blurred, shrunken and noisy: float32 RGB in [0, 1] in the top left corners of (batch, 3, h, w), and sizes (batch, 2)."""
    device, (height, width) = images.device, images.shape[2:]
    kernels = torch.from_numpy(np.stack([damage.kernel for damage in damages])).to(device, torch.float32)
    sizes = torch.tensor([damage.size for damage in damages], device=device)
    rows, columns = (-(-int(sizes[:, axis].max()) // CHROMA_BLOCK) * CHROMA_BLOCK for axis in (0, 1))
    full = torch.tensor((height, width), device=device).expand_as(sizes)
    blurred = blur((images.float() + 1) / 2, kernels)
    small = resize(blurred, full, sizes, (rows, columns))
    noise = torch.zeros(len(damages), rows, columns, 3)
    for row, damage in zip(noise, damages, strict=True):
        row[: damage.size[0], : damage.size[1]] = torch.from_numpy(damage.noise[..., ::-1].copy())
    return (small + noise.permute(0, 3, 1, 2).to(device)).clamp(0, 1), sizes


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Each picture (batch, c, h, w) with its own symmetric kernel (batch, size, size), reflected at the borders."""
    radius = kernels.shape[-1] // 2
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    size = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels, s=size)[:, None]
    # The kernel's first pixel, not its centre, is the transform's origin: the result lies two radii further on.
    return torch.fft.irfft2(spectrum, s=size)[..., 2 * radius :, 2 * radius :]
