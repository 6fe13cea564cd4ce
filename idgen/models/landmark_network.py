"""A third look at a face that was found: where exactly its five landmarks are.

The detector names landmarks per cell of 8 px, which leaves an error of 7 % of the distance between the eyes. A small network
that sees the face upright and at one size, as those landmarks place it, has little left to find: the cascade of MTCNN (Zhang
et al., arXiv 1604.02878), whose last network does the same from a crop of 48 px.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from idgen.faces.align import template
from idgen.faces.align_torch import invert_similarity, sample_at, similarity_matrix_torch

SIDE = 64  # px of the crop
# The part of ArcFace's 112-px template that the crop shows: the landmarks and half of the eyes' distance around them.
CORNER, EXTENT = (20.0, 36.0), 72.0
ROUNDS = 2  # the second look starts from what the first found


class LandmarkNetwork(nn.Module):
    """Crops (n, 3, 64, 64) in [-1, 1] -> landmarks (n, 5, 2), as shifts from the template's in sides of the crop."""

    def __init__(self, widths: Sequence[int] = (16, 32, 48)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((3, *widths), widths, strict=False):
            layers += [_block(before, width, 2), _block(width, width, 1)]
        self.features = nn.Sequential(*layers, nn.Conv2d(widths[-1], 16, 1), nn.SiLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16 * (SIDE // 8) ** 2, 64), nn.SiLU(), nn.Linear(64, 10))
        nn.init.zeros_(self.head[-1].weight)  # type: ignore[arg-type]  # starts by leaving landmarks where the template has them

    def forward(self, crops: Tensor) -> Tensor:
        return self.head(self.features(crops)).unflatten(-1, (5, 2))

    @torch.no_grad()
    def refine(self, pictures: Tensor, landmarks: Tensor) -> Tensor:
        """Better landmarks (n, 5, 2) of the faces in `pictures` (n, 3, h, w) in [-1, 1], in the same pixels."""
        dtype = next(self.parameters()).dtype
        for _ in range(ROUNDS):
            shifts = self(crop_faces(pictures, landmarks).to(dtype)).float()
            landmarks = from_crop(landmarks, shifts)
        return landmarks


def crop_faces(pictures: Tensor, landmarks: Tensor) -> Tensor:
    """The upright crops (n, 3, 64, 64) that `landmarks` (n, 5, 2) place; grey beyond the picture."""
    steps = (torch.arange(SIDE, device=pictures.device) + 0.5) * (EXTENT / SIDE) - 0.5
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1) + torch.tensor(CORNER, device=pictures.device)
    grid = torch.cat([grid, torch.ones_like(grid[..., :1])], -1)  # (64, 64, 3)
    with torch.autocast(pictures.device.type, enabled=False):  # products in half precision miss by pixels
        back = invert_similarity(similarity_matrix_torch(landmarks))
        points = torch.einsum("hwk,bjk->bhwj", grid, back)
    return sample_at(pictures, points, "zeros")


def to_crop(landmarks: Tensor, wanted: Tensor) -> Tensor:
    """What the network should answer in the crops that `landmarks` place, where the true ones are `wanted`: both (n, 5, 2)."""
    with torch.autocast(landmarks.device.type, enabled=False):
        matrix = similarity_matrix_torch(landmarks)
        placed = torch.einsum("bij,bpj->bpi", matrix[..., :2], wanted.float()) + matrix[:, None, :, 2]
    return (placed - _template(landmarks)) / EXTENT


def from_crop(landmarks: Tensor, shifts: Tensor) -> Tensor:
    """The inverse of `to_crop`."""
    with torch.autocast(landmarks.device.type, enabled=False):
        back = invert_similarity(similarity_matrix_torch(landmarks))
        placed = shifts.float() * EXTENT + _template(landmarks)
        return torch.einsum("bij,bpj->bpi", back[..., :2], placed) + back[:, None, :, 2]


def _template(like: Tensor) -> Tensor:
    return torch.from_numpy(template(112)).to(like.device, torch.float32)


def _block(before: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.SiLU(inplace=True)
    )
