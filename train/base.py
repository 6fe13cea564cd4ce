"""Trains the mini family's text-to-face model: `accelerate launch train/base.py --config configs/mini/base.yaml`.

Latent diffusion (Rombach et al., arXiv 2112.10752): a UNet that reads captions through the text encoder of
train/text_encoder.py or, where none is given, through one that learns beside it; captions are dropped for one sample in ten
so that guidance works.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from idgen.adapters.arc2face.convert import load_encoder, load_model
from idgen.data.encoded import encode_latents
from idgen.data.faces import FaceFolder
from idgen.losses.diffusion import add_noise, denoising_loss, predicted_latents
from idgen.models.mini_family import build_scheduler, build_text_encoder, build_unet, save_pipeline
from idgen.rewards.views import vae_decoder
from idgen.train.loop import Batch, Stage, run
from idgen.train.loss_settings import WordsLossConfig
from idgen.train.pictures import grid, to_pil
from idgen.train.sampling import sample
from idgen.train.text_encoder import TOKENIZER, WEIGHTS, open_tokenizer, tokenise
from idgen.train.words import WordsLoss


class BaseConfig(WordsLossConfig):
    """Settings of train/base.py."""

    data: Path = Field(description="folder of `idgen synth`")
    validation: Path = Field(description="folder of `idgen synth` with other people: their captions make the grids")
    vae: Path = Field(description="folder of the autoencoder")
    unet: Path | None = Field(None, description="folder of a UNet to start from")
    text_encoder: Path | None = Field(
        None, description="folder of train/text_encoder.py's weights to start from, tokenizer included"
    )
    text_encoder_rate: float = Field(
        0.2, ge=0, le=1, description="its share of the learning rate; 0 leaves it as it is"
    )
    tokenizer: Path | None = Field(
        None, description="folder of a tokenizer to keep: a new one numbers some pieces of words anew in every run"
    )
    proportion_empty_prompts: float = Field(0.1, ge=0, le=1)
    guidance_scale: float = Field(3.0, ge=0, description="of the grids")


class BaseStage(Stage[BaseConfig]):
    """UNet and text encoder of the mini family."""

    module: TextDenoiser

    def __init__(self, config: BaseConfig, device: torch.device) -> None:
        super().__init__(config, device)
        data, held_out = FaceFolder.open(config.data), FaceFolder.open(config.validation)
        self.vae: Any = load_model(config.vae, "autoencoder").to(device)
        latents = encode_latents(data, self.vae, config.vae / "diffusion_pytorch_model.safetensors", device)
        self.latents = torch.from_numpy(latents).to(device)
        given = config.start_from or config.text_encoder
        self.tokenizer = open_tokenizer(config.tokenizer or (given / TOKENIZER if given else None))
        self.tokens = tokenise(self.tokenizer, data.captions).to(device)
        self.empty = tokenise(self.tokenizer, [""]).to(device)
        self.prompts = tokenise(self.tokenizer, held_out.captions[:32])
        self.scheduler = build_scheduler()
        self.module = TextDenoiser(build_unet(), build_text_encoder(self.tokenizer))
        attend_plainly(self.module, device)
        if config.unet:
            load_unet(self.module, config.unet)
        if config.text_encoder:
            load_text_encoder(self.module, config.text_encoder / WEIGHTS)
        self.module.text_encoder.requires_grad_(config.text_encoder_rate > 0)
        self.words: WordsLoss | None = None
        if config.words_weight:
            self.vae.requires_grad_(False).to(memory_format=torch.channels_last)
            self.words = WordsLoss(config, data, self.scheduler, vae_decoder(self.vae), device)

    def batch(self, rng: np.random.Generator) -> Batch:
        size = self.config.train_batch_size
        chosen = torch.from_numpy(rng.choice(len(self.latents), size, replace=len(self.latents) < size)).to(self.device)
        dropped = torch.from_numpy(rng.random(len(chosen)) < self.config.proportion_empty_prompts).to(self.device)
        return {
            "photos": chosen,
            "dropped": dropped,
            "latents": self.latents[chosen],
            "tokens": torch.where(dropped[:, None], self.empty, self.tokens[chosen]),
        }

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        latents = batch["latents"].float()
        noised = add_noise(self.scheduler, latents)
        prediction = model(noised.noisy, noised.timesteps, batch["tokens"])
        denoising = denoising_loss(prediction, noised)
        if self.words is None:
            return {"loss": denoising}
        clean = predicted_latents(self.scheduler, prediction, noised)
        words = self.words(clean, latents, noised.timesteps, batch["photos"], ~batch["dropped"])
        return {"loss": denoising + self.config.words_weight * words, "denoising": denoising, "words": words}

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        context = self.module.text_encoder(self.prompts.to(self.device)).last_hidden_state
        empty = self.module.text_encoder(self.empty).last_hidden_state
        pictures = sample(self.module.unet, self.vae, self.scheduler, context, empty, self.config.guidance_scale)
        return {"pixel_std": float(pictures.float().std(0).mean())}, grid(to_pil(pictures), 8)

    def groups(self) -> list[dict[str, Any]]:
        return denoiser_groups(self.module, self.config.text_encoder_rate)

    def save(self, folder: Path) -> None:
        vae: Any = load_model(self.config.vae, "autoencoder")
        text_encoder, unet = build_text_encoder(self.tokenizer), build_unet()
        text_encoder.load_state_dict(self.module.text_encoder.state_dict())
        unet.load_state_dict(self.module.unet.state_dict())
        save_pipeline(folder, vae, text_encoder, self.tokenizer, unet)

    def load(self, folder: Path) -> None:
        load_denoiser(self.module, folder / "unet", folder / "text_encoder")


class TextDenoiser(nn.Module):
    """UNet over a text encoder: (noisy latents, times, token ids) -> prediction."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        context = self.text_encoder(tokens).last_hidden_state  # (batch, 32, 512)
        return self.unet(noisy, timesteps, context).sample


def denoiser_groups(module: Any, text_encoder_rate: float) -> list[dict[str, Any]]:
    """A UNet at the full learning rate and its text encoder at a share of it.

    At the full rate an encoder that starts from nothing soon answers every prompt with nearly the same: the UNet first learns
    what all pictures share, and that reaches the encoder as one common push.
    """
    slow, fast = module.text_encoder.parameters(), module.unet.parameters()
    return [
        {"params": [p for p in fast if p.requires_grad], "rate": 1.0},
        {"params": [p for p in slow if p.requires_grad], "rate": text_encoder_rate},
    ]


def attend_plainly(module: Any, device: torch.device) -> None:
    """On a CPU the fused attention's backward pass alone takes a third of a step at these sizes: use the plain one."""
    if device.type == "cpu":
        module.unet.set_attn_processor(AttnProcessor())
        module.text_encoder.set_attn_implementation("eager")


def load_unet(module: Any, folder: Path) -> None:
    """Fills `module.unet` from a folder."""
    module.unet.load_state_dict(load_model(folder, "UNet").state_dict())


def load_denoiser(module: Any, unet: Path, text_encoder: Path) -> None:
    """Fills a module with `unet` and `text_encoder` from two folders."""
    load_unet(module, unet)
    load_text_encoder(module, text_encoder)


def load_text_encoder(module: Any, folder: Path) -> None:
    """Fills `module.text_encoder` from a folder."""
    module.text_encoder.load_state_dict(load_encoder(folder).state_dict())


if __name__ == "__main__":
    run(BaseStage, BaseConfig)
