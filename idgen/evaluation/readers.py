"""What is read off every picture: its face by a recogniser, how it looks, what a probe or a feature network says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from idgen.errors import IdgenError
from idgen.evaluation.fingerprints import encoder_fingerprint, short
from idgen.metrics.diversity import light_of
from idgen.metrics.embedding import align
from idgen.metrics.fidelity import laplacian_energy

if TYPE_CHECKING:
    from idgen.faces import FaceEncoder
    from idgen.models.probe import AttributeProbe

# Change when the columns of FaceReader change: rows of an older kind are then read again.
VERSION = 1
PICTURE, CROP = 16, 28  # sides of the small grey copies by which pictures and faces are compared
EMBEDDING = 512
_COLUMNS = {"score": 1, "size": 2, "landmarks": 10, "sharpness": 2, "light": 3, "picture": PICTURE**2, "face": CROP**2}


@dataclass(frozen=True, repr=False)
class FaceTable:
    """What a recogniser and its detector say of n pictures; rows without a face are zero in everything about the face.

    Attributes:
        vectors: (n, dim) raw embeddings of the largest face.
        score: (n,) the detector's certainty, 0 where no face was found.
        size: (n, 2) width and height of the picture.
        landmarks: (n, 5, 2) pixels.
        sharpness: (n, 2) Laplacian energy of the picture and of the aligned face.
        light: (n, 3) as `light_of`.
        picture: (n, 256) small grey copy of the picture, 0..1.
        face: (n, 784) small grey copy of the aligned face, 0..1.
    """

    vectors: Tensor
    score: Tensor
    size: Tensor
    landmarks: Tensor
    sharpness: Tensor
    light: Tensor
    picture: Tensor
    face: Tensor

    @classmethod
    def of_rows(cls, rows: Tensor) -> FaceTable:
        """What `FaceReader` wrote."""
        *parts, vectors = rows.split([*_COLUMNS.values(), rows.shape[1] - sum(_COLUMNS.values())], 1)
        named: dict[str, Tensor] = dict(zip(_COLUMNS, parts, strict=True))
        named["landmarks"] = named["landmarks"].unflatten(1, (5, 2))
        named["score"] = named["score"][:, 0]
        return cls(vectors=vectors, **named)

    def __repr__(self) -> str:  # embeddings are biometric data: they have no place in logs
        return f"FaceTable({len(self)} pictures, {int(self.found.sum())} with a face)"

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, index: Tensor | slice) -> FaceTable:
        return FaceTable(**{name: getattr(self, name)[index] for name in self.__dataclass_fields__})

    @property
    def found(self) -> Tensor:
        """(n,) whether there is a face."""
        return self.score > 0


class FaceReader:
    """The largest face of each picture: detection, embedding, sharpness, light, and small copies.

    Args:
        encoder: whose detector finds and whose recogniser embeds.
        batch: faces embedded at once.
    """

    def __init__(self, encoder: FaceEncoder, batch: int = 64) -> None:
        self.encoder, self.batch = encoder, batch
        self.key = f"faces-{VERSION}-{short(encoder_fingerprint(encoder))}"
        self.width = sum(_COLUMNS.values()) + EMBEDDING

    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        rows = torch.zeros(len(images), self.width)
        parts = dict(zip([*_COLUMNS, "vectors"], rows.split([*_COLUMNS.values(), EMBEDDING], 1), strict=True))
        crops = torch.zeros(len(images), 3, 112, 112)
        for index, image in enumerate(images):
            picture = torch.from_numpy(np.ascontiguousarray(image))[None]  # (1, height, width, 3)
            parts["size"][index] = torch.tensor([image.shape[1], image.shape[0]])
            if min(image.shape[:2]) >= 3:  # the Laplacian's window
                parts["sharpness"][index, 0] = laplacian_energy(picture)[0]
            parts["picture"][index] = _grey(picture, PICTURE)[0]
            faces = self.encoder.detect(image)
            if faces:
                points = torch.from_numpy(faces[0].landmarks).float()
                crops[index] = align(picture, points[None])[0]
                parts["score"][index] = max(faces[0].score, 1e-6)
                parts["landmarks"][index] = points.flatten()
        seen = (parts["score"][:, 0] > 0).nonzero()[:, 0]
        if len(seen):
            faces_seen = ((crops[seen].permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            parts["sharpness"][seen, 1] = laplacian_energy(faces_seen)
            parts["light"][seen] = light_of(faces_seen).float()
            parts["face"][seen] = _grey(faces_seen, CROP)
            parts["vectors"][seen] = self._embed(crops[seen])
        return rows

    @torch.no_grad()
    def _embed(self, crops: Tensor) -> Tensor:
        made = [
            self.encoder.encode_aligned(part.to(self.encoder.device)).float().cpu() for part in crops.split(self.batch)
        ]
        vectors = torch.cat(made)
        if vectors.shape[1] > EMBEDDING:
            raise IdgenError(
                f"{self.encoder.recogniser!r} makes embeddings of {vectors.shape[1]} numbers, more than {EMBEDDING}"
            )
        return F.pad(vectors, (0, EMBEDDING - vectors.shape[1]))  # zeros change no cosine


class ProbeReader:
    """The mini family's attribute probe: pose, expression, and the features before its heads."""

    def __init__(self, probe: AttributeProbe) -> None:
        self.probe = probe
        self.key = f"probe-{VERSION}-{short(probe)}"
        self.expressions = len(probe.classes["expression"])
        self.width = 3 + self.expressions + probe.pose.in_features

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        device = next(self.probe.parameters()).device
        rows = []
        for image in images:  # of any size: the probe shrinks each to its own
            pixels = (
                torch.from_numpy(np.ascontiguousarray(image))[None].to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            )
            features = self.probe.features(pixels)
            logits = self.probe.heads["expression"](features)
            pose = self.probe.pose(features) * _pose_unit()
            rows.append(torch.cat([pose, logits.softmax(-1), features], 1).float().cpu())
        return torch.cat(rows)

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows -> pose (n, 3) degrees, expression probabilities (n, classes), features (n, 256)."""
        pose, expression, features = rows.split([3, self.expressions, self.width - 3 - self.expressions], 1)
        return pose, expression, features


class VisionReader:
    """Features of a transformers vision model in a folder (CLIP, DINOv2, ...): what its pooler gives."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoImageProcessor, AutoModel

        try:
            self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise IdgenError(f"cannot load a vision model from {folder}: {reason}") from error
        self.model = getattr(model, "vision_model", model).to(device).eval()
        self.key = f"vision-{VERSION}-{short(self.model)}"
        self.width = int(self.model.config.hidden_size)

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        return self.model(pixels.to(self.model.device)).pooler_output.float().cpu()


class InceptionReader:
    """The 2048 features that FID is defined by; MissingExtra where torch-fidelity or its weights are not here."""

    width = 2048

    def __init__(self, device: torch.device) -> None:
        from idgen.metrics.optional import load_inception

        self.network, self.key = load_inception(device), f"inception-{VERSION}"

    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        rows = [self.network(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]) for image in images]
        return torch.cat(rows)


def _grey(images: Tensor, side: int) -> Tensor:
    """(n, height, width, 3) uint8 -> (n, side * side) in 0..1."""
    luma = (images.float() / 255 * torch.tensor([0.299, 0.587, 0.114])).sum(-1)
    return F.adaptive_avg_pool2d(luma[:, None], side).flatten(1)


def _pose_unit() -> float:
    from idgen.models.probe import POSE_UNIT

    return POSE_UNIT
