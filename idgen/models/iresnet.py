"""IResNet, the backbone of ArcFace recognisers, with the parameter names of insightface's arcface_torch.

Duta et al., "Improved Residual Networks for Image and Video Recognition", 2020; Deng et al., "ArcFace", 2019. Facts from
deepinsight/insightface `recognition/arcface_torch/backbones/iresnet.py`: no activation after the sum of a block, every
BatchNorm with eps 1e-5, a 512-d output that is not normalised.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch
from torch import nn

from idgen.checkpoint import load_strict, load_weights
from idgen.errors import IdgenError

LAYERS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
}


class IResNet(nn.Module):
    """Aligned faces (B, 3, size, size), RGB in [-1, 1] -> raw embeddings (B, embedding_dim).

    Args:
        layers: residual blocks in each of the four stages.
        widths: channels of the four stages.
        size: side of the input in pixels, a multiple of 16.
        embedding_dim: length of the output.
    """

    def __init__(
        self,
        layers: tuple[int, ...] = LAYERS["iresnet50"],
        widths: tuple[int, ...] = (64, 128, 256, 512),
        size: int = 112,
        embedding_dim: int = 512,
    ) -> None:
        super().__init__()
        if len(layers) != 4 or len(widths) != 4 or size % 16:
            raise IdgenError("IResNet has four stages and an input whose side is a multiple of 16")
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        inputs = (widths[0], *widths[:3])
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(*(Block(into if index == 0 else out, out, 2 if index == 0 else 1) for index in range(blocks)))
            for into, out, blocks in zip(inputs, widths, layers, strict=True)
        )
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3] * (size // 16) ** 2, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.bn1(self.conv1(images)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.features(self.fc(self.bn2(x).flatten(1)))


def iresnet18(embedding_dim: int = 512) -> IResNet:
    return IResNet(LAYERS["iresnet18"], embedding_dim=embedding_dim)


def iresnet34(embedding_dim: int = 512) -> IResNet:
    return IResNet(LAYERS["iresnet34"], embedding_dim=embedding_dim)


def iresnet50(embedding_dim: int = 512) -> IResNet:
    return IResNet(LAYERS["iresnet50"], embedding_dim=embedding_dim)


def iresnet100(embedding_dim: int = 512) -> IResNet:
    return IResNet(LAYERS["iresnet100"], embedding_dim=embedding_dim)


def slim_iresnet(embedding_dim: int = 512) -> IResNet:
    """An IResNet-18 of a quarter of the channels: a sixteenth of the work. The mini family's held-out recogniser."""
    return IResNet(LAYERS["iresnet18"], (16, 32, 64, 128), embedding_dim=embedding_dim)


class Block(nn.Module):
    """BN - conv - BN - PReLU - conv (stride) - BN, plus the input (through a 1x1 convolution where the shape changes)."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(into)
        self.conv1 = nn.Conv2d(into, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.prelu = nn.PReLU(out)
        self.conv2 = nn.Conv2d(out, out, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or into != out:
            self.downsample = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        return skip + self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))


def load_iresnet(path: str | os.PathLike[str]) -> IResNet:
    """The IResNet in a checkpoint of arcface_torch (`backbone.pth`, `model.pt`) or the same weights as safetensors."""
    return from_state(load_weights(path), str(path))


def from_state(state: Mapping[str, torch.Tensor], what: str) -> IResNet:
    """An IResNet in eval mode whose depth and widths are read off its weights.

    Args:
        state: keys of arcface_torch; a leading `module.` of DistributedDataParallel is dropped.
        what: names the weights in errors.

    Raises:
        IdgenError: the weights are not an IResNet's.
    """
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    blocks = {match.groups() for key in state if (match := re.match(r"layer(\d)\.(\d+)\.conv1\.weight$", key))}
    layers = tuple(sum(stage == str(number) for stage, _ in blocks) for number in (1, 2, 3, 4))
    ends = [state.get(f"layer{number}.0.conv2.weight") for number in (1, 2, 3, 4)]
    fc = state.get("fc.weight")
    if fc is None or fc.ndim != 2 or any(end is None or end.ndim != 4 for end in ends):
        raise IdgenError(
            f"{what}: not the weights of an IResNet (no layer1 to layer4 and fc in arcface_torch's naming)"
        )
    widths = tuple(end.shape[0] for end in ends if end is not None)
    side = round((fc.shape[1] / widths[3]) ** 0.5)
    model = IResNet(layers, widths, 16 * side, fc.shape[0])
    load_strict(model, state, what)
    return model.eval()
