"""Trains a preference head: `accelerate launch train/preference.py --config configs/mini/preference.yaml --kind reward`.

The Bradley-Terry loss (ImageReward: Xu et al., arXiv 2304.05977, eq. 1; ID-Aligner: arXiv 2404.15449, eq. 5): of two versions of
one picture the better made one scores higher. Which that is, is known without anybody's vote: the other was distorted more
(`idgen.data.distortions`). What a reward of looks needs here is to notice what a reward of identity ruins.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from idgen.checkpoint import save_weights
from idgen.data.distortions import KINDS, distort
from idgen.data.faces import FaceFolder
from idgen.files import atomic_write
from idgen.models.preference import PreferenceNet, load_preference
from idgen.train.config import TrainConfig
from idgen.train.loop import Batch, Stage, run
from idgen.train.pictures import grid, to_float, to_pil


class PreferenceConfig(TrainConfig):
    """Settings of train/preference.py."""

    kind: Literal["reward"] = Field("reward", description="a network that scores pictures")
    data: Path = Field(description="folder of `idgen synth`")
    validation: Path = Field(description="folder of `idgen synth` with other people")
    clean_share: float = Field(0.5, ge=0, le=1, description="pairs whose better picture is as it was rendered")


class PreferenceStage(Stage[PreferenceConfig]):
    """The head, and pictures to spoil."""

    module: PreferenceNet

    def __init__(self, config: PreferenceConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.data, self.held_out = FaceFolder.open(config.data), FaceFolder.open(config.validation)
        self.module = PreferenceNet()

    def batch(self, rng: np.random.Generator) -> Batch:
        chosen = rng.integers(len(self.data), size=self.config.train_batch_size)
        images, landmarks = self._load(self.data, chosen)
        worse = torch.from_numpy(rng.uniform(0.1, 1.0, len(chosen)).astype(np.float32)).to(self.device)
        share = rng.uniform(0.0, 0.7, len(chosen)) * (rng.random(len(chosen)) >= self.config.clean_share)
        better = worse * torch.from_numpy(share.astype(np.float32)).to(self.device)
        kinds = torch.from_numpy(rng.integers(len(KINDS), size=len(chosen))).to(self.device)
        kinds = torch.where(torch.from_numpy(rng.random(len(chosen)) < 0.4).to(self.device), 0, kinds)
        names = [self.data.name(int(photo)) for photo in chosen]
        return {
            "images": images,
            "landmarks": landmarks,
            "better": better,
            "worse": worse,
            "kinds": kinds,
            "ids": names,
        }

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            # Rewards are shown decoded pictures, which are a little softer than renders: softness alone must not decide.
            images = _softened(batch["images"])
            pair = [distort(images, batch["landmarks"], batch[which], batch["kinds"]) for which in ("better", "worse")]
        better, worse = model(torch.cat(pair)).chunk(2)
        return {"loss": bradley_terry(better, worse), "right": (better > worse).float().mean()}

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        images, landmarks = self._well_made()
        chosen = range(len(images))
        clean = self.module(images)
        figures, rows = {}, [images[:8]]
        for place, name in enumerate(KINDS):
            kinds = torch.full((len(chosen),), place, device=self.device)
            spoiled = distort(images, landmarks, torch.full((len(chosen),), 0.4, device=self.device), kinds)
            figures[name] = float((clean > self.module(spoiled)).float().mean())
            rows.append(spoiled[:8])
        return figures, grid(to_pil(torch.cat(rows)), min(8, len(chosen)))

    def save(self, folder: Path) -> None:
        shipped = PreferenceNet(self.module.widths)
        shipped.load_state_dict({name: value.cpu() for name, value in self.module.state_dict().items()})
        # In the state that is saved, not in the one that trains on.
        with torch.no_grad():
            shipped.calibrate(self.module(self._well_made()[0]).float().cpu())
        with atomic_write(folder / "config.json") as temporary:
            temporary.write_text(json.dumps(shipped.config, indent=2) + "\n")
        save_weights(folder / "model.safetensors", shipped.state_dict(), {"format": "pt"})

    def load(self, folder: Path) -> None:
        self.module.load_state_dict(load_preference(folder).state_dict())

    def _well_made(self) -> tuple[Tensor, Tensor]:
        """Held-out pictures as they should look, and their landmarks: always the same."""
        images, landmarks = self._load(self.held_out, np.arange(min(128, len(self.held_out))))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return _softened(images), landmarks

    def _load(self, data: FaceFolder, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        landmarks = torch.from_numpy(data.landmarks[chosen]).to(self.device)
        return to_float(data.images[chosen], self.device), landmarks


def bradley_terry(better: Tensor, worse: Tensor) -> Tensor:
    """-log of the probability that the better of each pair wins, mean over scores (pairs,)."""
    return -F.logsigmoid(better.float() - worse.float()).mean()


def _softened(images: Tensor) -> Tensor:
    """Each picture a little less sharp, by a random share."""
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return images.lerp(soft, torch.rand(len(images), 1, 1, 1, device=images.device))


if __name__ == "__main__":
    run(PreferenceStage, PreferenceConfig)
