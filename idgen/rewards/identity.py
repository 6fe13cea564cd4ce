"""The identity consistency reward: how like the person the face in a picture is.

ID-Aligner (Chen et al., arXiv 2404.15449, eq. 2-4) takes the cosine between embeddings of the detected faces. A detector has no
gradient, so here it only says where the face is, and the aligned crop is cut by interpolation, which has one.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from idgen.errors import IdgenError
from idgen.faces import FaceEncoder
from idgen.faces.align_torch import norm_crop_torch
from idgen.faces.torch_backend import TorchDetector, TorchRecogniser
from idgen.models.registry import load_detector, load_recogniser, read_config
from idgen.rewards.scores import Scored
from idgen.rewards.views import Asked, View
from idgen.weights import find_mini


class IdentityReward:
    """Cosine of the face in each picture to the person's reference, in [-1, 1]; pictures without a face are not counted.

    Args:
        encoder: whose recogniser scores. With gradients it must be a torch network or an ArcFace that can become one; where
            candidates are only ranked, any will do.
    """

    needs_whole = False

    def __init__(self, encoder: FaceEncoder) -> None:
        self.encoder = encoder

    def __call__(self, view: View, asked: Asked) -> Scored:
        """
        Raises:
            IdgenError: no references, or not one a picture.
        """
        if asked.references is None or len(asked.references) != len(view.pictures):
            raise IdgenError("the identity reward compares each picture with a reference: give one a picture")
        # Zeros that hang on the pictures, so that a batch without any face still has a gradient: none.
        values = view.pictures.flatten(1)[:, 0].float() * 0
        if bool(view.seen.any()):
            made = embed_view(self.encoder, view)
            cosines = F.cosine_similarity(made, asked.references[view.seen].to(made))
            values = values.index_put((view.seen,), cosines)
        return Scored(values, view.seen)


def embed_view(encoder: FaceEncoder, view: View) -> Tensor:
    """Raw embeddings (faces, dim) of the pictures in which a face was found, with gradients where they are enabled."""
    # Half precision would place the crop's pixels wrongly.
    with torch.autocast(view.pictures.device.type, enabled=False):
        crops = norm_crop_torch(view.pictures[view.seen].float(), view.landmarks[view.seen])
    if torch.is_grad_enabled():
        return encoder.encode_aligned(crops)
    # As the encoder embeds photos: recognisers that have no gradient can do this too.
    pixels = ((crops.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return encoder.embed_aligned(pixels.cpu().numpy()).to(crops)


def mean_reference(embeddings: Tensor) -> Tensor:
    """The reference that several photos of one person make: (photos, dim) raw -> (dim,) the mean of the unit embeddings."""
    return F.normalize(embeddings.float(), dim=-1).mean(0)


def load_encoder(source: str | Path, device: torch.device | str = "cpu") -> FaceEncoder:
    """A face encoder by name or folder; also a folder that `train/recogniser.py` wrote, with the mini family's detector.

    Raises:
        IdgenError: no such encoder, or weights that are missing, damaged or something else.
    """
    folder = Path(source)
    if not (folder / "config.json").is_file():
        return FaceEncoder.from_pretrained(source, device=device)
    detector = TorchDetector(load_detector(find_mini("detector")).to(device))
    recogniser = TorchRecogniser(load_recogniser(folder).to(device))
    return FaceEncoder(detector, recogniser, str(read_config(folder).get("name", folder.name)), device)
