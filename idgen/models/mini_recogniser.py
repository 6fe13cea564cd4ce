"""The two small face recognisers of the mini family, built to differ so that one can judge what the other conditioned.

`MiniRecogniser` follows IResNet (Deng et al., ArcFace, arXiv 1801.07698; insightface arcface_torch): pre-activation basic
blocks with PReLU and a depth-wise global convolution as in MobileFaceNet (arXiv 1804.07573). `JudgeRecogniser` is a
bottleneck network with squeeze-and-excitation (arXiv 1709.01507) and generalised-mean pooling: no block in common.
Both take aligned 112-px crops and halve the resolution in the stem, which keeps training possible on two CPU cores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MiniRecogniser(nn.Module):
    """Aligned crops (batch, 3, 112, 112) in [-1, 1], RGB -> raw embeddings (batch, embedding_dim).

    Args:
        widths: channels at 56, 28, 14 and 7 px.
        depths: residual blocks at 28, 14 and 7 px.
        embedding_dim: length of the embedding.
    """

    def __init__(
        self, widths: Sequence[int] = (32, 64, 128, 224), depths: Sequence[int] = (2, 3, 2), embedding_dim: int = 512
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0])
        )
        stages: list[nn.Module] = []
        for before, width, depth in zip(widths[:-1], widths[1:], depths, strict=True):
            blocks = [_ResidualBlock(before if i == 0 else width, width, 2 if i == 0 else 1) for i in range(depth)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        last = widths[-1]
        self.pool = nn.Sequential(
            nn.BatchNorm2d(last), nn.Conv2d(last, last, 7, groups=last, bias=False), nn.BatchNorm2d(last)
        )
        self.project = nn.Linear(last, embedding_dim, bias=False)
        self.normalise = nn.BatchNorm1d(embedding_dim)

    def forward(self, crops: Tensor) -> Tensor:
        features = self.pool(self.stages(self.stem(crops)))  # (batch, widths[-1], 1, 1)
        return self.normalise(self.project(features.flatten(1)))


class JudgeRecogniser(nn.Module):
    """The judge: same contract as `MiniRecogniser`, another architecture; it only ever measures.

    Args:
        widths: channels at 28, 14 and 7 px.
        depths: bottleneck blocks at 28, 14 and 7 px.
        embedding_dim: length of the embedding.
    """

    def __init__(
        self, widths: Sequence[int] = (96, 192, 320), depths: Sequence[int] = (2, 4, 2), embedding_dim: int = 512
    ) -> None:
        super().__init__()
        # Two plain convolutions on quarter-resolution patches instead of a strided one: (batch, 48, 28, 28) in.
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, 48, 3, 2, 1, bias=False),
            nn.BatchNorm2d(48),
            nn.SiLU(),
            nn.Conv2d(48, widths[0], 3, 1, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.SiLU(),
        )
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
            nn.BatchNorm2d(before),
            nn.Conv2d(before, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.skip = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.skip(x)


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
