"""References' photos -> latents."""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import VQModel
from torch import Tensor

from idgen.errors import IdgenError

Encoding = Literal["panorama", "independent"]
ENCODINGS: tuple[Encoding, ...] = ("panorama", "independent")


def encode_references(vq: VQModel, images: Tensor, mode: Encoding = "panorama") -> Tensor:
    """Latents of several people's references, not quantised: (people, references, channels, h, w).

    The authors lay a person's references side by side and encode them as one wide picture, in which neighbours share group
    statistics, borders and the encoder's attention: what the published weights were trained with, but the latents of a
    photo then depend on the others. `"independent"` encodes each photo by itself, so that they can be kept and combined.

    Args:
        images: (people, references, 3, height, width) in [-1, 1].

    Raises:
        IdgenError: another shape or mode.
    """
    if mode not in ENCODINGS:
        raise IdgenError(f"references are encoded as {' or '.join(ENCODINGS)}, not {mode!r}")
    if images.ndim != 5 or 0 in images.shape:
        raise IdgenError(
            f"references have the shape {list(images.shape)}, expected (people, references, 3, height, width)"
        )
    people, references = images.shape[:2]
    if mode == "independent":
        return vq.encode(images.flatten(0, 1)).latents.unflatten(0, (people, references))
    panorama = images.permute(0, 2, 3, 1, 4).flatten(3)  # (people, 3, height, references * width)
    return split_panorama(vq.encode(panorama).latents, references)


def split_panorama(latents: Tensor, references: int) -> Tensor:
    """(people, channels, h, references * w) -> (people, references, channels, h, w).

    Raises:
        IdgenError: the width is not a multiple of `references`.
    """
    if latents.shape[-1] % references:
        raise IdgenError(f"a panorama {latents.shape[-1]} wide does not hold {references} references of one width")
    return torch.stack(latents.chunk(references, -1), 1)
