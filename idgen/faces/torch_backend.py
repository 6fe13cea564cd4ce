"""Detectors and recognisers that are torch modules: the mini family, and folders shaped like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from idgen.devices import resolve_device, resolve_dtype
from idgen.faces.detection import Face
from idgen.models.registry import load_detector, load_recogniser, read_config
from idgen.weights import find_mini

FAMILY = {"mini": "recogniser", "judge": "judge"}  # name -> component of the mini family
# Larger photos are shrunk before a face is looked for: its landmarks are as exact, and memory stays bounded.
LONGEST_SIDE = 2048

Loaded = tuple["TorchDetector", "TorchRecogniser", str, torch.device]


def load_mini(name: str, device: str | torch.device, dtype: str | torch.dtype) -> Loaded:
    """The mini family's detector with one of its recognisers; the arguments of FaceEncoder."""
    return _load(find_mini(FAMILY[name]), find_mini("detector"), name, device, dtype)


def load_folder(folder: Path, device: str | torch.device, dtype: str | torch.dtype) -> Loaded:
    """`folder/recogniser` with `folder/detector`, or with the mini detector where there is none."""
    detector = folder / "detector" if (folder / "detector").is_dir() else find_mini("detector")
    name = read_config(folder / "recogniser").get("name", folder.name)
    return _load(folder / "recogniser", detector, name, device, dtype)


def _load(recogniser: Path, detector: Path, name: str, device: str | torch.device, dtype: str | torch.dtype) -> Loaded:
    device = resolve_device(device)
    return (
        TorchDetector(load_detector(detector).to(device)),
        TorchRecogniser(load_recogniser(recogniser).to(device), resolve_dtype(dtype, device)),
        name,
        device,
    )


class TorchDetector:
    """A module with `detect([(H, W, 3) uint8]) -> [(boxes, landmarks, scores)]` as a Detector."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module.requires_grad_(False)

    def __call__(self, image: np.ndarray) -> list[Face]:
        height, width = image.shape[:2]
        factor = min(1.0, LONGEST_SIDE / max(height, width))
        if factor < 1:
            size = (max(1, round(width * factor)), max(1, round(height * factor)))
            image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
        boxes, landmarks, scores = self.module.detect([image])[0]
        # Pixel edges scale with the photo, pixel centres lie half a pixel beside them.
        scale = np.array([width / image.shape[1], height / image.shape[0]], np.float32)

        def to_photo(points: torch.Tensor) -> np.ndarray:
            return (points.float().cpu().numpy().reshape(-1, 2) + 0.5) * scale - 0.5

        return [
            Face(to_photo(box).reshape(4), to_photo(points), float(score))
            for box, points, score in zip(boxes, landmarks, scores, strict=True)
        ]


class TorchRecogniser:
    """A module from (n, 3, 112, 112) in [-1, 1] to (n, d) as a Recogniser; computes in `dtype`, keeps its weights in fp32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        self.module = module.eval().requires_grad_(False)
        self.dtype = dtype

    @torch.no_grad()
    def embed(self, crops: np.ndarray) -> torch.Tensor:
        device = next(self.module.parameters()).device
        pixels = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float()
        return self.forward(pixels / 127.5 - 1).cpu()

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        with torch.autocast(crops.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.module(crops.float()).float()
