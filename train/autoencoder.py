"""Trains the mini family's autoencoder: `accelerate launch train/autoencoder.py --config configs/mini/autoencoder.yaml`.

Absolute error, weighted up where a face is told apart (eyes, brows, lips, glasses), differences of neighbouring pixels
so that edges stay sharp, and the distance between a recogniser's features of both pictures as the perceptual part.
These alone give the average of all likely textures, which is blur. A critic of patches (Isola et al., arXiv 1611.07004) that
tells renders from reconstructions makes the decoder choose one of them; its weight is set by the gradients at the last layer
(VQGAN, Esser et al., arXiv 2012.09841, equation 7).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from idgen.adapters.arc2face.convert import load_model
from idgen.data.faces import FaceFolder
from idgen.errors import IdgenError
from idgen.faces.align_torch import norm_crop_torch
from idgen.losses.perceptual import feature_distance
from idgen.metrics import sharpness_ratio
from idgen.models.mini_family import build_autoencoder
from idgen.models.probe import load_probe
from idgen.models.registry import load_recogniser
from idgen.synthetic import PARSING_CLASSES
from idgen.train.config import TrainConfig
from idgen.train.loop import Batch, Stage, run
from idgen.train.pictures import grid, to_bytes, to_float, to_pil

DETAILED = ("brows", "eyes", "iris", "lips", "mouth", "glasses", "nose")


class AutoencoderConfig(TrainConfig):
    """Settings of train/autoencoder.py."""

    data: Path = Field(description="folder of `idgen synth`")
    validation: Path = Field(description="folder of `idgen synth` with other people")
    recogniser: Path | None = Field(None, description="folder of the recogniser whose features are the perceptual loss")
    reader: Path | None = Field(
        None,
        description="folder of an attribute probe (never the one that measures): its feature maps are compared too",
    )
    detail_weight: float = Field(4.0, ge=0, description="extra weight of eyes, brows, lips, glasses")
    edge_weight: float = Field(1.0, ge=0)
    perceptual_weight: float = Field(0.1, ge=0, description="of the recogniser's cosine")
    reader_weight: float = Field(0.1, ge=0, description="of the distance of the reader's feature maps")
    adversarial_weight: float = Field(
        0.0, ge=0, description="of the critic, in shares of the other losses' gradient at the last layer"
    )
    adversarial_start: float = Field(0.1, ge=0, le=1, description="share of the training after which the critic counts")
    freeze_encoder: bool = Field(False, description="train the decoder alone: models made on the latents stay valid")
    freeze_decoder: bool = Field(
        False,
        description="train the encoder alone, to find better latents for the same pictures; made ones stay as they are",
    )
    latent_noise: float = Field(
        0.05, ge=0, description="noise on the latents, so that small errors of a UNet do not show"
    )


class AutoencoderStage(Stage[AutoencoderConfig]):
    """diffusers' AutoencoderTiny."""

    module: _Reconstruct

    def __init__(self, config: AutoencoderConfig, device: torch.device) -> None:
        super().__init__(config, device)
        if config.freeze_decoder and (config.freeze_encoder or config.adversarial_weight):
            raise IdgenError("freeze_decoder trains the encoder alone: without freeze_encoder and adversarial_weight")
        self.data, self.held_out = FaceFolder.open(config.data), FaceFolder.open(config.validation)
        critic = _Critic() if config.adversarial_weight else None
        self.module = _Reconstruct(build_autoencoder(), config.latent_noise, critic)
        self.module.vae.encoder.requires_grad_(not config.freeze_encoder)
        self.module.vae.decoder.requires_grad_(not config.freeze_decoder)
        self.recogniser = (
            load_recogniser(config.recogniser).to(device).requires_grad_(False) if config.recogniser else None
        )
        self.reader = load_probe(str(config.reader), device).requires_grad_(False) if config.reader else None
        seeing: list[Any] = [self.recogniser, self.reader]
        for network in seeing:
            if network is not None:
                network.to(memory_format=torch.channels_last)  # as the trained module: twice as fast on a CPU
        self.given_scale: float | None = None  # of the latents that other models were made on
        weights = [1 + config.detail_weight * (name in DETAILED) for name in PARSING_CLASSES]
        self.class_weights = torch.tensor(weights, device=device)

    def batch(self, rng: np.random.Generator) -> Batch:
        size = self.config.train_batch_size
        chosen = np.sort(rng.choice(len(self.data), size, replace=len(self.data) < size))
        return {
            "ids": [self.data.name(int(photo)) for photo in chosen],
            "images": to_float(self.data.images[chosen], self.device),
            "masks": torch.from_numpy(self.data.masks[chosen]).to(self.device),
            "landmarks": torch.from_numpy(self.data.landmarks[chosen]).to(self.device),
        }

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        images = batch["images"]
        made, latents, scores = model(images)
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
        clear = progress > 0.3 or self.config.start_from is not None
        if self.recogniser is not None and clear and self.config.perceptual_weight:
            losses["perceptual"] = self._perceptual(made, images, batch["landmarks"])
            total = total + self.config.perceptual_weight * losses["perceptual"]
        if self.reader is not None and clear and self.config.reader_weight:
            losses["reader"] = feature_distance(self.reader.maps(made), self.reader.maps(images)).mean()
            total = total + self.config.reader_weight * losses["reader"]
        if scores is not None:
            losses["critic"] = _hinge(scores.float())
            if progress > self.config.adversarial_start:
                losses["adversarial"] = self._adversarial(made)
                total = total + self._balance(total, losses["adversarial"]) * losses["adversarial"]
            total = total + losses["critic"]
        return {"loss": total, **losses}

    def _adversarial(self, made: Tensor) -> Tensor:
        """How real the pictures look to the critic, whose weights get no gradients from it."""
        assert self.module.critic is not None
        fixed = {name: value.detach() for name, value in self.module.critic.named_parameters()}
        return -torch.func.functional_call(self.module.critic, fixed, (made,)).float().mean()

    def _balance(self, others: Tensor, adversarial: Tensor) -> Tensor:
        last = [p for p in self.module.vae.decoder.parameters() if p.ndim == 4][-1]
        wanted, got = (torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (others, adversarial))
        return (self.config.adversarial_weight * wanted / (got + 1e-6)).clamp(max=10).detach()

    def _perceptual(self, made: Tensor, images: Tensor, landmarks: Tensor) -> Tensor:
        assert self.recogniser is not None
        both = norm_crop_torch(torch.cat([made, images]), torch.cat([landmarks, landmarks]))
        embeddings = self.recogniser(both).float()
        a, b = embeddings.chunk(2)
        return 1 - F.cosine_similarity(a, b.detach()).mean()

    def groups(self) -> list[dict[str, Any]]:
        critic = list(self.module.critic.parameters()) if self.module.critic is not None else []
        apart = {id(parameter) for parameter in critic}
        rest = [p for p in self.module.parameters() if p.requires_grad and id(p) not in apart]
        # A critic that remembers its pushes for long swings past its adversary.
        return [{"params": rest, "rate": 1.0}] + (
            [{"params": critic, "rate": 1.0, "betas": (0.5, 0.99)}] if critic else []
        )

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        images = to_float(self.held_out.images[:64], self.device)
        made, latents, _ = self.module(images)
        made = made.float().clamp(-1, 1)
        error = (made - images).pow(2).mean((1, 2, 3)) / 4
        figures = {
            "psnr": float((-10 * error.log10()).mean()),
            "sharpness": sharpness_ratio(to_bytes(made), torch.from_numpy(np.array(self.held_out.images[:64]))),
            "latent_std": float(latents.float().std()),
        }
        rows = torch.cat([images[:8], made[:8], images[8:16], made[8:16]])
        return figures, grid(to_pil(rows), 8)

    def save(self, folder: Path) -> None:
        images = to_float(self.held_out.images[:256], self.device)
        with torch.no_grad():
            latents = self.module.vae.encode(images).latents.float()
        scale = self.given_scale if self.config.freeze_encoder or self.config.freeze_decoder else None
        vae: AutoencoderTiny = build_autoencoder()
        vae.load_state_dict(self.module.vae.state_dict())
        vae.register_to_config(scaling_factor=scale or round(1 / float(latents.std()), 4))
        vae.half().save_pretrained(folder)

    def load(self, folder: Path) -> None:
        given: Any = load_model(folder, "autoencoder")
        self.module.vae.load_state_dict(given.state_dict())
        self.given_scale = given.config.scaling_factor


