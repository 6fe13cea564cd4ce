"""Pictures -> embeddings for measuring: in batches, and with zeros where no face is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from idgen.faces import FaceEncoder

BATCH = 64
CROP = 112


def embed_faces(encoder: FaceEncoder, images: Tensor) -> Tensor:
    """The largest face of each picture as the encoder's own detector finds it.

    Args:
        images: (n, height, width, 3) uint8 RGB.

    Returns:
        (n, dim) float32 raw embeddings on the CPU; a row of zeros where no face was found.
    """
    landmarks, seen = detect_landmarks(encoder, images)
    if not seen.any():  # an encoder tells its width by what it makes, of anything
        return torch.zeros(len(images), encoder.embed_aligned(np.zeros((1, CROP, CROP, 3), np.uint8)).shape[1])
    found = embed_at(encoder, images[seen], landmarks[seen])
    embeddings = torch.zeros(len(images), found.shape[1])
    embeddings[seen] = found
    return embeddings


def detect_landmarks(encoder: FaceEncoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """The five landmarks (n, 5, 2) of the largest face in each picture, and whether there is one (n,)."""
    landmarks = torch.zeros(len(images), 5, 2)
    seen = torch.zeros(len(images), dtype=torch.bool)
    for index, pixels in enumerate(images):
        faces = encoder.detect(pixels.numpy())  # largest first
        if faces:
            landmarks[index] = torch.from_numpy(faces[0].landmarks)
            seen[index] = True
    return landmarks, seen


@torch.no_grad()
def embed_at(encoder: FaceEncoder, images: Tensor, landmarks: Tensor) -> Tensor:
    """(n, dim) float32 raw embeddings of pictures (n, height, width, 3) uint8 aligned by known landmarks (n, 5, 2)."""
    parts = [
        encoder.encode_aligned(align(pixels, points).to(encoder.device)).float().cpu()
        for pixels, points in zip(images.split(BATCH), landmarks.split(BATCH), strict=True)
    ]
    return torch.cat(parts)


def align(images: Tensor, landmarks: Tensor, size: int = CROP) -> Tensor:
    """(n, height, width, 3) uint8 and (n, 5, 2) -> ArcFace crops (n, 3, size, size) in [-1, 1]."""
    from idgen.faces import norm_crop_torch

    return norm_crop_torch(images.permute(0, 3, 1, 2).float() / 127.5 - 1.0, landmarks, size)
