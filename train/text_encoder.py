"""Trains the mini family's text encoder: `accelerate launch train/text_encoder.py --config configs/mini/text_encoder.yaml`.

CLIP (Radford et al., arXiv 2103.00020): captions and pictures of a batch must find each other. Stable Diffusion's text encoder
was made so; one that learns beside its UNet from nothing soon answers all prompts alike. The pictures are latents, which
cost nothing to read; what a network of that size does not see in them, the renderer tells: how much each muscle of the face
acts, and where the head turns. Only the text encoder is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import Encoder
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from transformers import CLIPTokenizer

from idgen.adapters.arc2face.convert import load_encoder, load_model
from idgen.data.encoded import encode_latents
from idgen.data.faces import FaceFolder
from idgen.errors import IdgenError
from idgen.models.mini_family import HIDDEN, LATENT_CHANNELS, PROMPT_WORDS, build_text_encoder, build_tokenizer
from idgen.models.probe import POSE_UNIT
from idgen.synthetic.captions import vocabulary
from idgen.train.config import TrainConfig
from idgen.train.loop import Batch, Stage, run

WEIGHTS, TOKENIZER = "text_encoder", "tokenizer"
FIRST_SCALE, MOST_SCALE = 1 / 0.07, 100.0  # of the cosines, as CLIP's


class TextEncoderConfig(TrainConfig):
    """Settings of train/text_encoder.py."""

    data: Path = Field(description="folder of `idgen synth`")
    validation: Path = Field(description="the same with other people")
    vae: Path = Field(description="folder of the autoencoder")
    tokenizer: Path | None = Field(
        None, description="folder of a tokenizer to keep: a new one numbers some pieces of words anew in every run"
    )


class TextEncoderStage(Stage[TextEncoderConfig]):
    """The mini family's text encoder, and a small network for the pictures beside it."""

    module: CaptionMatcher

    def __init__(self, config: TextEncoderConfig, device: torch.device) -> None:
        super().__init__(config, device)
        folders = FaceFolder.open(config.data), FaceFolder.open(config.validation)
        vae = load_model(config.vae, "autoencoder").to(device)
        weights = config.vae / "diffusion_pytorch_model.safetensors"
        self.latents, self.held_out_latents = (
            torch.from_numpy(encode_latents(folder, vae, weights, device)) for folder in folders
        )
        self.tokenizer = open_tokenizer(
            config.tokenizer or (config.start_from / TOKENIZER if config.start_from else None)
        )
        self.tokens, self.held_out_tokens = (tokenise(self.tokenizer, folder.captions) for folder in folders)
        self.acting, self.held_out_acting = (acting(folder) for folder in folders)
        self.module = CaptionMatcher(build_text_encoder(self.tokenizer), self.acting.shape[1])
        if device.type == "cpu":
            self.module.text_encoder.set_attn_implementation("eager")

    def batch(self, rng: np.random.Generator) -> Batch:
        size = min(self.config.train_batch_size, len(self.latents))
        chosen = torch.from_numpy(rng.choice(len(self.latents), size, replace=False))
        return {
            "latents": self.latents[chosen].to(self.device).float(),
            "acting": self.acting[chosen].to(self.device),
            "tokens": self.tokens[chosen].to(self.device),
        }

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        similarity = model(batch["tokens"], batch["latents"], batch["acting"]).float()
        pairs = torch.arange(len(similarity), device=similarity.device)
        loss = (F.cross_entropy(similarity, pairs) + F.cross_entropy(similarity.T, pairs)) / 2
        return {"loss": loss, "found": (similarity.argmax(1) == pairs).float().mean()}

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        """The share of held-out captions that find their picture among 100, and how far prompts differ in one place."""
        count = min(100, len(self.held_out_tokens))
        shares = []
        for start in range(0, len(self.held_out_tokens) - count + 1, count):
            part = slice(start, start + count)
            held_out = (self.held_out_tokens[part], self.held_out_latents[part].float(), self.held_out_acting[part])
            similarity = self.module(*(values.to(self.device) for values in held_out))
            shares.append(float((similarity.argmax(1).cpu() == torch.arange(count)).float().mean()))
        context = self.module.text_encoder(self.held_out_tokens[:count].to(self.device)).last_hidden_state
        spread = float(context.float().std(0).mean() / context.float().std())
        return {"found": sum(shares) / len(shares), "spread": spread}, None

    def save(self, folder: Path) -> None:
        text_encoder = build_text_encoder(self.tokenizer)
        text_encoder.load_state_dict(self.module.text_encoder.state_dict())
        text_encoder.half().save_pretrained(folder / WEIGHTS)
        self.tokenizer.save_pretrained(folder / TOKENIZER)

    def load(self, folder: Path) -> None:
        self.module.text_encoder.load_state_dict(load_encoder(folder / WEIGHTS).state_dict())


class CaptionMatcher(nn.Module):
    """Scaled cosines (captions, pictures) of tokens (captions, length) with latents (pictures, channels, h, w) and `acting`."""

    def __init__(self, text_encoder: nn.Module, acting: int) -> None:
        super().__init__()
        self.text_encoder: Any = text_encoder
        self.pictures = Encoder(
            LATENT_CHANNELS,
            256,
            down_block_types=("DownEncoderBlock2D",) * 3,
            block_out_channels=(64, 128, 256),
            layers_per_block=1,
            norm_num_groups=16,
            double_z=False,
        )
        self.acting = nn.Sequential(nn.Linear(acting, 128), nn.SiLU(), nn.Linear(128, 256))
        self.of_text, self.of_picture = nn.Linear(HIDDEN, 256, bias=False), nn.Linear(256, 256, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(FIRST_SCALE).log())

    def forward(self, tokens: Tensor, latents: Tensor, acting: Tensor) -> Tensor:
        states = self.text_encoder(tokens).last_hidden_state
        # The end and all that fills up behind it have read the whole caption, and a UNet reads every one of them.
        behind = (tokens == self.text_encoder.config.eos_token_id).to(states.dtype)
        text = torch.einsum("blh,bl->bh", states, behind / behind.sum(1, keepdim=True))
        seen = self.pictures(latents).mean((2, 3)) + self.acting(acting)
        scale = self.log_scale.exp().clamp_max(MOST_SCALE)
        return (
            scale
            * F.normalize(self.of_text(text).float(), dim=-1)
            @ F.normalize(self.of_picture(seen).float(), dim=-1).T
        )


def acting(data: FaceFolder) -> Tensor:
    """(pictures, actions + 3): how strong each action of the face is, in [0, 1]; yaw, pitch and roll in units of `POSE_UNIT`."""
    pose = torch.tensor(data.column("pose"), dtype=torch.float32) / POSE_UNIT
    return torch.cat([torch.tensor(data.column("expression"), dtype=torch.float32), pose], 1)


def open_tokenizer(folder: Path | None) -> CLIPTokenizer:
    """The tokenizer of a folder, or a new one for the captions' words. Raises IdgenError for a folder without one."""
    if folder is None:
        return build_tokenizer([*vocabulary(), *PROMPT_WORDS])
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise IdgenError(f"no tokenizer in {folder}: neither tokenizer.json nor vocab.json is there")
    return CLIPTokenizer.from_pretrained(folder)


def tokenise(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(texts, length) token ids, padded to the longest that the model reads."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


if __name__ == "__main__":
    run(TextEncoderStage, TextEncoderConfig)
