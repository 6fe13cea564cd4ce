"""Trains the mini family's autoencoder: `accelerate launch train/autoencoder.py --config configs/mini/autoencoder.yaml`.

Absolute error, weighted up where a face is told apart (eyes, brows, lips, glasses), differences of neighbouring pixels
so that edges stay sharp, and the distance between a recogniser's features of both pictures as the perceptual part.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from idgen.data.faces import FaceFolder
from idgen.faces.align_torch import norm_crop_torch
from idgen.models.mini_family import build_autoencoder
from idgen.models.registry import load_recogniser
from idgen.synthetic import PARSING_CLASSES
from idgen.train.config import TrainConfig
from idgen.train.loop import Batch, Stage, run
from idgen.train.pictures import grid, to_float, to_pil

DETAILED = ("brows", "eyes", "iris", "lips", "mouth", "glasses", "nose")


class AutoencoderConfig(TrainConfig):
    """Settings of train/autoencoder.py."""

    data: Path = Field(description="folder of `idgen synth`")
    validation: Path = Field(description="folder of `idgen synth` with other people")
    recogniser: Path | None = Field(None, description="folder of the recogniser whose features are the perceptual loss")
    detail_weight: float = Field(4.0, ge=0, description="extra weight of eyes, brows, lips, glasses")
    edge_weight: float = Field(1.0, ge=0)
    perceptual_weight: float = Field(0.1, ge=0)
    freeze_encoder: bool = Field(False, description="train the decoder alone: models made on the latents stay valid")
    latent_noise: float = Field(
        0.05, ge=0, description="noise on the latents, so that small errors of a UNet do not show"
    )


class AutoencoderStage(Stage[AutoencoderConfig]):
    """diffusers' AutoencoderTiny."""

    def __init__(self, config: AutoencoderConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.data, self.held_out = FaceFolder.open(config.data), FaceFolder.open(config.validation)
        self.module = _Reconstruct(build_autoencoder(), config.latent_noise)
        self.module.vae.encoder.requires_grad_(not config.freeze_encoder)
        self.recogniser = (
            load_recogniser(config.recogniser).to(device).requires_grad_(False) if config.recogniser else None
        )
        weights = [1 + config.detail_weight * (name in DETAILED) for name in PARSING_CLASSES]
        self.class_weights = torch.tensor(weights, device=device)

    def batch(self, rng: np.random.Generator) -> Batch:
        chosen = np.sort(rng.choice(len(self.data), self.config.train_batch_size, replace=False))
        return {
            "images": to_float(self.data.images[chosen], self.device),
            "masks": torch.from_numpy(self.data.masks[chosen]).to(self.device),
            "landmarks": torch.from_numpy(self.data.landmarks[chosen]).to(self.device),
        }

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        images = batch["images"]
        made, latents = model(images)
        made = made.float()
        weights = self.class_weights[batch["masks"].long()][:, None]
        weights = weights / weights.mean()
        pixel = ((made - images).abs() * weights).mean()
        edges = sum(
            ((made.diff(dim=d) - images.diff(dim=d)).abs() * weights.narrow(d, 0, weights.shape[d] - 1)).mean()
            for d in (2, 3)
        )
        # Unit variance and zero mean: the UNet's noise schedule counts on it.
        flat = latents.float()
        shape = flat.mean((0, 2, 3)).pow(2).mean() + (flat.std((0, 2, 3)) - 1).pow(2).mean()
        losses = {"pixel": pixel, "edges": torch.as_tensor(edges), "latent": shape}
        total = pixel + self.config.edge_weight * losses["edges"] + 0.02 * shape
        # Features tell nothing of a picture that is still grey fog.
        if self.recogniser is not None and progress > 0.3 and self.config.perceptual_weight:
            half = len(images) // 2
            losses["perceptual"] = self._perceptual(made[:half], images[:half], batch["landmarks"][:half])
            total = total + self.config.perceptual_weight * losses["perceptual"]
        return {"loss": total, **losses}

    def _perceptual(self, made: Tensor, images: Tensor, landmarks: Tensor) -> Tensor:
        assert self.recogniser is not None
        both = norm_crop_torch(torch.cat([made, images]), torch.cat([landmarks, landmarks]))
        embeddings = self.recogniser(both).float()
        a, b = embeddings.chunk(2)
        return 1 - F.cosine_similarity(a, b.detach()).mean()

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        images = to_float(self.held_out.images[:64], self.device)
        made, latents = self.module(images)
        made = made.float().clamp(-1, 1)
        error = (made - images).pow(2).mean((1, 2, 3)) / 4
        figures = {"psnr": float((-10 * error.log10()).mean()), "latent_std": float(latents.float().std())}
        rows = torch.cat([images[:8], made[:8], images[8:16], made[8:16]])
        return figures, grid(to_pil(rows), 8)

    def save(self, folder: Path) -> None:
        images = to_float(self.held_out.images[:256], self.device)
        with torch.no_grad():
            latents = self.module.vae.encode(images).latents.float()
        vae: AutoencoderTiny = build_autoencoder()
        vae.load_state_dict(self.module.vae.state_dict())
        vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
        vae.half().save_pretrained(folder)

    def load(self, folder: Path) -> None:
        self.module.vae.load_state_dict(AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32).state_dict())


class _Reconstruct(nn.Module):
    def __init__(self, vae: AutoencoderTiny, noise: float) -> None:
        super().__init__()
        self.vae, self.noise = vae, noise

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.vae.encode(images).latents
        noisy = latents + self.noise * torch.randn_like(latents) if self.training else latents
        return self.vae.decode(noisy).sample, latents


if __name__ == "__main__":
    run(AutoencoderStage, AutoencoderConfig)
