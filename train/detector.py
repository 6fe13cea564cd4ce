"""Trains the mini family's face detector: `accelerate launch train/detector.py --config configs/mini/detector.yaml`.

Penalty-reduced focal loss on the heat map (CenterNet, arXiv 1904.07850, eq. 1), smooth absolute errors on box and
landmarks around each centre. Steps alternate between whole scenes and close-ups, the detector's two looks.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from pydantic import Field
from torch import Tensor, nn

from idgen.checkpoint import save_weights
from idgen.data.augment import photometric
from idgen.data.clutter import compose, face_boxes
from idgen.data.faces import FaceFolder
from idgen.data.scenes import SceneBatch, SceneMaker
from idgen.files import atomic_write
from idgen.models.mini_detector import STRIDE, MiniDetector
from idgen.models.registry import load_detector
from idgen.train.config import TrainConfig
from idgen.train.loop import Batch, Stage, run
from idgen.train.pictures import grid, to_pil


class DetectorConfig(TrainConfig):
    """Settings of train/detector.py."""

    data: Path = Field(description="folder of `idgen synth`")
    validation: Path = Field(description="folder of `idgen synth` with other people")
    widths: tuple[int, int, int, int, int] = Field(
        (16, 32, 64, 96, 128), description="channels at strides 2, 4, 8, 16 and 32"
    )
    close_up_share: float = Field(0.7, ge=0, le=1, description="steps on close-ups, which make the landmarks exact")


class DetectorStage(Stage[DetectorConfig]):
    """The detector."""

    module: MiniDetector

    def __init__(self, config: DetectorConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.data, self.held_out = FaceFolder.open(config.data), FaceFolder.open(config.validation)
        self.scenes, self.held_out_boxes = SceneMaker(self.data, device), face_boxes(self.held_out)
        self.module = MiniDetector(config.widths)

    def batch(self, rng: np.random.Generator) -> Batch:
        whole = bool(rng.random() >= self.config.close_up_share)
        # Close-ups are a quarter of the area: four times as many for the same time.
        count = max(1, self.config.train_batch_size // (1 if not whole else 4))
        with torch.autocast(self.device.type, enabled=False):
            scenes = (self.scenes.scenes if whole else self.scenes.close_ups)(rng, count)
            return {"pictures": scenes.pictures, **_targets(scenes)}

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        pictures = photometric(batch["pictures"], 0.8).contiguous(memory_format=torch.channels_last)
        logits, geometry = model(pictures)
        heat = _focal(logits.float()[:, 0], batch["heat"])
        near = batch["near"][:, None]
        errors = F.smooth_l1_loss(geometry.float(), batch["geometry"], reduction="none", beta=0.02) * near
        count = near.sum().clamp_min(1)
        box, landmarks = errors[:, :4].sum() / (4 * count), errors[:, 4:].sum() / (10 * count)
        return {"loss": heat + 0.5 * box + 8 * landmarks, "heat": heat, "box": box, "landmarks": landmarks}

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        rng = np.random.default_rng(1)
        scenes = [compose(self.held_out, self.held_out_boxes, rng) for _ in range(150)]
        found = wanted = false = 0
        errors: list[float] = []
        pictures = []
        for scene in scenes:
            image = to_pil(scene.picture[None])[0]
            with torch.autocast(self.device.type, enabled=False):
                result = self.module.detect([np.asarray(image)])[0]
            matched = set()
            for landmarks in scene.landmarks:
                wanted += 1
                eyes = float((landmarks[0] - landmarks[1]).norm())
                if len(result.scores) == 0:
                    continue
                distance = (result.landmarks.cpu() - landmarks).norm(dim=-1).mean(1) / eyes
                best = int(distance.argmin())
                if distance[best] < 0.5:
                    found += 1
                    matched.add(best)
                    errors.append(float(distance[best]))
            false += len(result.scores) - len(matched)
            pictures.append(_drawn(image, result.boxes.tolist(), result.landmarks.tolist()))
        figures = {
            "detection_rate": found / max(1, wanted),
            "landmark_error": float(np.mean(errors)) if errors else 1.0,
            "false_per_picture": false / len(scenes),
        }
        return figures, grid(pictures[:12], 4)

    def save(self, folder: Path) -> None:
        with atomic_write(folder / "config.json") as temporary:
            temporary.write_text(
                json.dumps({"architecture": "mini_detector", "widths": self.config.widths}, indent=2) + "\n"
            )
        state = {k: v.half() if v.is_floating_point() else v for k, v in self.module.state_dict().items()}
        save_weights(folder / "model.safetensors", state, {"format": "pt"})

    def load(self, folder: Path) -> None:
        detector = load_detector(folder)
        assert isinstance(detector, MiniDetector)
        detector.landmarks = None  # train/landmarks.py puts it into what comes out of here
        self.module.load_state_dict(detector.state_dict())


def _targets(scenes: SceneBatch) -> Batch:
    """Heat map (batch, cells, cells), geometry (batch, 14, cells, cells) and the cells near a centre, at stride 8."""
    device, cells = scenes.pictures.device, scenes.pictures.shape[-1] // STRIDE
    steps = torch.arange(cells, device=device) * STRIDE + (STRIDE - 1) / 2
    places = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)  # (cells, cells, 2) x, y
    count = len(scenes.pictures)
    heat, near = (torch.zeros(count, cells, cells, device=device) for _ in range(2))
    geometry = torch.zeros(count, cells, cells, 14, device=device)
    for box, landmarks, present in zip(
        scenes.boxes.unbind(1), scenes.landmarks.unbind(1), scenes.present.unbind(1), strict=True
    ):
        low, high = box[:, None, None, :2], box[:, None, None, 2:]  # (batch, 1, 1, 2)
        extent = high - low
        mean = extent.mean(-1)
        distance = (places - (low + high) / 2).norm(dim=-1)  # (batch, cells, cells)
        spread = (mean / 10).clamp_min(STRIDE / 2)
        blob = torch.exp(-0.5 * (distance / spread) ** 2)
        nearest = distance == distance.amin((1, 2), keepdim=True)
        heat = torch.where(present[:, None, None], torch.maximum(heat, torch.where(nearest, 1.0, blob)), heat)
        here = (distance < (0.15 * mean).clamp_min(1.2 * STRIDE)) & present[:, None, None]
        sides = torch.cat([places - low, high - places], -1).clamp_min(1) / STRIDE
        offsets = (landmarks[:, None, None] - places[:, :, None]) / extent[..., None, :]  # (batch, cells, cells, 5, 2)
        values = torch.cat([sides.log(), offsets.flatten(3)], -1)
        geometry = torch.where(here[..., None], values, geometry)
        near = torch.where(here, 1.0, near)
    return {"heat": heat, "geometry": geometry.permute(0, 3, 1, 2), "near": near}


def _focal(logits: Tensor, target: Tensor) -> Tensor:
    chance = logits.sigmoid()
    positive = target == 1
    gain = F.logsigmoid(logits) * (1 - chance) ** 2 * positive
    loss = F.logsigmoid(-logits) * chance**2 * (1 - target) ** 4 * ~positive
    return -(gain.sum() + loss.sum()) / positive.sum().clamp_min(1)


def _drawn(image: Image.Image, boxes: list[list[float]], landmarks: list[list[list[float]]]) -> Image.Image:
    draw = ImageDraw.Draw(image)
    for box, points in zip(boxes, landmarks, strict=True):
        draw.rectangle(box, outline=(255, 60, 60))
        for x, y in points:
            draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=(60, 255, 60))
    return image


if __name__ == "__main__":
    run(DetectorStage, DetectorConfig)
