"""The attribute probe: a small network that reads from a face picture what its caption could say of it.

Trained on renders (`train/probe.py`), used only to measure: whether a text-to-face picture shows what the prompt
asked for, and how much pose and expression vary among the pictures of one person.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ARCHITECTURE = "attribute_probe"
# Degrees that one unit of the pose output stands for: keeps the regression in the range of the other losses.
POSE_UNIT = 20.0


@dataclass(frozen=True)
class Reading:
    """What the probe reads in n pictures.

    Attributes:
        probabilities: per attribute (n, classes), rows sum to 1.
        pose: (n, 3) degrees: yaw, pitch, roll.
        classes: the names of each attribute's classes.
    """

    probabilities: dict[str, Tensor]
    pose: Tensor
    classes: Mapping[str, Sequence[str]]

    def values(self, attribute: str) -> list[str]:
        """The likeliest value of an attribute, for each picture."""
        names = self.classes[attribute]
        return [names[index] for index in self.probabilities[attribute].argmax(-1).tolist()]


class AttributeReader(nn.Module, ABC):
    """What reads attributes: features of any kind, with one linear head per attribute and one for the pose.

    Args:
        classes: attribute -> the names of its values, e.g. {"glasses": ["glasses", "none", "sunglasses"]}.
        width: length of the features.
    """

    def __init__(self, classes: Mapping[str, Sequence[str]], width: int) -> None:
        super().__init__()
        self.classes, self.width = {attribute: list(names) for attribute, names in classes.items()}, width
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(names)) for name, names in self.classes.items()})
        self.pose = nn.Linear(width, 3)

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What config.json beside the weights holds."""

    def own_state(self) -> dict[str, Tensor]:
        """What belongs into the file of its weights."""
        return self.state_dict()

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """What the heads read: (n, 3, height, width) in [-1, 1] -> (n, width)."""

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Pictures (n, 3, height, width) in [-1, 1] -> logits per attribute (n, classes), pose (n, 3) degrees."""
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}, self.pose(features) * POSE_UNIT

    @torch.no_grad()
    def read(self, images: Tensor, batch: int = 64) -> Reading:
        """Read pictures (n, height, width, 3) uint8, whole portraits as the renderer frames them."""
        self.eval()
        parameter = next(self.parameters())
        probabilities: dict[str, list[Tensor]] = {name: [] for name in self.classes}
        poses = []
        for part in images.split(batch):
            logits, pose = self(to_network(part.to(parameter.device)).to(parameter.dtype))
            for name, values in logits.items():
                probabilities[name].append(values.float().softmax(-1).cpu())
            poses.append(pose.float().cpu())
        return Reading(
            {name: torch.cat(parts) for name, parts in probabilities.items()}, torch.cat(poses), self.classes
        )


class AttributeProbe(AttributeReader):
    """A residual network of its own.

    Args:
        classes: see `AttributeReader`.
        widths: channels of the stages; the first runs at size / patch px, each next at half of that.
        patch: pixels per side that are stacked as channels before the first convolution.
        size: pixels per side at which pictures are read.
    """

    def __init__(
        self,
        classes: Mapping[str, Sequence[str]],
        widths: Sequence[int] = (48, 128, 256),
        patch: int = 2,
        size: int = 64,
    ) -> None:
        super().__init__(classes, 256)
        self.widths, self.patch, self.size = list(widths), patch, size
        # Patches of pixels as channels: a fraction of the time of convolutions at full size on a CPU.
        self.stem = nn.Sequential(nn.PixelUnshuffle(patch), _convolution(3 * patch**2, widths[0]))
        self.stages = nn.Sequential(*(_Stage(a, b) for a, b in pairwise(widths)))
        # 4 x 4 cells rather than one mean: where the iris or the mouth's corner lies is what tells the attributes.
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1] * 16, 256), nn.BatchNorm1d(256), nn.ReLU())

    @property
    def config(self) -> dict[str, Any]:
        sizes = {"widths": self.widths, "patch": self.patch, "size": self.size}
        return {"architecture": ARCHITECTURE, "classes": self.classes, **sizes}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AttributeProbe:
        return cls(config["classes"], config["widths"], config.get("patch", 4), config.get("size", 64))

    def features(self, images: Tensor) -> Tensor:
        return self.trunk(self.pool(self.maps(images)[-1]))

    def maps(self, images: Tensor) -> list[Tensor]:
        """The feature maps (n, width, side, side) after the first convolution and each stage, of (n, 3, height, width)."""
        maps = [self.stem(F.adaptive_avg_pool2d(images, self.size))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


def to_network(images: Tensor) -> Tensor:
    """(n, height, width, 3) uint8 -> (n, 3, height, width) float in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def load_probe(folder: str | None = None, device: torch.device | str = "cpu") -> AttributeProbe:
    """The shipped probe, or the one in `folder` (config.json, model.safetensors).

    Raises:
        IdgenError: the folder or a file of it is missing or damaged, or of another network.
    """
    from pathlib import Path

    from idgen.checkpoint import load_strict, load_weights
    from idgen.errors import IdgenError
    from idgen.models.registry import read_config
    from idgen.weights import find_mini

    path = Path(folder) if folder is not None else find_mini("probe")
    config = read_config(path)
    if config.get("architecture") != ARCHITECTURE:
        raise IdgenError(f"{path} is no attribute probe: give a folder of train/probe.py's weights")
    probe = AttributeProbe.from_config(config)
    load_strict(probe, load_weights(path / "model.safetensors"), what="the attribute probe")
    return probe.to(device).eval()


class _Stage(nn.Module):
    """Halve the size, then one residual block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down = _convolution(inputs, outputs, stride=2)
        self.block = nn.Sequential(_convolution(outputs, outputs), _convolution(outputs, outputs))

    def forward(self, features: Tensor) -> Tensor:
        features = self.down(features)
        return features + self.block(features)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
