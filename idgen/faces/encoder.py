"""FaceEncoder: photos in, Identity out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch

from idgen.errors import IdgenError
from idgen.faces.align import norm_crop
from idgen.faces.detection import Detector, Face, by_size, check_selection, rival, select_face
from idgen.identity import Identity, recogniser_name
from idgen.imageio import load_array

if TYPE_CHECKING:
    from idgen.imageio import ImageLike

CROP = 112
BATCH = 32


class Recogniser(Protocol):
    """Aligned crops -> raw embeddings."""

    def embed(self, crops: np.ndarray) -> torch.Tensor:
        """(n, 112, 112, 3) uint8 RGB -> (n, d) float32 on the CPU, without gradients."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """(n, 3, 112, 112) RGB in [-1, 1] -> (n, d) float32 with gradients to the crops."""


class FaceEncoder:
    """Finds, aligns and embeds faces.

        encoder = FaceEncoder.from_pretrained("mini")
        identity = encoder(["anna1.jpg", "anna2.jpg"])      # one person, two references
        identity.save("anna.safetensors")

    Attributes:
        recogniser: the name that its identities bear, see `idgen.identity.recogniser_name`.
        device: where the recogniser runs.
    """

    def __init__(
        self, detector: Detector, network: Recogniser, recogniser: str, device: torch.device | str = "cpu"
    ) -> None:
        self.recogniser = recogniser_name(recogniser)
        self.device = torch.device(device)
        self._detector, self._network = detector, network

    def __repr__(self) -> str:
        return f"FaceEncoder({self.recogniser!r}, device={str(self.device)!r})"

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "fp32",
    ) -> FaceEncoder:
        """Load a detector and a recogniser.

        Args:
            name: `"mini"` (ships with idgen), `"judge"` (the mini family's other recogniser, for measuring only),
                an insightface pack (`"buffalo_l"`, `"antelopev2"`, or `"arc2face"`: antelopev2 with Arc2Face's own
                recogniser; their weights are for research only), or a folder: an unpacked pack, or one with
                `recogniser/` and `detector/` as the mini family has them.
            device: `"auto"`, `"cpu"`, `"cuda"`.
            dtype: in which the mini recognisers compute; embeddings are float32 whatever it is.

        Raises:
            IdgenError: an unknown name, or weights that are missing, damaged or something else.
        """
        from idgen.faces import insightface_backend, torch_backend

        if str(name) in insightface_backend.PACKS:
            folder = insightface_backend.find_pack(str(name))
        elif str(name) in torch_backend.FAMILY:
            return cls(*torch_backend.load_mini(str(name), device, dtype))
        else:
            folder = Path(name).expanduser()
            if not folder.is_dir():
                known = ", ".join((*torch_backend.FAMILY, *insightface_backend.PACKS))
                raise IdgenError(f"no face encoder {str(name)!r}: use one of {known}, or a folder")
            if (folder / "recogniser").is_dir():
                return cls(*torch_backend.load_folder(folder, device, dtype))
            folder = insightface_backend.unnest(folder)
        return cls(*insightface_backend.load_pack(folder, device))

    def __call__(self, images: ImageLike | Sequence[ImageLike], select: str | int = "largest") -> Identity:
        """Photos of one person -> their identity, one row per photo.

        Args:
            images: files, PIL images or (H, W, 3) uint8 RGB arrays, one or several.
            select: which face of each photo: `"largest"`, `"centre"`, `"best"`, `"only"` (several faces are an error),
                or a number counted from 0 by size.

        Raises:
            IdgenError: a photo can not be read, or shows no face, several with `"only"`, or one too small; names it.
        """
        check_selection(select)
        photos: Sequence[ImageLike] = images if isinstance(images, list | tuple) else [cast("ImageLike", images)]
        if not photos:
            raise IdgenError("no photo given: name at least one image of the person")
        crops, landmarks, scores, rivals = [], [], [], []
        for index, photo in enumerate(photos):
            name = (
                str(photo)
                if isinstance(photo, str | os.PathLike)
                else f"image {index}"
                if len(photos) > 1
                else "the image"
            )
            pixels = load_array(photo)
            faces = self._detector(pixels)
            face = select_face(faces, select, (pixels.shape[1], pixels.shape[0]), name)
            try:
                crops.append(norm_crop(pixels, face.landmarks, CROP))
            except IdgenError as error:
                raise IdgenError(f"{name}: {error}") from error
            landmarks.append(face.landmarks)
            scores.append(face.score)
            rivals.append(rival(faces) if select == "largest" else 0.0)  # who names a face means it
        aligned = np.stack(crops)  # (n, 112, 112, 3)
        raw = torch.cat(
            [self._network.embed(aligned[start : start + BATCH]) for start in range(0, len(aligned), BATCH)]
        )
        return Identity(
            raw,
            self.recogniser,
            torch.from_numpy(aligned),
            torch.from_numpy(np.stack(landmarks)).float(),
            torch.tensor(scores, dtype=torch.float32),
            torch.tensor(rivals, dtype=torch.float32),
        )

    def detect(self, image: ImageLike) -> list[Face]:
        """All faces of one photo, largest first."""
        return by_size(self._detector(load_array(image)))

    def encode_aligned(self, crops: torch.Tensor) -> torch.Tensor:
        """Raw embeddings (n, d) float32 of aligned faces, with gradients to the crops: for losses and rewards.

        Args:
            crops: (n, 3, 112, 112) RGB in [-1, 1], as `norm_crop_torch` makes them, on the encoder's device.
        """
        if crops.ndim != 4 or crops.shape[1:] != (3, CROP, CROP):
            raise IdgenError(f"aligned faces have the shape (n, 3, {CROP}, {CROP}), not {list(crops.shape)}")
        return self._network.forward(crops)

    def embed_aligned(self, crops: np.ndarray) -> torch.Tensor:
        """Raw embeddings (n, d) float32 on the CPU of aligned faces (n, 112, 112, 3) uint8 RGB, without gradients: any
        recogniser can do this, also one that `encode_aligned` can not turn into a torch network."""
        return self._network.embed(crops)
