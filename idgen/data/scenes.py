"""Faces pasted on clutter, a whole batch at once on any device: what a detector learns from. `clutter.py` makes the scenes,
one by one and reproducible everywhere, on which it is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from idgen.data.clutter import face_boxes
from idgen.data.faces import FaceFolder

MOST = 5  # faces of a scene
CELLS = 24  # of the coarsest noise behind them
PIECES, RECTANGLES = 6, 7
CHANCES = torch.tensor([0.12, 0.4, 0.22, 0.14, 0.0, 0.12])  # of no, one, two ... faces


@dataclass(frozen=True)
class SceneBatch:
    """Pictures with their faces.

    Attributes:
        pictures: float (batch, 3, size, size) in [-1, 1].
        boxes: float (batch, faces, 4) left, top, right, bottom px.
        landmarks: float (batch, faces, 5, 2) px.
        present: bool (batch, faces), which of them are there.
    """

    pictures: Tensor
    boxes: Tensor
    landmarks: Tensor
    present: Tensor


class SceneMaker:
    """Draws scenes of a folder's faces; the randomness is torch's global one on the device.

    Args:
        data: of `idgen synth`.
        device: where the scenes are made.
    """

    def __init__(self, data: FaceFolder, device: torch.device) -> None:
        self.data, self.device = data, device
        self.boxes = torch.from_numpy(face_boxes(data)).to(device)
        self.landmarks = torch.from_numpy(np.asarray(data.landmarks)).to(device)

    def close_ups(self, rng: np.random.Generator, count: int, size: int = 128) -> SceneBatch:
        """Faces that nearly fill their picture, as the detector's second look sees them."""
        photos = rng.integers(len(self.data), size=count)
        pictures = self._clutter(photos, size)
        extent = (self.boxes[photos, 2:] - self.boxes[photos, :2]).amax(1)
        # The second look crops 1.7 times the box that the first look guessed, which may be off by a fifth.
        side = self.data.images.shape[1] * size / (1.7 * extent) * torch.exp(0.15 * self._normal(count))
        place = size / 2 + 0.05 * size * self._normal(count, 2)
        pictures, boxes, landmarks = self._paste(photos, pictures, place, side)
        present = torch.ones(count, 1, dtype=torch.bool, device=self.device)
        return SceneBatch(pictures, boxes[:, None], landmarks[:, None], present)

    def scenes(self, rng: np.random.Generator, count: int, size: int = 256) -> SceneBatch:
        """Whole pictures with no, one or several faces, from about 16 px wide to filling them: a third are portraits."""
        photos = rng.integers(len(self.data), size=(MOST, count))
        pictures = self._clutter(photos[0], size)
        portrait = self._uniform(count) < 0.35
        wanted = torch.multinomial(CHANCES, count, replacement=True).to(self.device)
        wanted = torch.where(portrait, 1, wanted)
        taken = torch.zeros(count, 0, 3, device=self.device)  # x, y, reach of the faces that are there
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for index in range(MOST):
            # Of the whole photo, of which the face is about 0.6.
            low, high = torch.where(portrait, 0.75, 28 / 256), torch.where(portrait, 1.35, 0.9)
            side = size * low * (high / low) ** self._uniform(count)
            margin = 0.3 * side
            place = margin[:, None] + (size - 2 * margin)[:, None] * self._uniform(count, 2)
            reach = 0.45 * side
            near = (taken[..., :2] - place[:, None]).norm(dim=-1) < taken[..., 2] + reach[:, None]
            there = (index < wanted) & ~near.any(1)
            pasted, boxes, landmarks = self._paste(photos[index], pictures, place, side)
            pictures = torch.where(there[:, None, None, None], pasted, pictures)
            mine = torch.cat([place, torch.where(there, reach, -1e6)[:, None]], 1)
            taken = torch.cat([taken, mine[:, None]], 1)
            # A face that is mostly outside is nobody's to find.
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2
            found.append((boxes, landmarks, there & ((centre > 0) & (centre < size)).all(1)))
        boxes, landmarks, present = (torch.stack(part, 1) for part in zip(*found, strict=True))
        return SceneBatch(pictures, boxes, landmarks, present)

    def _paste(
        self, photos: np.ndarray, pictures: Tensor, place: Tensor, side: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each picture with one photo in it, the face's middle at `place` (batch, 2) and its own side `side` (batch,) px;
        the face's box and landmarks there."""
        size, source = pictures.shape[-1], self.data.images.shape[1]
        boxes, landmarks = self.boxes[photos], self.landmarks[photos]
        angle, scale = 0.2 * self._normal(len(photos)), side / source
        cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
        turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        shift = place - torch.einsum("bij,bj->bi", turn, middle)
        # grid_sample asks where each pixel of the scene comes from.
        steps = torch.arange(size, device=self.device, dtype=torch.float32)
        target = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1) - shift[:, None, None]
        grid = (torch.einsum("bij,bhwj->bhwi", torch.linalg.inv(turn), target) + 0.5) / source * 2 - 1
        images = _softened(self._photos(photos), scale)
        masks = torch.from_numpy(self.data.masks[photos]).to(self.device)[:, None] > 0
        cover = (masks | (self._uniform(len(photos), 1, 1, 1) >= 0.6)).float()
        stacked = F.grid_sample(torch.cat([images, cover], 1), grid, "bilinear", "zeros", align_corners=False)
        alpha = stacked[:, 3:]
        # The turned box is larger than the face: take its sides' lengths, not its corners' extremes.
        half = (boxes[:, 2:] - boxes[:, :2]) * scale[:, None] / 2
        moved = torch.einsum("bij,bpj->bpi", turn, landmarks) + shift[:, None]
        return pictures * (1 - alpha) + stacked[:, :3] * alpha, torch.cat([place - half, place + half], 1), moved

    def _clutter(self, photos: np.ndarray, size: int) -> Tensor:
        """Noise of some coarseness, pieces of photos (never enough of one for a face), rectangles."""
        count = len(photos)
        kind = self._uniform(count, 1, 1, 1)
        noise = self._uniform(count, 3, CELLS, CELLS) * 2 - 1
        share = (2 + (CELLS - 2) * self._uniform(count, 1, 1, 1)) / CELLS
        steps = torch.linspace(-1, 1, size, device=self.device)
        plane = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
        grid = (plane + 1) * share - 1
        smooth, hard = (F.grid_sample(noise, grid, mode, "border", False) for mode in ("bicubic", "nearest"))
        pictures = torch.where(self._uniform(count, 1, 1, 1) < 0.3, hard, smooth.clamp(-1, 1))
        pictures = torch.where(kind < 0.15, noise[:, :, :1, :1], pictures)
        images, source = self._photos(photos).roll(1, 0), self.data.images.shape[1]
        pieces = torch.where(kind[:, 0] > 0.4, torch.randint(1, PIECES + 1, (count, 1, 1), device=self.device), 0)
        pixels = (plane + 1) / 2 * size
        for index in range(PIECES):
            piece = 10 + 16 * self._uniform(count, 1, 1, 1)
            wide = (piece * (1 + 2 * self._uniform(count, 1, 1, 1))).clamp_max(size)
            corner = self._uniform(count, 1, 1, 2) * (size - wide)
            inside = (pixels - corner) / wide  # 0 .. 1 within the piece
            there = ((inside > 0) & (inside < 1)).all(-1) & (index < pieces)
            start = self._uniform(count, 1, 1, 2) * (source - piece)
            seen = F.grid_sample(images, (start + inside * piece) / source * 2 - 1, "bilinear", "border", False)
            pictures = torch.where(there[:, None], seen, pictures)
        rectangles = torch.randint(0, RECTANGLES + 1, (count, 1, 1), device=self.device)
        for index in range(RECTANGLES):
            corner = self._uniform(count, 1, 1, 2) * size
            extent = 2 + self._uniform(count, 1, 1, 2) * (size / 2 - 2)
            there = ((pixels >= corner) & (pixels < corner + extent)).all(-1) & (index < rectangles)
            pictures = torch.where(there[:, None], self._uniform(count, 3, 1, 1) * 2 - 1, pictures)
        return pictures

    def _photos(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(self.data.images[numbers]).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device)


def _softened(images: Tensor, scale: Tensor) -> Tensor:
    """Averaged first where they are to shrink to less than 0.6: a picture that is sampled thinly aliases."""
    size = images.shape[-2:]
    for factor, low, high in ((2, 0.4, 0.6), (3, 0.28, 0.4), (4, 0.0, 0.28)):
        coarse = F.interpolate(F.avg_pool2d(images, factor), size, mode="bilinear", align_corners=False)
        here = (scale >= low) & (scale < high)
        images = torch.where(here[:, None, None, None], coarse, images)
    return images
