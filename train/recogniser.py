"""Trains a face recogniser on a folder of people: `accelerate launch train/recogniser.py --config configs/mini/recogniser.yaml`.

Margin losses on class centres (ArcFace, arXiv 1801.07698, and relatives). Half of what the recogniser may see of a person,
hair, beard, make-up, glasses, changes between shots; the margin then has to live on the shape of the face.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from idgen.checkpoint import save_weights
from idgen.data.augment import erase, jitter_landmarks, photometric
from idgen.data.faces import FaceFolder
from idgen.faces.align_torch import norm_crop_torch
from idgen.files import atomic_write
from idgen.losses.margin import Margin, MarginHead
from idgen.metrics.verification import tar_at_far, ten_fold_accuracy
from idgen.models.registry import build_recogniser, load_recogniser
from idgen.train.config import TrainConfig
from idgen.train.loop import Batch, Stage, run


class RecogniserConfig(TrainConfig):
    """Settings of train/recogniser.py."""

    data: Path = Field(description="folder of `idgen synth` with the people to learn")
    validation: Path = Field(description="folder of `idgen synth` with other people")
    name: str = Field(description="goes into the weights' config; an Identity remembers it")
    architecture: str = "mini_recogniser"
    loss: Margin = "arcface"
    margin: float = 0.4
    scale: float = 32.0
    photos_per_person: int = Field(2, ge=1, description="photos of one person in a batch")
    augmentation: float = Field(
        1.0, ge=0, description="strength of colour changes; 0.3 of the crops have a part covered at 1"
    )


class RecogniserStage(Stage[RecogniserConfig]):
    """The recogniser and its class centres."""

    module: _Classifier

    def __init__(self, config: RecogniserConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.data, self.held_out = FaceFolder.open(config.data), FaceFolder.open(config.validation)
        self.description = {"architecture": config.architecture, "name": config.name, "embedding_dim": 512}
        network = build_recogniser(self.description)
        self.module = _Classifier(
            network, MarginHead(512, len(self.data.shots), config.loss, config.scale, config.margin)
        )

    def batch(self, rng: np.random.Generator) -> Batch:
        per = self.config.photos_per_person
        count = -(-self.config.train_batch_size // per)
        people = rng.choice(len(self.data.shots), count, replace=len(self.data.shots) < count)
        chosen = self.data.shots_of(people, per, rng).reshape(-1)
        return self._load(self.data, chosen)

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            crops = norm_crop_torch(batch["images"], jitter_landmarks(batch["landmarks"]))
            strength = self.config.augmentation
            crops = erase(photometric(crops, strength), 0.3 * strength).contiguous(memory_format=torch.channels_last)
        # The margin grows over the first third: from a random start the full one does not converge.
        return model(crops, batch["people"], min(1.0, 3 * progress))

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        embeddings = []
        for start in range(0, len(self.held_out), 128):
            batch = self._load(self.held_out, np.arange(start, min(start + 128, len(self.held_out))))
            embeddings.append(self.module.network(norm_crop_torch(batch["images"], batch["landmarks"])).float())
        unit = F.normalize(torch.cat(embeddings)).cpu()
        people = torch.from_numpy(self.held_out.people)
        pairs = torch.triu(torch.ones(len(people), len(people), dtype=torch.bool), 1)
        alike = people[:, None] == people[None]
        similarity = unit.double() @ unit.double().T  # autocast would round scores to bfloat16
        same, different = similarity[alike & pairs], similarity[~alike & pairs]
        figures = {"accuracy": ten_fold_accuracy(same, different)} if min(len(same), len(different)) >= 10 else {}
        # A small validation folder has too few pairs for the rarer rates.
        rates = [rate for rate in (1e-2, 1e-3) if rate * len(different) >= 1]
        return figures | {f"tar_at_{rate:g}": tar_at_far(same, different, rate).tar for rate in rates}, None

    def save(self, folder: Path) -> None:
        with atomic_write(folder / "config.json") as temporary:
            temporary.write_text(json.dumps(self.description, indent=2) + "\n")
        state = {k: v.half() if v.is_floating_point() else v for k, v in self.module.network.state_dict().items()}
        save_weights(folder / "model.safetensors", state, {"format": "pt"})

    def load(self, folder: Path) -> None:
        self.module.network.load_state_dict(load_recogniser(folder).state_dict())

    def _load(self, data: FaceFolder, chosen: np.ndarray) -> Batch:
        images = torch.from_numpy(data.images[chosen]).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        return {
            "ids": [data.name(int(photo)) for photo in chosen],
            "images": images,
            "landmarks": torch.from_numpy(data.landmarks[chosen]).to(self.device),
            "people": torch.from_numpy(data.people[chosen]).to(self.device),
        }


class _Classifier(nn.Module):
    def __init__(self, network: nn.Module, head: MarginHead) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, crops: Tensor, people: Tensor, strength: float) -> dict[str, Tensor]:
        return {"loss": self.head(self.network(crops), people, strength)}


if __name__ == "__main__":
    run(RecogniserStage, RecogniserConfig)
