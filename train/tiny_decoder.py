"""Trains a small decoder for rewards: `accelerate launch train/tiny_decoder.py --config configs/mini/tiny_decoder.yaml`.

It learns to show what the autoencoder's own decoder shows, of photos' latents and of those with a little noise, which is what
models being trained put out; where the faces are, a recogniser must see the same person.
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
from idgen.data.encoded import encode_latents
from idgen.data.faces import FaceFolder
from idgen.faces.align_torch import norm_crop_torch
from idgen.files import atomic_write
from idgen.metrics.fidelity import psnr
from idgen.models.registry import load_recogniser
from idgen.models.tiny_decoder import TinyDecoder, load_tiny_decoder
from idgen.rewards.identity import load_encoder
from idgen.rewards.views import FaceFinder, vae_decoder
from idgen.train.config import TrainConfig
from idgen.train.loop import Batch, Stage, run
from idgen.train.pictures import grid, to_bytes, to_pil


class TinyDecoderConfig(TrainConfig):
    """Settings of train/tiny_decoder.py."""

    data: Path = Field(description="folder of `idgen synth`")
    validation: Path = Field(description="folder of `idgen synth` with other people")
    vae: Path = Field(description="folder of the autoencoder")
    recogniser: Path = Field(description="folder of the recogniser that must see the same person")
    identity_weight: float = Field(0.1, ge=0)
    noise: float = Field(0.1, ge=0, description="largest deviation of what is added to the latents")


class TinyDecoderStage(Stage[TinyDecoderConfig]):
    """The small decoder beside the autoencoder that it copies."""

    module: TinyDecoder

    def __init__(self, config: TinyDecoderConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.data, self.held_out = FaceFolder.open(config.data), FaceFolder.open(config.validation)
        vae: Any = load_model(config.vae, "autoencoder").to(device).requires_grad_(False)
        self.decode = vae_decoder(vae)
        weights = config.vae / "diffusion_pytorch_model.safetensors"
        self.latents, self.held_out_latents = (
            encode_latents(folder, vae, weights, device) for folder in (self.data, self.held_out)
        )
        self.recogniser = load_recogniser(config.recogniser).to(device).requires_grad_(False)
        self.find = FaceFinder(load_encoder(config.recogniser, device))
        factor = self.data.images.shape[1] // self.latents.shape[-1]
        self.module = TinyDecoder(self.latents.shape[1], factor=factor)

    def batch(self, rng: np.random.Generator) -> Batch:
        chosen = rng.integers(len(self.data), size=self.config.train_batch_size)
        noise = rng.uniform(0, self.config.noise, (len(chosen), 1, 1, 1)).astype(np.float32)
        return {
            "latents": torch.from_numpy(self.latents[chosen]).to(self.device).float(),
            "landmarks": torch.from_numpy(self.data.landmarks[chosen]).to(self.device),
            "noise": torch.from_numpy(noise).to(self.device),
        }

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        latents = batch["latents"] + batch["noise"] * torch.randn_like(batch["latents"])
        with torch.no_grad():
            wanted = self.decode(latents)
        made = model(latents).float()
        losses = {"pixels": F.l1_loss(made, wanted) + F.mse_loss(made, wanted)}
        with torch.autocast(self.device.type, enabled=False):
            pair = norm_crop_torch(torch.cat([made, wanted]), batch["landmarks"].repeat(2, 1, 1))
        own, theirs = self.recogniser(pair).float().chunk(2)
        losses["identity"] = (1 - F.cosine_similarity(own, theirs.detach())).mean()
        return {"loss": losses["pixels"] + self.config.identity_weight * losses["identity"], **losses}

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        latents = torch.from_numpy(self.held_out_latents[:64]).to(self.device).float()
        made, wanted = self.module(latents).float(), self.decode(latents)
        landmarks = torch.from_numpy(self.held_out.landmarks[:64]).to(self.device)
        own, theirs = (self.recogniser(norm_crop_torch(pictures, landmarks)).float() for pictures in (made, wanted))
        figures = {
            "psnr": float(psnr(to_bytes(made), to_bytes(wanted)).mean()),
            "identity": float(F.cosine_similarity(own, theirs).mean()),
            # What the detector misses here, a reward is never told of.
            "faces": float(self.find(made)[1].float().mean()),
            "faces_in_copied": float(self.find(wanted)[1].float().mean()),
        }
        return figures, grid(to_pil(torch.cat([wanted[:8], made[:8]])), min(8, len(made)))

    def save(self, folder: Path) -> None:
        with atomic_write(folder / "config.json") as temporary:
            temporary.write_text(json.dumps(self.module.config, indent=2) + "\n")
        save_weights(folder / "model.safetensors", self.module.state_dict(), {"format": "pt"})

    def load(self, folder: Path) -> None:
        self.module.load_state_dict(load_tiny_decoder(folder).state_dict())


if __name__ == "__main__":
    run(TinyDecoderStage, TinyDecoderConfig)
