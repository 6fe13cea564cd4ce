"""Embeddings of photos by the mini recogniser and the judge, kept between runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from idgen.checkpoint import sha256
from idgen.faces import FaceEncoder
from idgen.files import atomic_write
from idgen.metrics.embedding import detect_landmarks, embed_at
from idgen.weights import find_mini


@dataclass(frozen=True)
class Vectors:
    """Raw embeddings (people, shots, dim) of the same photos by both; zeros where no face was found."""

    mini: Tensor
    judge: Tensor

    def shots(self, index: slice) -> Vectors:
        return Vectors(self.mini[:, index], self.judge[:, index])


class Faces:
    """The two recognisers behind the mini detector.

    Args:
        device: where they run.
        cache: folder in which embeddings of photos are kept; named after the photos and the weights.
    """

    def __init__(self, device: torch.device, cache: Path | None = None) -> None:
        self.mini = FaceEncoder.from_pretrained("mini", device=device)
        self.judge = FaceEncoder.from_pretrained("judge", device=device)
        self.cache = cache

    def embed(self, images: Tensor, *, keep: bool = False) -> Vectors:
        """Pictures (people, shots, height, width, 3) uint8; with `keep` through the cache."""
        file = self.cache / f"faces-{self._digest(images)}.npz" if keep and self.cache else None
        if file is not None and file.exists():
            with np.load(file, allow_pickle=False) as stored:
                return Vectors(torch.from_numpy(stored["mini"]), torch.from_numpy(stored["judge"]))
        flat = images.flatten(0, 1)
        landmarks, seen = detect_landmarks(self.mini, flat)
        made = []
        for encoder in (self.mini, self.judge):
            rows = torch.zeros(len(flat), 512)
            if seen.any():
                rows[seen] = embed_at(encoder, flat[seen], landmarks[seen])
            made.append(rows.unflatten(0, images.shape[:2]))
        vectors = Vectors(*made)
        if file is not None:
            with atomic_write(file) as temporary, open(temporary, "wb") as stream:
                np.savez(stream, mini=vectors.mini.numpy(), judge=vectors.judge.numpy())
        return vectors

    def _digest(self, images: Tensor) -> str:
        digest = hashlib.sha256(repr(tuple(images.shape)).encode())
        digest.update(images.contiguous().numpy().data)
        for component in ("recogniser", "judge", "detector"):
            digest.update(sha256(find_mini(component) / "model.safetensors").encode())
        return digest.hexdigest()[:20]
