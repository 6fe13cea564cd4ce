"""Trains an identity adapter beside a text-to-image model.

    accelerate launch train/adapter.py --config configs/mini/adapter.yaml

As IP-Adapter (Ye et al., arXiv 2308.06721) has it: the model is frozen, the adapter learns to remove noise from a photo when it
is told what the photo shows and, by the face embeddings of *other* photos, who it is. Face, words or both are left out of some
samples, so that guidance works for each. A loss of identity may act beside it, over the noise levels as `identity_schedule` says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor

from idgen.data.faces import FaceFolder
from idgen.errors import IdgenError
from idgen.losses.diffusion import Noised, add_noise, denoising_loss, predicted_latents
from idgen.losses.identity import IdentitySchedule, schedule_weights, scheduled_identity
from idgen.rewards.identity import load_encoder
from idgen.rewards.terms import RewardSum, RewardTerm
from idgen.rewards.views import vae_decoder
from idgen.train.config import TrainConfig
from idgen.train.loop import Batch, Stage, run
from idgen.train.picture_coding import encode_photos, load_tiny
from idgen.train.reward_checks import CheckConfig, Checks, photo_embeddings
from idgen.train.subjects import FILE, AdapterSubject


class AdapterTrainConfig(TrainConfig):
    """Settings of train/adapter.py."""

    method: str = Field(
        "ip_faceid", description="a registered adapter that reads face embeddings: ip_faceid, instantid"
    )
    settings: dict[str, Any] = Field({}, description="of a fresh adapter, fields of its config such as rank")
    model: str = Field(
        "mini", description="Stable Diffusion or SDXL beside which it learns: mini, a hub id or a folder"
    )
    adapter: Path | None = Field(None, description="weights to go on from; null starts from fresh ones")
    data: Path = Field(description="folder of `idgen synth`")
    validation: Path = Field(description="folder of `idgen synth` with people of no training")
    conditioning: str = Field("mini", description="the face encoder whose embeddings the adapter reads")
    most_references: int = Field(4, ge=1, description="photos whose mean says who it is: 1 to so many")
    face_dropout: float = Field(0.05, ge=0, le=1, description="samples that are told the words alone")
    prompt_dropout: float = Field(0.05, ge=0, le=1, description="samples that are told the face alone")
    condition_dropout: float = Field(0.05, ge=0, le=1, description="samples that are told nothing")
    snr_gamma: float = Field(5.0, gt=0, description="of the loss's min-SNR weights")
    identity_weight: float = Field(0.0, ge=0, description="0 is without")
    identity_recogniser: str | None = Field(
        None, description="a face encoder in torch; the conditioning one by default"
    )
    identity_start: float = Field(0.5, ge=0, le=1, description="share of the training after which it acts")
    identity_schedule: IdentitySchedule = Field(
        "window", description="scaled: by what is left of the picture, as ReF-LDM; naive: alike at any noise; window"
    )
    identity_max_timestep: int = Field(
        400, ge=1, description="window: at more noise the predicted picture shows nobody"
    )
    identity_batch: int = Field(8, ge=1, description="samples of a batch that are decoded for it")
    tiny: str | None = Field(
        None, description="a small decoder for it, as train/reward.py's; the model's own by default"
    )
    check: CheckConfig = CheckConfig(guidance_scale=3.0)

    def shrunk(self) -> AdapterTrainConfig:
        small = self.check.model_copy(update={"people": 2, "images": 2, "steps": 2})
        return super().shrunk().model_copy(update={"check": small, "identity_start": 0.0})


class AdapterStage(Stage[AdapterTrainConfig]):
    """An identity adapter that reads face embeddings, beside a frozen text-to-image model."""

    shardable = False

    def __init__(self, config: AdapterTrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        if config.face_dropout + config.prompt_dropout + config.condition_dropout > 1:
            raise IdgenError("face_dropout, prompt_dropout and condition_dropout are shares of one whole: give less")
        self.data, held_out = FaceFolder.open(config.data), FaceFolder.open(config.validation)
        encoder = load_encoder(config.conditioning, device)
        self.subject = AdapterSubject(
            config.model, config.method, config.adapter, encoder.recogniser, config.settings, device
        )
        self.module = self.subject.policy
        pipe = self.subject.pipe
        counts = np.bincount(self.data.people)[self.data.people]
        self.photos = np.flatnonzero(counts >= 2)
        if not len(self.photos):
            raise IdgenError(f"nobody in {config.data} has two photos: one is drawn, the others say who it is")
        embeddings = partial(photo_embeddings, device=device)
        self.vectors = F.normalize(embeddings(self.data, config.conditioning), dim=1)
        rates = config.identity_recogniser or config.conditioning
        self.recogniser = load_encoder(rates, device) if config.identity_weight else None
        self.targets = F.normalize(embeddings(self.data, rates), dim=1) if config.identity_weight else None
        self.decode = load_tiny(config.tiny, device) if config.tiny else vae_decoder(pipe.vae)
        self.latents = encode_photos(self.data, pipe.vae, self.subject.vae_file, device)
        seen_by = RewardSum({"identity": RewardTerm(kind="identity", source=rates)}, device)
        self.checks = Checks(
            config.check, self.subject, seen_by, held_out, embeddings, (config.conditioning, rates), device
        )
        self.before = torch.empty(0)

    def batch(self, rng: np.random.Generator) -> Batch:
        config = self.config
        chosen = rng.choice(self.photos, config.train_batch_size, replace=len(self.photos) < config.train_batch_size)
        vectors, targets = [], []
        for photo in chosen:
            own = self.data.shots[self.data.people[photo]]
            others = own[own != photo]
            count = min(len(others), int(rng.integers(1, config.most_references + 1)))
            vectors.append(F.normalize(self.vectors[rng.choice(others, count, replace=False)].mean(0), dim=0))
            if self.targets is not None:
                targets.append(self.targets[others].mean(0))
        # One draw decides what a sample is not told.
        place = rng.random(len(chosen))
        nothing = place < config.condition_dropout
        no_face = nothing | (place >= 1 - config.face_dropout)
        no_words = nothing | (
            (place >= config.condition_dropout) & (place < config.condition_dropout + config.prompt_dropout)
        )
        captions = self.data.captions
        return {
            "ids": [self.data.name(int(photo)) for photo in chosen],
            "latents": torch.from_numpy(self.latents[chosen]).to(self.device).float(),
            "vectors": torch.stack(vectors) * torch.from_numpy(~no_face).to(self.device)[:, None],
            "prompts": ["" if left else captions[photo] for photo, left in zip(chosen, no_words, strict=True)],
            "told_who": torch.from_numpy(~no_face).to(self.device),
            "targets": torch.stack(targets) if targets else None,
            "landmarks": torch.from_numpy(self.data.landmarks[chosen]).to(self.device),
        }

    def losses(self, model: Callable[..., Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        condition = self.subject.condition(batch["vectors"], batch["prompts"])
        noised = add_noise(self.subject.pipe.scheduler, batch["latents"], self.config.snr_gamma)
        prediction = model(noised.noisy, noised.timesteps, condition)
        denoising = denoising_loss(prediction, noised)
        losses = {"loss": denoising, "denoising": denoising}
        if self.recogniser is not None and progress >= self.config.identity_start:
            losses["identity"] = self._identity(prediction, noised, batch)
            losses["loss"] = denoising + self.config.identity_weight * losses["identity"]
        return losses

    def _identity(self, prediction: Tensor, noised: Noised, batch: Batch) -> Tensor:
        assert self.recogniser is not None
        config, scheduler = self.config, self.subject.pipe.scheduler
        weights = schedule_weights(
            config.identity_schedule, scheduler.alphas_cumprod, noised.timesteps, config.identity_max_timestep
        )
        return scheduled_identity(
            self.recogniser.encode_aligned,
            self.decode,
            predicted_latents(scheduler, prediction, noised),
            batch["landmarks"],
            batch["targets"],
            weights * batch["told_who"],
            config.identity_batch,
        )

    def models(self) -> list[torch.nn.Module]:
        return [self.subject.policy.unet]

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        if not len(self.before):
            _, self.before = self.checks(base=True)
        figures, made = self.checks()
        figures.pop("reward", None)  # there is one figure of identity, and it bears that name
        return figures, self.checks.picture(made, self.before)

    def save(self, folder: Path) -> None:
        self.module.save(folder / FILE, [] if self.recogniser is None else [self.recogniser.recogniser])

    def load(self, folder: Path) -> None:
        self.module.load(folder / FILE)


if __name__ == "__main__":
    run(AdapterStage, AdapterTrainConfig)
