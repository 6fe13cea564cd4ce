"""Faces pasted at random places, sizes and angles on clutter: what a detector is measured on. `scenes.py` makes what it learns
from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from idgen.data.faces import FaceFolder


@dataclass(frozen=True)
class Scene:
    """One picture with its faces.

    Attributes:
        picture: float (3, size, size) in [-1, 1].
        boxes: float (n, 4) left, top, right, bottom px.
        landmarks: float (n, 5, 2) px.
    """

    picture: Tensor
    boxes: Tensor
    landmarks: Tensor


def face_boxes(data: FaceFolder) -> np.ndarray:
    """(n, 4) px: the box around the 68 landmarks, raised to take in the forehead."""
    points = np.array(data.column("landmarks68"), np.float32)
    low, high = points.min(1), points.max(1)
    low[:, 1] -= 0.3 * (high[:, 1] - low[:, 1])
    return np.concatenate([low, high], 1)


def compose(data: FaceFolder, boxes: np.ndarray, rng: np.random.Generator, size: int = 256) -> Scene:
    """A scene with no, one or several faces of the folder, from about 16 px wide to filling it: a third are portraits."""
    picture = _clutter(data, rng, size)
    taken: list[tuple[float, float, float]] = []
    found_boxes, found_landmarks = [], []
    portrait = rng.random() < 0.35
    for _ in range(1 if portrait else int(rng.choice([0, 1, 2, 3, 5], p=[0.12, 0.4, 0.22, 0.14, 0.12]))):
        # Of the whole photo, of which the face is about 0.6.
        low, high = (0.75, 1.35) if portrait else (28 / 256, 0.9)
        side = size * float(np.exp(rng.uniform(np.log(low), np.log(high))))
        reach = 0.45 * side
        x, y = rng.uniform(0.3 * side, size - 0.3 * side, 2) if side < 1.6 * size else (size / 2, size / 2)
        if any(np.hypot(x - u, y - v) < reach + other for u, v, other in taken):
            continue
        taken.append((x, y, reach))
        photo = int(rng.integers(len(data)))
        box, landmarks, picture = _paste(data, boxes, photo, picture, (x, y), side, rng)
        # A face that is mostly outside is nobody's to find.
        centre = (box[:2] + box[2:]) / 2
        if bool(((centre > 0) & (centre < size)).all()):
            found_boxes.append(box)
            found_landmarks.append(landmarks)
    return Scene(
        picture,
        torch.stack(found_boxes) if found_boxes else torch.zeros(0, 4),
        torch.stack(found_landmarks) if found_landmarks else torch.zeros(0, 5, 2),
    )


def _paste(
    data: FaceFolder,
    boxes: np.ndarray,
    photo: int,
    picture: Tensor,
    place: tuple[float, float],
    side: float,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Puts a photo, its face's middle at `place` and its own side `side` px, into the picture."""
    size = picture.shape[-1]
    source = data.images.shape[1]
    angle, scale = rng.normal(0, 0.2), side / source
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = (boxes[photo, :2] + boxes[photo, 2:]) / 2
    shift = np.array(place) - turn @ middle
    # grid_sample asks where each pixel of the scene comes from.
    back = np.linalg.inv(turn)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    from_x = back[0, 0] * (x - shift[0]) + back[0, 1] * (y - shift[1])
    from_y = back[1, 0] * (x - shift[0]) + back[1, 1] * (y - shift[1])
    grid = torch.from_numpy(np.stack([(from_x + 0.5), (from_y + 0.5)], -1).astype(np.float32)) / source * 2 - 1
    image = torch.from_numpy(data.images[photo]).permute(2, 0, 1)[None].float() / 127.5 - 1
    if scale < 0.6:  # smaller than half: average first, or the picture aliases
        factor = int(1 / scale)
        image = F.interpolate(F.avg_pool2d(image, factor), image.shape[-2:], mode="bilinear", align_corners=False)
    cover = torch.ones(1, 1, source, source)
    if rng.random() < 0.6:
        cover = torch.from_numpy((data.masks[photo] > 0).astype(np.float32))[None, None]
    stacked = F.grid_sample(
        torch.cat([image, cover], 1), grid[None], mode="bilinear", padding_mode="zeros", align_corners=False
    )[0]
    alpha = stacked[3:]
    picture = picture * (1 - alpha) + stacked[:3] * alpha
    corners = boxes[photo][[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2) @ turn.T + shift
    # The turned box is larger than the face: take its sides' lengths, not its corners' extremes.
    half = (boxes[photo, 2:] - boxes[photo, :2]) * scale / 2
    centre = corners.mean(0)
    box = torch.from_numpy(np.concatenate([centre - half, centre + half]).astype(np.float32))
    landmarks = torch.from_numpy((data.landmarks[photo] @ turn.T + shift).astype(np.float32))
    return box, landmarks, picture


def _clutter(data: FaceFolder, rng: np.random.Generator, size: int) -> Tensor:
    kind = rng.random()
    if kind < 0.15:
        return torch.full((3, size, size), float(rng.uniform(-1, 1)))
    cells = int(rng.integers(2, 24))
    noise = torch.from_numpy(rng.uniform(-1, 1, (1, 3, cells, cells)).astype(np.float32))
    mode = "nearest" if rng.random() < 0.3 else "bicubic"
    picture = F.interpolate(noise, (size, size), mode=mode)[0].clamp(-1, 1)
    if kind > 0.4:  # pieces of pictures, but never enough of one for a face
        for _ in range(int(rng.integers(2, 14))):
            piece = int(rng.integers(10, 26))
            photo = data.images[int(rng.integers(len(data)))]
            u, v = rng.integers(0, photo.shape[0] - piece, 2)
            tile = (
                torch.from_numpy(photo[v : v + piece, u : u + piece].astype(np.float32)).permute(2, 0, 1)[None] / 127.5
                - 1
            )
            wide = min(size, int(piece * rng.uniform(1, 3)))
            tile = F.interpolate(tile, (wide, wide), mode="bilinear", align_corners=False)[0]
            a, b = rng.integers(0, size - wide + 1, 2)
            picture[:, b : b + wide, a : a + wide] = tile
    for _ in range(int(rng.integers(0, 8))):
        a, b = rng.integers(0, size, 2)
        w, h = rng.integers(2, size // 2, 2)
        picture[:, b : b + h, a : a + w] = torch.from_numpy(rng.uniform(-1, 1, (3, 1, 1)).astype(np.float32))
    return picture
