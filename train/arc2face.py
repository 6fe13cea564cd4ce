"""Trains Arc2Face on the mini family: `accelerate launch train/arc2face.py --config configs/mini/arc2face.yaml`.

Arc2Face (Papantoniou et al., ECCV 2024, arXiv 2403.11641; github.com/foivospar/Arc2Face): the UNet starts from the
text-to-face model, and the prompt's "id" token becomes the face embedding of *other* photos of the person, so that
nothing but the identity can be copied. The text encoder starts fresh: the authors' is CLIP's, to which faces are as good as
words, while that of a small text-to-face model had learned to answer nearly the same to all of them. Towards the end an
identity loss at low noise (the "timestep-scaled identity loss" of ReF-LDM, arXiv 2412.05043, in its simplest form)
sharpens what the recogniser sees.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from transformers import CLIPTextModel

from idgen.adapters.arc2face import Arc2FaceConfig, IdentityPrompt, identity_prompt_embeds, null_prompt_embeds
from idgen.adapters.arc2face.convert import load_model
from idgen.data.encoded import encode_identities, encode_latents
from idgen.data.faces import FaceFolder
from idgen.losses.diffusion import Noised, add_noise, denoising_loss, predicted_latents
from idgen.losses.identity import schedule_weights, scheduled_identity
from idgen.models.mini_family import build_scheduler, build_text_encoder, build_unet
from idgen.models.registry import load_recogniser
from idgen.rewards.views import vae_decoder
from idgen.train.base import attend_plainly, denoiser_groups, load_denoiser, load_unet
from idgen.train.loop import Batch, Stage, run
from idgen.train.loss_settings import IdentityLossConfig
from idgen.train.picture_coding import load_tiny
from idgen.train.pictures import grid, to_float, to_pil
from idgen.train.sampling import sample
from idgen.train.text_encoder import open_tokenizer


class Arc2FaceTrainConfig(IdentityLossConfig):
    """Settings of train/arc2face.py."""

    data: Path = Field(description="folder of `idgen synth`")
    validation: Path = Field(description="folder of `idgen synth` with people of no training")
    base: Path = Field(description="folder of the text-to-face pipeline")
    recogniser: Path = Field(description="folder of the conditioning recogniser")
    single_reference_share: float = Field(
        0.6, ge=0, le=1, description="the other samples see the mean of 2 to 4 photos"
    )
    text_encoder_rate: float = Field(0.2, gt=0, le=1, description="its share of the learning rate")
    condition_dropout: float = Field(0.1, ge=0, le=1)
    identity_weight: float = Field(0.5, ge=0)
    identity_start: float = Field(
        0.85, ge=0, le=1, description="share of the training after which the identity loss acts"
    )
    identity_batch: int = Field(12, ge=1, description="samples of a batch that are decoded for it")
    guidance_scale: float = Field(2.0, ge=0, description="of the grids")


class Arc2FaceStage(Stage[Arc2FaceTrainConfig]):
    """UNet and text encoder, conditioned on a face."""

    module: IdentityDenoiser

    def __init__(self, config: Arc2FaceTrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.data, self.held_out = FaceFolder.open(config.data), FaceFolder.open(config.validation)
        self.vae: Any = load_model(config.base / "vae", "autoencoder").to(device).requires_grad_(False)
        self.vae.to(memory_format=torch.channels_last)
        self.decode = load_tiny(config.tiny, device) if config.tiny else vae_decoder(self.vae)
        self.recogniser = load_recogniser(config.recogniser).to(device).requires_grad_(False)
        vae_file = config.base / "vae" / "diffusion_pytorch_model.safetensors"
        recogniser_file = config.recogniser / "model.safetensors"
        self.latents = torch.from_numpy(encode_latents(self.data, self.vae, vae_file, device)).to(device)
        identities = _unit(encode_identities(self.data, self.recogniser, recogniser_file, device))
        self.identities = torch.from_numpy(identities).to(device)
        self.held_out_identities = _unit(encode_identities(self.held_out, self.recogniser, recogniser_file, device))
        self.tokenizer = open_tokenizer(config.base / "tokenizer")
        self.adapter = Arc2FaceConfig(recogniser=_recogniser_name(config.recogniser))
        self.prompt = IdentityPrompt.tokenise(self.tokenizer, self.adapter)
        self.scheduler = build_scheduler()
        self.module = IdentityDenoiser(build_unet(), build_text_encoder(self.tokenizer), self.prompt)
        attend_plainly(self.module, device)
        load_unet(self.module, config.base / "unet")
        quieten_words(self.module.text_encoder)

    def batch(self, rng: np.random.Generator) -> Batch:
        size = self.config.train_batch_size
        chosen = rng.choice(len(self.data), size, replace=len(self.data) < size)
        others, counts = self.data.others(chosen, rng)
        several = rng.random(len(chosen)) >= self.config.single_reference_share
        shown = np.minimum(counts, np.where(several, rng.integers(2, 5, len(chosen)), 1))
        return {
            "ids": [self.data.name(int(photo)) for photo in chosen],
            "latents": self.latents[torch.from_numpy(chosen).to(self.device)].float(),
            "conditions": self._mean(others, shown),
            "dropped": torch.from_numpy(rng.random(len(chosen)) < self.config.condition_dropout).to(self.device),
            "targets": self._mean(others, counts),
            "landmarks": torch.from_numpy(self.data.landmarks[chosen]).to(self.device),
        }

    def _mean(self, photos: np.ndarray, counts: np.ndarray) -> Tensor:
        """(batch, dim): the mean embedding of the first so many of photos (batch, most)."""
        first = torch.from_numpy(np.arange(photos.shape[1]) < counts[:, None]).to(self.device).float()
        vectors = self.identities[torch.from_numpy(photos).to(self.device)]
        return torch.einsum("bm,bmd->bd", first / first.sum(1, keepdim=True), vectors)

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        noised = add_noise(self.scheduler, batch["latents"])
        prediction = model(noised.noisy, noised.timesteps, batch["conditions"], batch["dropped"])
        denoising = denoising_loss(prediction, noised)
        losses = {"loss": denoising, "denoising": denoising}
        if self.config.identity_weight and progress >= self.config.identity_start:
            losses["identity"] = self._identity(prediction, noised, batch)
            losses["loss"] = denoising + self.config.identity_weight * losses["identity"]
        return losses

    def _identity(self, prediction: Tensor, noised: Noised, batch: Batch) -> Tensor:
        config = self.config
        weights = schedule_weights(
            config.identity_schedule, self.scheduler.alphas_cumprod, noised.timesteps, config.identity_max_timestep
        )
        clean = predicted_latents(self.scheduler, prediction, noised)
        weights, targets = weights * ~batch["dropped"], batch["targets"]
        return scheduled_identity(
            self.recogniser, self.decode, clean, batch["landmarks"], targets, weights, config.identity_batch
        )

    def groups(self) -> list[dict[str, Any]]:
        return denoiser_groups(self.module, self.config.text_encoder_rate)

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        people = 16
        first = np.array([shots[0] for shots in self.held_out.shots[:people]])
        wanted = torch.from_numpy(self.held_out_identities[first]).to(self.device)
        text_encoder = self.module.text_encoder
        context = identity_prompt_embeds(text_encoder, self.prompt, wanted)
        empty = null_prompt_embeds(text_encoder, self.prompt, self.device)
        pictures = sample(self.module.unet, self.vae, self.scheduler, context, empty, self.config.guidance_scale)
        references = to_float(self.held_out.images[first], self.device)
        rows = [part for pair in zip(references.split(8), pictures.float().split(8), strict=True) for part in pair]
        return {"pixel_std": float(pictures.float().std(0).mean())}, grid(to_pil(torch.cat(rows)), 8)

    def save(self, folder: Path) -> None:
        unet, text_encoder = build_unet(), build_text_encoder(self.tokenizer)
        unet.load_state_dict(self.module.unet.state_dict())
        text_encoder.load_state_dict(self.module.text_encoder.state_dict())
        unet.half().save_pretrained(folder / "arc2face")
        text_encoder.half().save_pretrained(folder / "encoder")

    def load(self, folder: Path) -> None:
        load_denoiser(self.module, folder / "arc2face", folder / "encoder")
        quieten_words(self.module.text_encoder)


class IdentityDenoiser(nn.Module):
    """UNet over a text encoder in which a face replaces one token."""

    def __init__(self, unet: nn.Module, text_encoder: CLIPTextModel, prompt: IdentityPrompt) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.prompt = unet, text_encoder, prompt

    def forward(self, noisy: Tensor, timesteps: Tensor, conditions: Tensor, dropped: Tensor) -> Tensor:
        context = identity_prompt_embeds(self.text_encoder, self.prompt, conditions)  # (batch, 32, 512)
        empty = null_prompt_embeds(self.text_encoder, self.prompt, noisy.device).to(context.dtype)
        context = torch.where(dropped[:, None, None], empty, context)
        return self.unet(noisy, timesteps, context).sample


def quieten_words(text_encoder: CLIPTextModel, size: float = 0.01) -> None:
    """Scales word and position embeddings to CLIP's own size and keeps them there.

    A unit face embedding has a root mean square of 0.044. In CLIP that towers over the words; in an encoder trained from
    scratch the positions grow past it, and the face drowns in its own place in the prompt.
    """
    embeddings = text_encoder.embeddings
    for table in (embeddings.token_embedding.weight, embeddings.position_embedding.weight):
        with torch.no_grad():
            table.mul_(size / table.pow(2).mean().sqrt())
        table.requires_grad_(False)


def _unit(embeddings: np.ndarray) -> np.ndarray:
    raw = np.asarray(embeddings, np.float32)
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def _recogniser_name(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["name"])


if __name__ == "__main__":
    run(Arc2FaceStage, Arc2FaceTrainConfig)