class _Reconstruct(nn.Module):
    def __init__(self, vae: AutoencoderTiny, noise: float, critic: nn.Module | None) -> None:
        super().__init__()
        self.vae, self.noise, self.critic = vae, noise, critic

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Pictures made anew, their latents, and in training the critic's scores, first of `images` and then of those made.

        The critic learns from these scores alone, and in here: of several processes each waits for the gradients of all
        that its forward pass leads to.
        """
        latents = self.vae.encode(images).latents
        noisy = latents + self.noise * torch.randn_like(latents) if self.training else latents
        made = self.vae.decode(noisy).sample
        scores = None
        if self.critic is not None and self.training:
            scores = self.critic(torch.cat([images, made.detach().float()]))
        return made, latents, scores


def _hinge(scores: Tensor) -> Tensor:
    """Of a critic's scores of as many real pictures as false ones behind them."""
    real, false = scores.chunk(2)
    return F.relu(1 - real).mean() + F.relu(1 + false).mean()


class _Critic(nn.Sequential):
    """Pictures (batch, 3, h, w) -> scores (batch, 1, h / 4, w / 4) of patches of 22 px: high for renders.

    It is shown what each pixel has more than those around it, too, and that magnified: renders and reconstructions differ in
    little else, and from the plain pixels alone it has not learned to tell them apart when the decoder has moved on.
    """

    MAGNIFIED = 8.0

    def __init__(self) -> None:
        widths = (6, 48, 96, 192)
        layers: list[nn.Module] = []
        for before, width, stride in zip(widths, widths[1:], (2, 2, 1), strict=False):
            layers += [nn.Conv2d(before, width, 3 + (stride == 2), stride, 1), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        around = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        return super().forward(torch.cat([images, self.MAGNIFIED * (images - around)], 1))


if __name__ == "__main__":
    run(AutoencoderStage, AutoencoderConfig)
