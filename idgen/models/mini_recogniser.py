"""The two small face recognisers of the mini family, built to differ so that one can judge what the other conditioned.

`MiniRecogniser` is a plain residual network (He et al., arXiv 1512.03385) with the depth-wise global convolution of
MobileFaceNet (arXiv 1804.07573), which keeps where things sit in an aligned face. `JudgeRecogniser` is a bottleneck network
with squeeze-and-excitation (arXiv 1709.01507) and generalised-mean pooling. Both begin at a quarter of the resolution:
on a CPU the first layers of a classic recogniser cost more than all others together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MiniRecogniser(nn.Module):
    """Aligned crops (batch, 3, 112, 112) in [-1, 1], RGB -> raw embeddings (batch, embedding_dim).

    Args:
        widths: channels at 28, 14 and 7 px.
        depths: residual blocks at 28, 14 and 7 px.
        embedding_dim: length of the embedding.
    """

    def __init__(
        self, widths: Sequence[int] = (64, 128, 256), depths: Sequence[int] = (1, 2, 2), embedding_dim: int = 512
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        before = widths[0]
        self.widths, self.depths = list(widths), list(depths)
        for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                blocks.append(_ResidualBlock(before, width, 2 if level > 0 and index == 0 else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.Sequential(nn.Conv2d(before, before, 7, groups=before, bias=False), nn.BatchNorm2d(before))
        self.project = nn.Linear(before, embedding_dim, bias=False)
        self.normalise = nn.BatchNorm1d(embedding_dim)

    def forward(self, crops: Tensor) -> Tensor:
        features = self.pool(self.blocks(self.stem(crops)))  # (batch, widths[-1], 1, 1)
        return self.normalise(self.project(features.flatten(1)))

    def early_maps(self, pictures: Tensor) -> list[Tensor]:
        """What it sees before it forgets all but the person: pictures (batch, 3, h, w) in [-1, 1], of any size that 8 divides, ->
        feature maps (batch, widths[0], h / 4, w / 4) and (batch, widths[1], h / 8, w / 8)."""
        first, second = self.depths[:2]
        low = self.blocks[:first](self.stem(pictures))
        return [low, self.blocks[first : first + second](low)]


class JudgeRecogniser(nn.Module):
    """The judge: same contract as `MiniRecogniser`, another architecture; it only ever measures.

    Args:
        widths: channels at 28, 14 and 7 px.
        depths: bottleneck blocks at 28, 14 and 7 px.
        embedding_dim: length of the embedding.
    """

    def __init__(
        self, widths: Sequence[int] = (64, 192, 320), depths: Sequence[int] = (2, 4, 3), embedding_dim: int = 512
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 8, 4, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.SiLU()
        )  # overlapping patches: (batch, widths[0], 28, 28)
        stages: list[nn.Module] = []
        before = widths[0]
        for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                stages.append(_Bottleneck(before, width, 2 if level > 0 and index == 0 else 1))
                before = width
        self.stages = nn.Sequential(*stages)
        self.power = nn.Parameter(torch.tensor(3.0))
        self.project = nn.Linear(2 * before, embedding_dim)
        self.normalise = nn.BatchNorm1d(embedding_dim, affine=False)

    def forward(self, crops: Tensor) -> Tensor:
        features = self.stages(self.stem(crops))  # (batch, widths[-1], 7, 7)
        positive = features.float().clamp_min(1e-4)
        whole = positive.pow(self.power).mean((2, 3)).pow(1 / self.power)
        # Pooling forgets places; the upper half alone keeps where things sit in an aligned face.
        upper = positive[:, :, :4].pow(self.power).mean((2, 3)).pow(1 / self.power)
        return self.normalise(self.project(torch.cat([whole, upper], 1)))


class _ResidualBlock(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            pool: list[nn.Module] = [nn.AvgPool2d(2)] if stride == 2 else []
            self.skip = nn.Sequential(*pool, nn.Conv2d(before, width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class _Bottleneck(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        middle = width // 2
        self.reduce = nn.Sequential(nn.Conv2d(before, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.SiLU())
        self.spatial = nn.Sequential(
            nn.Conv2d(middle, middle, 3, stride, 1, bias=False), nn.BatchNorm2d(middle), nn.SiLU()
        )
        self.expand = nn.Sequential(nn.Conv2d(middle, width, 1, bias=False), nn.BatchNorm2d(width))
        self.squeeze = nn.Linear(width, width // 8)
        self.excite = nn.Linear(width // 8, width)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            pool: list[nn.Module] = [nn.AvgPool2d(2, ceil_mode=True)] if stride == 2 else []
            self.skip = nn.Sequential(*pool, nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.spatial(self.reduce(x)))
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(y.mean((2, 3))))))
        return F.silu(y * gate[:, :, None, None] + self.skip(x))
