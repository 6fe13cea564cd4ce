"""What FaceID-Plus reads of a face beside its embedding: CLIP's features."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPVisionModelWithProjection


@torch.no_grad()
def clip_features(image_encoder: CLIPVisionModelWithProjection, pixels: Tensor) -> Tensor:
    """(people + 1, patches, clip_dim): row 0 is a picture of zeros, with which guidance compares; then each face.

    Args:
        pixels: (people, 3, size, size) each person's aligned face as the CLIP image processor gives it.
    """
    pixels = torch.cat([torch.zeros_like(pixels[:1]), pixels]).to(image_encoder.dtype).to(image_encoder.device)
    return image_encoder(pixels, output_hidden_states=True).hidden_states[-2]
