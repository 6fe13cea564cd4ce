"""Trains the attribute probe on a folder of people: `accelerate launch train/probe.py --config configs/mini/probe.yaml`.

The probe reads expression, hair, glasses, head direction, beard, lipstick, gender and pose from a whole portrait; it only
ever measures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from idgen.adapters.arc2face.convert import load_model
from idgen.checkpoint import save_weights
from idgen.console import progress
from idgen.data.encoded import encode_latents
from idgen.data.faces import FaceFolder
from idgen.files import atomic_write
from idgen.models.probe import POSE_UNIT, AttributeProbe, AttributeReader, to_network
from idgen.models.recogniser_reader import RecogniserReader, load_reader, open_recogniser
from idgen.rewards.views import vae_decoder
from idgen.synthetic.shots import MIXED
from idgen.train.config import TrainConfig
from idgen.train.loop import Batch, Stage, run
from idgen.train.picture_coding import load_tiny
from idgen.train.pictures import to_bytes

ATTRIBUTES = ("expression", "hair_style", "hair_colour", "glasses", "head", "beard", "lipstick", "gender")
UNNAMED = -100  # cross entropy passes over it: a mix of expressions has no name, and who is bald shows no hair colour


class ProbeConfig(TrainConfig):
    """Settings of train/probe.py."""

    data: Path = Field(description="folder of `idgen synth` with the people to learn from")
    validation: Path = Field(description="folder of `idgen synth` with other people")
    size: int = Field(64, ge=32, description="pixels per side at which pictures are read")
    widths: tuple[int, ...] = Field((48, 128, 256), description="channels; each stage halves the resolution")
    recogniser: Path | None = Field(
        None,
        description="folder of a mini recogniser: read through its feature maps; `widths` then do not count",
    )
    vae: Path | None = Field(None, description="folder of an autoencoder: half the pictures are copies through it")
    tiny: str | None = Field(None, description="a small decoder for the copies; the autoencoder's own by default")
    shift: int = Field(3, ge=0, description="pictures of that size are moved by up to so many pixels")


class ProbeStage(Stage[ProbeConfig]):
    """The probe and the attributes of each picture as class numbers."""

    module: _Trained

    def __init__(self, config: ProbeConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.data, self.held_out = FaceFolder.open(config.data), FaceFolder.open(config.validation)
        self.classes = {
            name: sorted({_value(one, name) for one in self.data.column("attributes")} - {""}) for name in ATTRIBUTES
        }
        actions = torch.tensor(self.data.column("expression"), dtype=torch.float32)
        self.module = _Trained(self._build(), actions.shape[1])
        self.labels, self.held_out_labels = self._labels(self.data), self._labels(self.held_out)
        self.labels["actions"] = actions
        # Shrunk once to what the probe reads: (n, size, size, 3) uint8.
        starts = range(0, len(self.data), 256)
        self.small = torch.cat([_shrunk(self.data.images[start : start + 256], config.size) for start in starts])
        self.copies = self._copies(config.vae) if config.vae else None

    def batch(self, rng: np.random.Generator) -> Batch:
        chosen = torch.from_numpy(rng.integers(len(self.data), size=self.config.train_batch_size))
        small = self.small[chosen]
        if self.copies is not None:
            copied = torch.from_numpy(rng.random(len(chosen)) < 0.5)
            small = torch.where(copied.view(-1, 1, 1, 1), self.copies[chosen], small)
        images = to_network(small.to(self.device))
        # Moved as a batch, the edge repeated: generated faces sit a little off the place of rendered ones.
        pad = self.config.shift
        top, left = (int(value) for value in rng.integers(0, 2 * pad + 1, 2))
        side = self.config.size
        images = F.pad(images, (pad,) * 4, mode="replicate")[..., top : top + side, left : left + side]
        return {"images": images, **{name: values[chosen].to(self.device) for name, values in self.labels.items()}}

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        logits, pose, actions = model(_exposed(batch["images"]).contiguous(memory_format=torch.channels_last))
        parts = {
            name: F.cross_entropy(logits[name].float(), batch[name], ignore_index=UNNAMED) for name in self.classes
        }
        parts["pose"] = F.mse_loss(pose.float() / POSE_UNIT, batch["pose"] / POSE_UNIT)
        parts["actions"] = F.mse_loss(actions.float(), batch["actions"])
        total = torch.stack(list(parts.values())).sum()
        # The smallest things in the picture tell the expression: it learns slowest, and each muscle is a hint.
        return {"loss": total + parts["expression"] + 50 * parts["actions"], **parts}

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        reading = self.module.probe.read(torch.from_numpy(np.array(self.held_out.images)))
        figures = {}
        for name, probabilities in reading.probabilities.items():
            labels = self.held_out_labels[name]
            named = labels != UNNAMED
            figures[name] = _balanced(probabilities.argmax(-1)[named], labels[named])
        error = (reading.pose - self.held_out_labels["pose"]).abs().mean(0)
        return figures | {
            f"{axis}_degrees": float(e) for axis, e in zip(("yaw", "pitch", "roll"), error, strict=True)
        }, None

    def save(self, folder: Path) -> None:
        with atomic_write(folder / "config.json") as temporary:
            temporary.write_text(json.dumps(self.module.probe.config, indent=2) + "\n")
        state = {k: v.half() if v.is_floating_point() else v for k, v in self.module.probe.own_state().items()}
        save_weights(folder / "model.safetensors", state, {"format": "pt"})

    def load(self, folder: Path) -> None:
        self.module.probe.load_state_dict(load_reader(folder).state_dict())

    def _build(self) -> AttributeReader:
        if self.config.recogniser is None:
            return AttributeProbe(self.classes, self.config.widths, size=self.config.size)
        return RecogniserReader(self.classes, *open_recogniser(self.config.recogniser), size=self.config.size)

    @torch.no_grad()
    def _copies(self, folder: Path) -> Tensor:
        """The pictures as the autoencoder gives them back, shrunk: what is read in them is what a model can draw."""
        vae: Any = load_model(folder, "autoencoder").to(self.device, memory_format=torch.channels_last)
        latents = encode_latents(self.data, vae, folder / "diffusion_pytorch_model.safetensors", self.device)
        decode = load_tiny(self.config.tiny, self.device) if self.config.tiny else vae_decoder(vae)
        starts = range(0, len(latents), 128)
        parts = []
        for start in progress(starts, len(starts), "copies"):
            rows = torch.from_numpy(np.array(latents[start : start + 128])).to(self.device).float()
            with torch.autocast(self.device.type, torch.bfloat16):
                made = decode(rows.contiguous(memory_format=torch.channels_last))
            parts.append(_shrunk(to_bytes(made).numpy(), self.config.size))
        return torch.cat(parts)

    def _labels(self, data: FaceFolder) -> dict[str, Tensor]:
        shown = data.column("attributes")
        labels = {
            name: torch.tensor([names.index(v) if (v := _value(one, name)) in names else UNNAMED for one in shown])
            for name, names in self.classes.items()
        }
        return labels | {"pose": torch.tensor(data.column("pose"), dtype=torch.float32)}


class _Trained(nn.Module):
    """The probe with one more head that only its training needs: the strength of each facial action."""

    def __init__(self, probe: AttributeReader, actions: int) -> None:
        super().__init__()
        self.probe, self.actions = probe, nn.Linear(probe.width, actions)

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        features = self.probe.features(images)
        logits = {name: head(features) for name, head in self.probe.heads.items()}
        return logits, self.probe.pose(features) * POSE_UNIT, self.actions(features)


def _shrunk(images: np.ndarray, size: int) -> Tensor:
    """(n, height, width, 3) uint8 -> (n, size, size, 3) uint8, each pixel a mean."""
    if images.shape[1:3] == (size, size):
        return torch.from_numpy(np.array(images))
    small = F.adaptive_avg_pool2d(torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float(), size)
    return small.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _exposed(images: Tensor) -> Tensor:
    """Another brightness, contrast and colour cast for each picture, and a little noise."""
    count, device = len(images), images.device
    gain = 1 + 0.12 * torch.randn(count, 1, 1, 1, device=device) + 0.04 * torch.randn(count, 3, 1, 1, device=device)
    shift = 0.08 * torch.randn(count, 1, 1, 1, device=device)
    return (images * gain + shift + 0.03 * torch.randn_like(images)).clamp(-1, 1)


def _value(attributes: dict[str, Any], attribute: str) -> str:
    """The name of the class of a picture, or nothing where none can be seen."""
    if attribute == "expression" and attributes["expression"] == MIXED:
        return ""
    if attribute == "hair_colour" and attributes["hair_style"] == "bald":
        return ""
    return str(attributes[attribute])


def _balanced(read: Tensor, labels: Tensor) -> float:
    """Accuracy in which every class weighs the same."""
    return float(torch.stack([(read[labels == label] == label).float().mean() for label in labels.unique()]).mean())


if __name__ == "__main__":
    run(ProbeStage, ProbeConfig)
