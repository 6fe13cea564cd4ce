"""The mini family's face detector: box and five landmarks, anchor-free.

A centre-point detector in the manner of CenterNet (arXiv 1904.07850) with the five-point head of RetinaFace (arXiv
1905.00641): one heat map at stride 8, and per cell the four distances to the box's sides and ten landmark offsets.
Small faces are looked for once more in the picture enlarged. Every face is looked at twice: once in the whole picture, once in
a crop around it, so that the landmarks are as exact for a small face as for a large one; with a landmark network a third time,
upright (`idgen.models.landmark_network`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgen.models.landmark_network import LandmarkNetwork

STRIDE = 8
# Faces below 32 px are seldom surer. In 800 validation scenes 95.8 % of all faces are found at 0.5, 98.8 % at 0.4, with one false
# face in a hundred scenes; at 0.35 there are two.
THRESHOLD = 0.4
# The second search: so much finer, for faces of at most this share of the picture's side. (In 500 validation scenes 88 % of the
# faces below 32 px are found at once, 98 % with it, and two more false ones in a hundred scenes.)
FINER, SMALL = 1.5, 1 / 6
OVERLAP = 0.4  # IoU from which two boxes are one face
MOST = 200  # peaks of one picture that are looked at: an untrained heat map is nothing but peaks


class Detections(NamedTuple):
    """Faces of one picture, best score first; pixels of that picture, (0, 0) = centre of the top-left pixel."""

    boxes: Tensor  # (n, 4): left, top, right, bottom
    landmarks: Tensor  # (n, 5, 2): eyes, nose tip, mouth corners, as seen from left to right
    scores: Tensor  # (n,) in [0, 1]


class MiniDetector(nn.Module):
    """Pictures (batch, 3, height, width) in [-1, 1], sides multiples of 32 -> heat map and geometry at stride 8.

    Args:
        widths: channels at strides 2, 4, 8, 16 and 32.
        canvas: side in px of the square into which whole pictures are fitted for the first look, a multiple of 64. Those of more
            than half of that have enough pixels for a finer look.
        close_up: side in px of the crop of the second look.
        landmarks: widths of the landmark network; None for a detector without one.
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64, 96, 128),
        canvas: int = 256,
        close_up: int = 128,
        landmarks: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.landmarks = LandmarkNetwork(landmarks) if landmarks else None
        self.canvas, self.close_up = canvas, close_up
        self.stem = _block(3, widths[0], 2)
        self.stages = nn.ModuleList(
            nn.Sequential(_block(before, width, 2), _block(width, width, 1))
            for before, width in itertools.pairwise(widths)
        )
        fused = widths[2]
        self.laterals = nn.ModuleList(nn.Conv2d(width, fused, 1) for width in widths[2:])
        self.smooth = nn.Sequential(_block(fused, fused, 1), _block(fused, fused, 1))
        self.heat = nn.Conv2d(fused, 1, 1)
        self.geometry = nn.Conv2d(fused, 14, 1)
        nn.init.constant_(self.heat.bias, -4.0)  # type: ignore[arg-type]  # faces are rare: start from "no face"

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Returns heat-map logits (batch, 1, h, w) and geometry (batch, 14, h, w): log sides in cells, offsets in sides."""
        x = self.stem(pictures)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        features = self.laterals[-1](levels[-1])
        for lateral, level in zip(reversed(self.laterals[:-1]), reversed(levels[1:-1]), strict=True):
            features = F.interpolate(features, scale_factor=2.0, mode="nearest") + lateral(level)
        features = self.smooth(features)
        return self.heat(features), self.geometry(features)

    @torch.no_grad()
    def detect(self, images: Sequence[np.ndarray | Tensor], threshold: float = THRESHOLD) -> list[Detections]:
        """Finds the faces of RGB uint8 pictures (height, width, 3) of any size, in their own pixels."""
        device = self.heat.weight.device
        found = []
        for image in images:
            tensor = torch.as_tensor(np.ascontiguousarray(image) if isinstance(image, np.ndarray) else image)
            picture = tensor.to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
            found.append(self._refine(picture, self._search(picture, threshold)))
        return found

    def _search(self, picture: Tensor, threshold: float) -> Detections:
        coarse, side = self._look(picture, threshold, self.canvas), max(picture.shape[-2:])
        if 2 * side <= self.canvas:
            return coarse
        fine = self._look(picture, threshold, round(FINER * self.canvas))
        small = fine.boxes[:, 2] - fine.boxes[:, 0] < SMALL * side
        both = [torch.cat([ours, theirs[small]]) for ours, theirs in zip(coarse, fine, strict=True)]
        boxes, landmarks, scores = (part[both[2].argsort(descending=True)] for part in both)
        kept = _suppress(boxes)
        return Detections(boxes[kept], landmarks[kept], scores[kept])

    def _look(self, picture: Tensor, threshold: float, canvas: int) -> Detections:
        height, width = picture.shape[-2:]
        scale = canvas / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        small = F.interpolate(picture, size, mode="bilinear", align_corners=False, antialias=scale < 1)
        # Grey borders: what the network saw around pictures in training.
        small = F.pad(small, (0, canvas - size[1], 0, canvas - size[0]))
        heat, geometry = self(small.to(self.heat.weight.dtype))
        found = decode(heat.float(), geometry.float(), threshold)[0]
        factor = torch.tensor([width / size[1], height / size[0]], device=heat.device)
        return Detections(
            ((found.boxes.view(-1, 2, 2) + 0.5) * factor - 0.5).view(-1, 4),
            (found.landmarks + 0.5) * factor - 0.5,
            found.scores,
        )

    def _refine(self, picture: Tensor, found: Detections) -> Detections:
        if len(found.scores) == 0:
            return found
        height, width = picture.shape[-2:]
        centre = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
        side = (found.boxes[:, 2:] - found.boxes[:, :2]).amax(1) * 1.7
        # Sampling grid of each close-up, in the picture's pixels: (n, close_up, close_up, 2)
        steps = (torch.arange(self.close_up, device=picture.device) + 0.5) / self.close_up - 0.5
        grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1) * side[:, None, None, None]
        grid = grid + centre[:, None, None]
        normalised = (grid + 0.5) / torch.tensor([width, height], device=picture.device) * 2 - 1
        crops = F.grid_sample(
            picture.expand(len(side), -1, -1, -1),
            normalised,
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        heat, geometry = self(crops.to(self.heat.weight.dtype))
        box, landmarks = _agreed(heat.float(), geometry.float(), self.close_up)
        factor, corner = side[:, None, None] / self.close_up, (centre - side[:, None] / 2)[:, None]
        box, landmarks = (box.view(-1, 2, 2) + 0.5) * factor + corner, (landmarks + 0.5) * factor + corner
        if self.landmarks is not None:
            landmarks = self.landmarks.refine(picture.expand(len(landmarks), -1, -1, -1), landmarks)
        return Detections(box.view(-1, 4), landmarks, found.scores)


def decode(heat: Tensor, geometry: Tensor, threshold: float) -> list[Detections]:
    """Turns the network's maps into detections in input pixels, non-maximum-suppressed."""
    scores = heat.sigmoid()[:, 0]
    peaks = F.max_pool2d(scores[:, None], 3, 1, 1)[:, 0] == scores
    results = []
    boxes, landmarks = _everywhere(geometry)
    for score, peak, box, points in zip(scores, peaks, boxes, landmarks, strict=True):
        y, x = torch.nonzero(peak & (score > threshold), as_tuple=True)
        values, order = score[y, x].sort(descending=True)
        values, order = values[:MOST], order[:MOST]
        y, x = y[order], x[order]
        keep = _suppress(box[y, x])
        results.append(Detections(box[y, x][keep], points[y, x][keep], values[keep]))
    return results


def _everywhere(geometry: Tensor) -> tuple[Tensor, Tensor]:
    """The box (batch, h, w, 4) and the landmarks (batch, h, w, 5, 2) that each cell would name, in input pixels."""
    height, width = geometry.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = (torch.stack([x, y], -1) * STRIDE + (STRIDE - 1) / 2).to(geometry)  # (h, w, 2)
    raw = geometry.permute(0, 2, 3, 1)  # (batch, h, w, 14)
    sides = raw[..., :4].clamp(-4, 5).exp() * STRIDE
    boxes = torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], -1)
    extent = (sides[..., :2] + sides[..., 2:])[..., None, :]
    landmarks = centres[:, :, None] + raw[..., 4:].unflatten(-1, (5, 2)) * extent
    return boxes, landmarks


def _agreed(heat: Tensor, geometry: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Box (n, 4) and landmarks (n, 5, 2) of the face in the middle of each close-up: the mean over the cells that are
    sure of it, which is a tenth more exact than the surest cell alone."""
    boxes, landmarks = _everywhere(geometry)
    cells = heat.shape[-1]
    near = (torch.arange(cells, device=heat.device) * STRIDE + (STRIDE - 1) / 2 - size / 2).abs() < size / 4
    scores = heat.sigmoid()[:, 0] * (near[:, None] & near[None])
    weights = scores * (scores > 0.3 * scores.amax((1, 2), keepdim=True))
    weights = (weights / weights.sum((1, 2), keepdim=True).clamp_min(1e-9))[..., None]
    return (boxes * weights).sum((1, 2)), (landmarks * weights[..., None]).sum((1, 2))


def _suppress(boxes: Tensor) -> list[int]:
    kept: list[int] = []
    for i, box in enumerate(boxes):
        if kept:
            others = boxes[kept]
            inside = (
                (torch.minimum(others[:, 2:], box[2:]) - torch.maximum(others[:, :2], box[:2])).clamp_min(0).prod(1)
            )
            area = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - inside
            if (inside / area).max() > OVERLAP:
                continue
        kept.append(i)
    return kept


def _block(before: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.SiLU(inplace=True)
    )
