"""A reader of attributes through the mini recogniser's early feature maps: 118 kB beside weights that are there anyway.

What a recogniser forgets on its way to the person (expression, hair, glasses, where the head turns) its first blocks still see.
It never measures: rewards and guidance by words (`idgen.rewards.words`) read with it, the attribute probe tells how that went.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgen.checkpoint import load_strict, load_weights, sha256
from idgen.errors import IdgenError
from idgen.models.mini_recogniser import MiniRecogniser
from idgen.models.probe import ARCHITECTURE as PROBE
from idgen.models.probe import AttributeReader, load_probe
from idgen.models.registry import load_recogniser, read_config
from idgen.weights import find_mini

ARCHITECTURE = "recogniser_reader"
FILE = "model.safetensors"


class RecogniserReader(AttributeReader):
    """A few convolutions and linear heads over a frozen recogniser's maps of the whole picture; no alignment. Its finer map is
    looked at before it is halved: lips and lids are a pixel or two of it.

    Args:
        classes: attribute -> the names of its values.
        recogniser: stays as it is.
        recogniser_sha256: of its weights; without another one the maps mean something else.
        channels: taken from each of the two maps, of the convolutions at an eighth and a sixteenth of the side, and of the last.
        size: pixels per side at which pictures are read; a multiple of 32.
    """

    def __init__(
        self,
        classes: Mapping[str, Sequence[str]],
        recogniser: MiniRecogniser,
        recogniser_sha256: str,
        channels: Sequence[int] = (20, 32, 24),
        size: int = 128,
    ) -> None:
        taken, looking, last = channels
        super().__init__(classes, last * (size // 32) ** 2)
        self.recogniser = recogniser.eval().requires_grad_(False)
        self.recogniser_sha256, self.channels, self.size = recogniser_sha256, list(channels), size
        low, middle = recogniser.widths[:2]
        self.take_low = nn.Sequential(_convolution(low, taken, 1, 1), _convolution(taken, taken, 3, 2))
        self.take_middle = _convolution(middle, taken, 1, 1)
        self.look = nn.Sequential(
            _convolution(2 * taken, looking, 3, 2),
            _convolution(looking, looking, 3, 1),
            _convolution(looking, last, 3, 2),
        )

    @property
    def config(self) -> dict[str, Any]:
        read = {"recogniser_sha256": self.recogniser_sha256, "channels": self.channels, "size": self.size}
        return {"architecture": ARCHITECTURE, "classes": self.classes, **read}

    def own_state(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.state_dict().items() if not name.startswith("recogniser.")}

    def train(self, mode: bool = True) -> RecogniserReader:
        super().train(mode)
        self.recogniser.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        low, middle = self.recogniser.early_maps(F.adaptive_avg_pool2d(images, self.size))
        return self.look(torch.cat([self.take_low(low), self.take_middle(middle)], 1)).flatten(1)


def open_recogniser(folder: Path) -> tuple[MiniRecogniser, str]:
    """A recogniser to read through, and the SHA-256 of its weights.

    Raises:
        IdgenError: it is not of the mini family's architecture, or its files are missing or damaged.
    """
    recogniser = load_recogniser(folder)
    if not isinstance(recogniser, MiniRecogniser):
        raise IdgenError(
            f"{folder} is no mini recogniser: a reader reads through that architecture's feature maps only"
        )
    return recogniser, sha256(folder / FILE)


def load_reader(folder: str | Path | None = None, device: torch.device | str = "cpu") -> AttributeReader:
    """The family's reader, or the one in `folder`: of this kind, or an attribute probe that does not measure. Frozen.

    Raises:
        IdgenError: the folder or a file of it is missing or damaged, of no reader, or of another recogniser than the family's.
    """
    path = Path(folder) if folder is not None else find_mini("reader")
    config = read_config(path)
    if config.get("architecture") == PROBE:
        return load_probe(str(path), device).requires_grad_(False)
    if config.get("architecture") != ARCHITECTURE:
        raise IdgenError(f"{path} is no reader of attributes: give a folder of train/probe.py's weights")
    missing = [name for name in ("classes", "recogniser_sha256", "channels", "size") if name not in config]
    if missing:
        raise IdgenError(f"{path}/config.json does not say {', '.join(missing)}: train the reader anew")
    if len(config["channels"]) != 3:
        raise IdgenError(f"the reader in {path} is of an older kind: train it anew (configs/mini/reader.yaml)")
    recogniser, digest = open_recogniser(find_mini("recogniser"))
    if config["recogniser_sha256"] != digest:
        raise IdgenError(
            f"the reader in {path} was trained with another recogniser than the family's: train it anew"
            " (configs/mini/reader.yaml), or let $IDGEN_MINI name the family that has its recogniser"
        )
    reader = RecogniserReader(config["classes"], recogniser, digest, config["channels"], config["size"])
    inside = {f"recogniser.{name}": value for name, value in recogniser.state_dict().items()}
    load_strict(reader, load_weights(path / FILE) | inside, what="the reader of attributes")
    return reader.to(device).eval().requires_grad_(False)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )
