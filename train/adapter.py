"""Trains an identity adapter beside a text-to-image model.

    accelerate launch train/adapter.py --config configs/mini/adapter.yaml

As IP-Adapter (Ye et al., arXiv 2308.06721) has it: the model is frozen, the adapter learns to remove noise from a photo when it
is told what the photo shows and, by the face embeddings of *other* photos, who it is. Face, words or both are left out of some
samples, so that guidance works for each. A loss of identity may act beside it, over the noise levels as `identity_schedule` says.
"""

from __future__ import annotations

import math
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

from idgen.checkpoint import sha256
from idgen.data.faces import FaceFolder
from idgen.data.prepared import PhotoConfig, Preparer, PrepareReport, tell
from idgen.errors import IdgenError
from idgen.losses.diffusion import Noised, add_noise, denoising_loss, predicted_latents
from idgen.losses.identity import schedule_weights, scheduled_identity
from idgen.rewards.chain import Chain
from idgen.rewards.identity import load_encoder
from idgen.rewards.policies import Policy, guided
from idgen.rewards.terms import RewardSum, RewardTerm
from idgen.rewards.views import vae_decoder
from idgen.train.adapter_samples import PhotoSamples, RenderSamples, Samples
from idgen.train.loop import Batch, Stage, run
from idgen.train.loss_settings import IdentityLossConfig
from idgen.train.picture_coding import encode_photos, load_tiny, picture_encoder
from idgen.train.pictures import grid, to_pil
from idgen.train.prompt_cache import of_pictures
from idgen.train.reward_checks import CheckConfig, Checks, photo_embeddings
from idgen.train.subjects import FILE, AdapterSubject

GRID = 4  # people in a grid of those of the training


class AdapterTrainConfig(IdentityLossConfig):
    """Settings of train/adapter.py."""

    method: str = Field(
        "ip_faceid", description="a registered adapter that reads face embeddings: ip_faceid, instantid"
    )
    settings: dict[str, Any] = Field({}, description="of a fresh adapter, fields of its config such as rank")
    model: str = Field(
        "mini", description="Stable Diffusion or SDXL beside which it learns: mini, a hub id or a folder"
    )
    adapter: Path | None = Field(None, description="weights to go on from; null starts from fresh ones")
    data: Path | None = Field(None, description="folder of `idgen synth`; or give `photos`")
    photos: PhotoConfig | None = Field(
        None, description="photos from a folder, shards or a data set, in the place of `data`"
    )
    own_photo: bool = Field(False, description="photos: a person's only photo may say who is on it")
    resolution: int | None = Field(None, ge=32, description="photos: pixels per side; the model's own by default")
    validation: Path | None = Field(
        None,
        description="folder of `idgen synth` with people of no training; without it grids show people of the training",
    )
    conditioning: str = Field("mini", description="the face encoder whose embeddings the adapter reads")
    most_references: int = Field(4, ge=1, description="photos whose mean says who it is: 1 to so many")
    face_dropout: float = Field(0.05, ge=0, le=1, description="samples that are told the words alone")
    prompt_dropout: float = Field(0.05, ge=0, le=1, description="samples that are told the face alone")
    condition_dropout: float = Field(0.05, ge=0, le=1, description="samples that are told nothing")
    snr_gamma: float | None = Field(
        None,
        gt=0,
        description="of min-SNR weights of the loss, for models that predict the noise; null: all times alike",
    )
    identity_weight: float = Field(0.0, ge=0, description="0 is without")
    identity_recogniser: str | None = Field(
        None, description="a face encoder in torch; the conditioning one by default"
    )
    identity_start: float = Field(0.5, ge=0, le=1, description="share of the training after which it acts")
    identity_batch: int = Field(8, ge=1, description="samples of a batch that are decoded for it")
    check: CheckConfig = CheckConfig(guidance_scale=3.0)

    def shrunk(self) -> AdapterTrainConfig:
        small = self.check.model_copy(update={"people": 2, "images": 2, "steps": 2})
        return super().shrunk().model_copy(update={"check": small, "identity_start": 0.0})


