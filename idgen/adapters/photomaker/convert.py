"""photomaker-v2.bin -> its parts.

The file is a pickle with two dicts: `id_encoder`, which holds the CLIP tower (transformers' keys, with two output projections
that v2 does not use) beside the networks that are PhotoMaker's own, and `lora_weights` for diffusers' loader.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from idgen.adapters.photomaker.fuse import IdentityFuser, QFormerPerceiver
from idgen.checkpoint import load_strict, load_weights
from idgen.errors import IdgenError
from idgen.models.published import part

ENCODER, LORA = "id_encoder.", "lora_weights."
FUSER = ("qformer_perceiver.", "fuse_module.")
VISION = ("vision_model.", "visual_projection.", "visual_projection_2.")


@dataclass(frozen=True)
class PhotoMakerParts:
    """State dicts by what they belong to.

    Attributes:
        fuser: an `IdentityFuser`'s.
        vision: a CLIP ViT-L/14 tower's, `vision_model.*`, `visual_projection.weight` and `visual_projection_2.weight`.
        lora: for `load_lora_weights` of diffusers.
    """

    fuser: dict[str, torch.Tensor]
    vision: dict[str, torch.Tensor]
    lora: dict[str, torch.Tensor]


def read_photomaker(path: str | os.PathLike[str]) -> PhotoMakerParts:
    """Sort the tensors of photomaker-v2.bin, or of the same as flat safetensors.

    Raises:
        IdgenError: the file is missing, broken or another one: a tensor belongs to no part, or there is no v2 identity encoder.
    """
    state = load_weights(path)
    encoder = part(state, ENCODER)
    fuser = {key: value for key, value in encoder.items() if key.startswith(FUSER)}
    vision = {key: value for key, value in encoder.items() if key.startswith(VISION)}
    lora = part(state, LORA)
    strange = [key for key in encoder if key not in fuser and key not in vision]
    strange += [key for key in state if not key.startswith((ENCODER, LORA))]
    if strange:
        raise IdgenError(
            f"{path} is not photomaker-v2.bin: it holds {len(strange)} unknown tensors, such as {strange[0]!r}"
        )
    if not any(key.startswith("qformer_perceiver.") for key in fuser):
        raise IdgenError(f"{path} has no qformer_perceiver: PhotoMaker v1 is not supported, use photomaker-v2.bin")
    return PhotoMakerParts(fuser, vision, lora)


def load_identity_fuser(path: str | os.PathLike[str]) -> IdentityFuser:
    """The networks of photomaker-v2.bin that are PhotoMaker's own, in eval mode.

    Raises:
        IdgenError: as `read_photomaker`, or a tensor is missing, unknown or misshapen.
    """
    state = read_photomaker(path).fuser
    fuser = IdentityFuser(**QFormerPerceiver.sizes(part(state, "qformer_perceiver."), str(path)))
    load_strict(fuser, state, str(path))
    return fuser.eval()
