"""Trains the detector's landmark network: `accelerate launch train/landmarks.py --config configs/mini/landmarks.yaml`.

Crops are placed by landmarks that are wrong as the detector's are, and by some that are nearly right as those of the first round;
the network learns where the true ones lie in them. The detector itself stays as it is.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from idgen.checkpoint import save_weights
from idgen.data.augment import photometric
from idgen.data.faces import FaceFolder
from idgen.errors import IdgenError
from idgen.files import atomic_write
from idgen.models.landmark_network import EXTENT, LandmarkNetwork, crop_faces, to_crop
from idgen.models.mini_detector import MiniDetector
from idgen.models.registry import load_detector, read_config
from idgen.train.config import TrainConfig
from idgen.train.loop import Batch, Stage, run
from idgen.train.pictures import grid, to_float, to_pil

EYES = 35.24  # px between the eyes of ArcFace's 112-px template


class LandmarksConfig(TrainConfig):
    """Settings of train/landmarks.py."""

    data: Path = Field(description="folder of `idgen synth`")
    validation: Path = Field(description="folder of `idgen synth` with other people")
    detector: Path = Field(description="folder of the detector whose landmarks are to be mended")
    widths: tuple[int, int, int] = Field((16, 32, 48), description="channels at strides 2, 4 and 8")
    error: float = Field(0.08, gt=0, description="of the landmarks that crops are placed by, in distances of the eyes")
    coarse_share: float = Field(
        0.25, ge=0, le=1, description="faces that are small in the photo, and so have less detail"
    )


class LandmarksStage(Stage[LandmarksConfig]):
    """The landmark network; the detector is given."""

    module: LandmarkNetwork

    def __init__(self, config: LandmarksConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.data, self.held_out = FaceFolder.open(config.data), FaceFolder.open(config.validation)
        detector = load_detector(config.detector)
        assert isinstance(detector, MiniDetector)
        self.detector = detector.to(device).requires_grad_(False)
        self.module = LandmarkNetwork(config.widths)

    def batch(self, rng: np.random.Generator) -> Batch:
        chosen = np.sort(rng.choice(len(self.data), min(self.config.train_batch_size, len(self.data)), replace=False))
        truth = self.data.landmarks[chosen]
        eyes = np.linalg.norm(truth[:, 0] - truth[:, 1], axis=1)
        placed = (
            truth + wrong(truth, rng) * (self.config.error * eyes * rng.uniform(0.1, 1.4, len(eyes)))[:, None, None]
        )
        return {
            "images": torch.from_numpy(self.data.images[chosen]),
            "placed": torch.from_numpy(placed).float(),
            "truth": torch.from_numpy(truth).float(),
            "coarse": torch.from_numpy(rng.random(len(chosen)) < self.config.coarse_share),
        }

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            placed, truth = batch["placed"].to(self.device), batch["truth"].to(self.device)
            images = to_float(batch["images"].numpy(), self.device)
            small = F.interpolate(F.avg_pool2d(images, 3), images.shape[-2:], mode="bilinear", align_corners=False)
            images = torch.where(batch["coarse"].to(self.device)[:, None, None, None], small, images)
            crops = photometric(crop_faces(images, placed), 0.8).contiguous(memory_format=torch.channels_last)
            wanted = to_crop(placed, truth)
        distance = (model(crops).float() - wanted).norm(dim=-1) * (EXTENT / EYES)
        return {"loss": distance.mean(), "error": distance.detach().mean()}

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        """The detector's own landmarks of the portraits, before and after."""
        images = self.held_out.images[:400]
        self.detector.landmarks = None
        with torch.autocast(self.device.type, enabled=False):
            found = self.detector.detect(list(images))
            seen = [index for index, faces in enumerate(found) if len(faces.scores)]
            if not seen:
                return {"faces_found": 0.0}, None
            before = torch.stack([found[index].landmarks[0] for index in seen])
            pictures = to_float(images[seen], self.device)
            after = self.module.refine(pictures, before)
        truth = torch.from_numpy(self.held_out.landmarks[seen]).to(before)
        eyes = (truth[:, 0] - truth[:, 1]).norm(dim=-1)
        figures: dict[str, float] = {}
        for name, points in (("before", before), ("after", after)):
            errors = (points - truth).norm(dim=-1).mean(1) / eyes
            figures |= {f"error_{name}": float(errors.mean()), f"error_{name}_90": float(errors.quantile(0.9))}
        return figures, grid(
            to_pil(torch.cat([crop_faces(pictures, points)[:16] for points in (before, after, truth)])), 16
        )

    def save(self, folder: Path) -> None:
        config = read_config(self.config.detector) | {"landmarks": self.config.widths}
        with atomic_write(folder / "config.json") as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n")
        self.detector.landmarks = None
        state = self.detector.state_dict() | {f"landmarks.{k}": v for k, v in self.module.state_dict().items()}
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        save_weights(folder / "model.safetensors", state, {"format": "pt"})

    def load(self, folder: Path) -> None:
        network = load_detector(folder).landmarks
        if not isinstance(network, LandmarkNetwork):
            raise IdgenError(f"the detector in {folder} has no landmark network to go on from: leave start_from out")
        self.module.load_state_dict(network.state_dict())


def wrong(landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Errors (n, 5, 2) of landmarks (n, 5, 2), in distances of the eyes: of each, and a shift, scale and turn of all."""
    centre = landmarks.mean(1, keepdims=True)
    shape = (landmarks - centre) / np.linalg.norm(landmarks[:, :1] - landmarks[:, 1:2], axis=2, keepdims=True)
    shift, scale, turn = (rng.standard_normal((len(landmarks), 1, n)) for n in (2, 1, 1))
    turned = np.stack([-shape[..., 1], shape[..., 0]], -1)
    return 0.5 * rng.standard_normal(landmarks.shape) + 0.6 * shift + 0.8 * scale * shape + 0.8 * turn * turned


if __name__ == "__main__":
    run(LandmarksStage, LandmarksConfig)