class AdapterStage(Stage[AdapterTrainConfig]):
    """An identity adapter that reads face embeddings, beside a frozen text-to-image model."""

    module: Policy
    shardable = False

    def __init__(self, config: AdapterTrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        if config.face_dropout + config.prompt_dropout + config.condition_dropout > 1:
            raise IdgenError("face_dropout, prompt_dropout and condition_dropout are shares of one whole: give less")
        if (config.data is None) == (config.photos is None):
            raise IdgenError("give either data, a folder of `idgen synth`, or photos.path, where photos lie")
        encoder = load_encoder(config.conditioning, device)
        self.subject = AdapterSubject(
            config.model, config.method, config.adapter, encoder.recogniser, config.settings, device
        )
        self.module = self.subject.policy
        self.rates = config.identity_recogniser or config.conditioning
        self.recogniser = load_encoder(self.rates, device) if config.identity_weight else None
        self.decode = load_tiny(config.tiny, device) if config.tiny else vae_decoder(self.subject.pipe.vae)
        self.report: PrepareReport | None = None
        self.samples: Samples = self._renders(config.data) if config.data else self._photos(config.photos, encoder)
        self.checks = self._checks(config.validation) if config.validation else None
        self.before = torch.empty(0)

    def _renders(self, folder: Path) -> RenderSamples:
        data, pipe = FaceFolder.open(folder), self.subject.pipe
        vectors, targets = (
            photo_embeddings(data, source, self.device) for source in (self.config.conditioning, self.rates)
        )
        latents = encode_photos(data, pipe.vae, self.subject.vae_file, self.device)
        wanted = F.normalize(targets, dim=1) if self.recogniser else None
        return RenderSamples(data, latents, vectors, wanted, self.subject.read)

    def _photos(self, photos: PhotoConfig | None, encoder: Any) -> PhotoSamples:
        assert photos is not None
        if self.rates != self.config.conditioning:
            raise IdgenError("photos are embedded by the conditioning recogniser alone: leave identity_recogniser out")
        pipe = self.subject.pipe
        side = self.config.resolution or pipe.unet.config.sample_size * pipe.vae_scale_factor
        step = pipe.vae_scale_factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)
        preparer = Preparer(
            photos, picture_encoder(pipe.vae, self.device), sha256(self.subject.vae_file), encoder, side, step
        )
        ready, self.report = preparer()
        tell(self.report)
        self.subject.keep_prompts(photos.cache / "prompts" if photos.cache_latents else None, photos.cache_latents)
        return PhotoSamples(ready, preparer, photos.path, self.config.own_photo, self.subject.read)

    def _checks(self, folder: Path) -> Checks:
        seen_by = RewardSum({"identity": RewardTerm(kind="identity", source=self.rates)}, self.device)
        sources = (self.config.conditioning, self.rates)
        embeddings = partial(photo_embeddings, device=self.device)
        return Checks(
            self.config.check, self.subject, seen_by, FaceFolder.open(folder), embeddings, sources, self.device
        )

    def batch(self, rng: np.random.Generator) -> Batch:
        config = self.config
        drawn = self.samples.draw(rng, config.train_batch_size, config.most_references)
        # One draw decides what a sample is not told.
        place = rng.random(config.train_batch_size)
        nothing = place < config.condition_dropout
        no_face = nothing | (place >= 1 - config.face_dropout)
        no_words = nothing | (
            (place >= config.condition_dropout) & (place < config.condition_dropout + config.prompt_dropout)
        )
        vectors = drawn.vectors.to(self.device) * torch.from_numpy(~no_face).to(self.device)[:, None]
        return {
            "ids": drawn.ids,
            "latents": drawn.latents.to(self.device),
            "vectors": vectors,
            "prompts": ["" if left else text for text, left in zip(drawn.captions, no_words, strict=True)],
            "told_who": vectors.abs().sum(1) > 0,
            "targets": None if drawn.targets is None else drawn.targets.to(self.device),
            "landmarks": drawn.landmarks.to(self.device),
        }

    def losses(self, model: Callable[..., Tensor], batch: Batch, progress: float) -> dict[str, Tensor]:
        pipe = self.subject.pipe
        condition = self.subject.condition(batch["vectors"], batch["prompts"])
        condition = of_pictures(pipe, condition, batch["latents"])
        noised = add_noise(pipe.scheduler, batch["latents"], self.config.snr_gamma or math.inf)
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

    def about(self) -> dict[str, Any]:
        return {} if self.report is None else self.report.as_dict()

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        if self.checks is None:
            return {}, self._grid()
        if not len(self.before):
            _, self.before = self.checks(base=True)
        figures, made = self.checks()
        figures.pop("reward", None)  # there is one figure of identity, and it bears that name
        return figures, self.checks.picture(made, self.before)

    def _grid(self) -> Image.Image:
        """Pictures of a few people of the training, under photos of them as the autoencoder keeps them."""
        shown, check = self.samples.draw(np.random.default_rng(0), GRID, self.config.most_references), self.config.check
        subject, latents = self.subject, shown.latents.to(self.device)
        asked = subject.condition(shown.vectors.to(self.device), shown.captions), subject.nobody(GRID)
        condition, nobody = (of_pictures(subject.pipe, one, latents) for one in asked)
        denoise = guided(subject.policy, condition, nobody, check.guidance_scale)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        made = Chain(subject.pipe.scheduler, check.steps).sample(denoise, noise)
        decode = vae_decoder(subject.pipe.vae)
        return grid(to_pil(torch.cat([decode(latents), decode(made)])), GRID)

    def save(self, folder: Path) -> None:
        self.module.save(folder / FILE, [] if self.recogniser is None else [self.recogniser.recogniser])

    def load(self, folder: Path) -> None:
        self.module.load(folder / FILE)


if __name__ == "__main__":
    run(AdapterStage, AdapterTrainConfig)
