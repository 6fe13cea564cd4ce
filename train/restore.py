"""Trains restoration from references: `accelerate launch train/restore.py --config configs/mini/restore.yaml`.

ReF-LDM (Hsiao et al., NeurIPS 2024, arXiv 2412.05043; github.com/ChiWeiHsiao/ref-ldm), whose authors did not publish their
training: a latent diffusion model first learns to restore a photo alone; then its self-attention reads the keys and values of
other photos of the person as well, and gradients flow through that pass. Photo and references are each left out of one sample
in ten. A recogniser compares the picture that a prediction stands for with the photo, the more the less noise there is.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from idgen.adapters.arc2face.convert import load_model
from idgen.adapters.cachekv import CacheKV, encode_references, load_vq
from idgen.adapters.cachekv.build import build_mini_unet, build_scheduler, build_unet
from idgen.adapters.cachekv.concat import Conditioning, predict_beside, with_channels
from idgen.adapters.cachekv.encode import Encoding
from idgen.data.augment import vary_references
from idgen.data.degradation import PRESETS, draw_damage
from idgen.data.degradation_torch import degrade_batch
from idgen.data.ffhq_ref import ReferencePhotos, open_references
from idgen.data.real_world import degrade_real_world, draw_real_world
from idgen.faces.align_torch import norm_crop_torch
from idgen.losses.diffusion import Noised, add_noise, denoising_loss, predicted_latents
from idgen.losses.identity import IdentitySchedule, face_region, schedule_weights, weighed_distance
from idgen.models.mini_family import build_scheduler as build_mini_scheduler
from idgen.models.registry import load_recogniser, read_config
from idgen.pipelines import ReferenceRestorePipeline
from idgen.rewards.policies import declare_rewards
from idgen.rewards.views import vae_decoder
from idgen.train.loop import Batch, Stage, run
from idgen.train.loss_settings import IdentityLossConfig
from idgen.train.picture_coding import load_tiny
from idgen.train.pictures import grid, to_float, to_pil

MODELS = {"mini": (build_mini_unet, build_mini_scheduler), "refldm": (build_unet, build_scheduler)}
SHOWN = 8  # photos in the grids


class RestoreTrainConfig(IdentityLossConfig):
    """Settings of train/restore.py."""

    data: Path = Field(description="folder of `idgen synth`, or in FFHQ-Ref's layout: its train split")
    validation: Path = Field(description="the same with people of no training; in FFHQ-Ref's layout its val split")
    size: int = Field(128, ge=32, description="side of the photos in pixels")
    model: Literal["mini", "refldm"] = Field("mini", description="architecture of the UNet, and its noise schedule")
    vae: Path = Field(description="folder of the autoencoder, or vqgan.ckpt")
    recogniser: Path | None = Field(None, description="folder of the recogniser of the identity loss")
    degradation: Literal["train", "severe", "moderate", "real_world"] = Field(
        "train", description="ReF-LDM's presets, or Real-ESRGAN's second-order damage"
    )
    references: int = Field(5, ge=0, description="at most so many of a photo; 0 trains to restore photos alone")
    min_references: int = Field(1, ge=1, description="each step draws how many, from here")
    references_start: float = Field(
        0.0, ge=0, le=1, description="share of the training after which references are read, and photos no longer alone"
    )
    unet: Path | None = Field(
        None, description="folder of a UNet on the same latents to begin with: layers of its names and shapes are taken"
    )
    ref_encoding: Encoding = "panorama"
    conditioning: Conditioning = Field(
        "cachekv", description="how references are read; 'channel' and 'spatial' are for comparison (ReF-LDM's table 2)"
    )
    augment: bool = Field(False, description="mirror photos; change references' light, place and perspective")
    condition_dropout: float = Field(0.1, ge=0, le=1, description="of the photo and of the references, each by itself")
    time_bins: int = Field(
        1, ge=1, description="times at which each photo of a batch is seen: it is encoded once for all"
    )
    snr_gamma: float | None = Field(
        None, gt=0, description="of min-SNR weights of the loss; null, as the authors: all times alike"
    )
    identity_weight: float = Field(0.1, ge=0)
    identity_start: float = Field(
        0.0, ge=0, le=1, description="share of the training after which the identity loss acts"
    )
    identity_target: Literal["photo", "person"] = Field(
        "photo", description="what the picture is compared with: the photo, as the authors; or the mean of the others"
    )
    identity_schedule: IdentitySchedule = Field(
        "scaled", description="by what is left of the picture, as the authors; naive: alike at any noise; window"
    )
    identity_batch: int = Field(8, ge=1, description="samples of a batch that are decoded for it")
    guidance_scale: float = Field(1.5, ge=0, description="of the grids")


class RestoreStage(Stage[RestoreTrainConfig]):
    """The UNet; autoencoder and recogniser are given."""

    module: Restorer

    def __init__(self, config: RestoreTrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        alone = config.references == 0
        self.data = open_references(config.data, "train", config.size, alone=alone)
        self.held_out = open_references(config.validation, "val", config.size, alone=alone)
        self.vae: Any = _load_autoencoder(config.vae).to(device).requires_grad_(False)
        self.recogniser = (
            load_recogniser(config.recogniser).to(device).requires_grad_(False) if config.recogniser else None
        )
        self.decode = load_tiny(config.tiny, device) if config.tiny else vae_decoder(self.vae)
        self.identities = self._identities(config.recogniser) if config.recogniser else None
        self.scheduler = MODELS[config.model][1]()
        self.module = Restorer(self._begin(self._new_unet()), config.conditioning)
        # What is not varied is encoded once and for all.
        once = not config.augment and (alone or config.ref_encoding == "independent")
        self.latents = self.data.latents(self.vae, _weights(config.vae), device) if once else None

    def batch(self, rng: np.random.Generator) -> Batch:
        config = self.config
        rows = rng.choice(len(self.data.targets), min(config.train_batch_size, len(self.data.targets)), replace=False)
        photos = self.data.targets[rows]
        count = int(rng.integers(min(config.min_references, config.references), config.references + 1))
        shown = np.stack([_several(self.data.references[row], count, rng) for row in rows])  # (batch, count)
        pictures = to_float(_pictures(self.data, photos), self.device)
        mirrored = torch.zeros(len(rows), 1, 1, 1, dtype=torch.bool, device=self.device)
        if config.augment:
            mirrored = torch.from_numpy(rng.random((len(rows), 1, 1, 1)) < 0.5).to(self.device)
            pictures = torch.where(mirrored, pictures.flip(3), pictures)
        dropped = torch.from_numpy(rng.random((2, len(rows))) < config.condition_dropout).to(self.device)
        batch: Batch = {"lq_dropped": dropped[0], "references_dropped": dropped[1]}
        batch |= {"photos": torch.from_numpy(photos), "mirrored": mirrored}
        if self.identities is not None:
            batch["people"] = torch.from_numpy(np.stack([self._person(row) for row in rows])).to(self.device)
        batch["lq"] = self._encode(self._damaged(pictures, rng)[:, None], "independent")[:, 0]
        if self.latents is not None:
            batch["latents"] = torch.from_numpy(self.latents[photos]).to(self.device).float()
            batch["references"] = torch.from_numpy(self.latents[shown]).to(self.device).float()
            return batch
        batch["latents"] = self._encode(pictures[:, None], "independent")[:, 0]
        if count:
            others = [to_float(_pictures(self.data, one), self.device) for one in shown]
            others = [vary_references(one) if config.augment else one for one in others]
            batch["references"] = self._encode(torch.stack(others), config.ref_encoding)
        return batch

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        bins = self.config.time_bins
        latents, lq = (x.repeat(bins, 1, 1, 1) for x in (batch["latents"], _without(batch["lq"], batch["lq_dropped"])))
        reads = self.config.references > 0 and progress >= self.config.references_start
        references = _without(batch["references"], batch["references_dropped"]) if reads else None
        noised = add_noise(self.scheduler, latents, self.config.snr_gamma or math.inf)
        prediction = model(noised.noisy, noised.timesteps, lq, references)
        denoising = denoising_loss(prediction, noised)
        losses = {"loss": denoising, "denoising": denoising}
        if self.recogniser is not None and self.config.identity_weight and progress >= self.config.identity_start:
            losses["identity"] = self._identity(prediction, noised, batch, reads)
            losses["loss"] = denoising + self.config.identity_weight * losses["identity"]
        return losses

    def _identity(self, prediction: Tensor, noised: Noised, batch: Batch, reads: bool) -> Tensor:
        config, photos = self.config, len(batch["latents"])
        weights = schedule_weights(
            config.identity_schedule, self.scheduler.alphas_cumprod, noised.timesteps, config.identity_max_timestep
        )
        if config.identity_target == "person" and self.identities is not None:
            # What is told nothing of the person is not asked for the person.
            told = ~batch["references_dropped" if reads else "lq_dropped"]
            weights, targets = weights * told.repeat(config.time_bins), batch["people"]
        else:
            rows = weights.nonzero()[:, 0][: config.identity_batch].remainder(photos).unique()
            with torch.no_grad():
                seen = self._see(batch, self.decode(batch["latents"][rows]), rows.cpu())
            targets = seen.new_zeros(photos, seen.shape[1]).index_copy(0, rows, seen)
        return weighed_distance(
            lambda pictures, rows: self._see(batch, pictures, rows.cpu() % photos),
            self.decode,
            predicted_latents(self.scheduler, prediction, noised),
            targets.repeat(-(-len(weights) // len(targets)), 1),
            weights,
            config.identity_batch,
        )

    def _see(self, batch: Batch, pictures: Tensor, rows: Tensor) -> Tensor:
        """Embeddings (n, dim) of pictures (n, 3, size, size) of so many of a batch's photos, by number."""
        pictures = torch.where(batch["mirrored"][rows.to(pictures.device)], pictures.flip(3), pictures)
        assert self.recogniser is not None
        return self.recogniser(_faces(self.data, pictures, batch["photos"][rows].numpy()))

    def _identities(self, recogniser: Path) -> np.ndarray | None:
        """Of all photos, where the identity loss asks for people rather than photos."""
        if self.config.identity_target == "photo" or not self.config.identity_weight:
            return None
        return self.data.identities(self.recogniser, recogniser / "model.safetensors", self.device)

    def _person(self, row: int) -> np.ndarray:
        """(dim,) the mean of what the recogniser sees in the person's other photos, or of the only one."""
        assert self.identities is not None
        others = self.data.references[row]
        return self.identities[others if len(others) else self.data.targets[row : row + 1]].mean(0)

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        rows = np.arange(min(SHOWN, len(self.held_out.targets)))
        photos = to_float(_pictures(self.held_out, self.held_out.targets[rows]), self.device)
        damaged = self._damaged(photos, np.random.default_rng(0))
        count = self.config.references
        pipe = self._pipeline(self.module.unet, self.vae)
        pipe.set_progress_bar_config(disable=True)
        made: dict[str, list[list[np.ndarray]] | None] = {"alone": None}
        if count:
            # On channels and in space everybody has equally many: those who have fewer are seen again, as in training.
            again = self.config.conditioning != "cachekv"
            known = (self.held_out.references[row] for row in rows)
            shown = [np.resize(own, count) if again else own[:count] for own in known]
            made["references"] = [list(_pictures(self.held_out, own)) for own in shown]
        figures, pictures = {}, [damaged]
        for name, references in made.items():
            restored = pipe(
                damaged / 2 + 0.5,
                references,
                num_inference_steps=20,
                guidance_scale=self.config.guidance_scale,
                generator=torch.Generator().manual_seed(0),
                output_type="pt",
            ).images
            pictures.append(restored.to(photos) * 2 - 1)
            error = (pictures[-1] - photos).pow(2).mean((1, 2, 3)) / 4
            figures[f"psnr_{name}"] = float((-10 * error.clamp_min(1e-9).log10()).mean())
            if self.recogniser is not None:
                seen = [
                    self.recogniser(_faces(self.held_out, one, self.held_out.targets[rows]))
                    for one in (pictures[-1], photos)
                ]
                figures[f"cosine_{name}"] = float(F.cosine_similarity(*seen).mean())
        return figures, grid(to_pil(torch.cat([*pictures, photos])), len(rows))

    def save(self, folder: Path) -> None:
        unet = self._new_unet()
        unet.load_state_dict(self.module.unet.state_dict())
        self._pipeline(unet.half(), _load_autoencoder(self.config.vae).half()).save_pretrained(folder)
        rated = self.config.recogniser
        if rated and self.config.identity_weight:
            name = read_config(rated).get("name", rated.name)
            declare_rewards(_weights(folder / "unet"), [name])

    def load(self, folder: Path) -> None:
        unet = load_model(folder / "unet", "UNet")
        if self.config.conditioning == "channel":  # one that restores photos alone has no room for references yet
            unet = with_channels(unet, self.config.references)
        self.module.unet.load_state_dict(unet.state_dict())

    def _new_unet(self) -> UNet2DModel:
        unet = MODELS[self.config.model][0]()
        return with_channels(unet, self.config.references) if self.config.conditioning == "channel" else unet

    def _begin(self, unet: UNet2DModel) -> UNet2DModel:
        """A text-to-image UNet of the same widths knows what pictures look like; only what it reads beside the noise is new."""
        if self.config.unet:
            given = load_model(self.config.unet, "UNet").state_dict()
            own = unet.state_dict()
            taken = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
            first = own["conv_in.weight"].zero_()
            first[:, : given["conv_in.weight"].shape[1]] = given["conv_in.weight"]
            unet.load_state_dict(own | taken | {"conv_in.weight": first})
        return unet

    def _pipeline(self, unet: UNet2DModel, vae: Any) -> ReferenceRestorePipeline:
        config = self.config
        names = ("size", "ref_encoding", "references", "conditioning")
        settings = {name: getattr(config, name) for name in names}
        return ReferenceRestorePipeline(unet, vae, self.scheduler, **settings)

    def _damaged(self, pictures: Tensor, rng: np.random.Generator) -> Tensor:
        seed = int(rng.integers(2**32))
        generators = random.Random(seed), np.random.RandomState(seed)
        size = self.config.size
        if self.config.degradation == "real_world":
            return degrade_real_world(pictures, [draw_real_world(size, size, generators[1]) for _ in pictures])
        preset = PRESETS[self.config.degradation]
        return degrade_batch(pictures, [draw_damage(preset, size, size, generators=generators) for _ in pictures])

    @torch.no_grad()
    def _encode(self, pictures: Tensor, mode: Encoding) -> Tensor:
        """(batch, photos, 3, size, size) -> scaled latents (batch, photos, channels, h, w)."""
        # Batches are made outside of the loop's own autocast.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.mixed_precision == "bf16"):
            latents = encode_references(self.vae, pictures, mode)
        return latents.float() * self.vae.config.scaling_factor


class Restorer(nn.Module):
    """A UNet that reads references: (noisy, times, the photo's latents, the references' or None) -> prediction.

    The batch may hold the people of the references several times over, one whole round after the other.
    """

    def __init__(self, unet: UNet2DModel, conditioning: Conditioning = "cachekv") -> None:
        super().__init__()
        self.unet, self.conditioning = unet, conditioning
        self.kv = CacheKV.of(unet)

    def forward(self, noisy: Tensor, timesteps: Tensor, lq: Tensor, references: Tensor | None) -> Tensor:
        rounds = 1 if references is None else len(noisy) // len(references)
        if self.conditioning != "cachekv":
            references = None if references is None else references.repeat(rounds, 1, 1, 1, 1)
            return predict_beside(self.unet, self.conditioning, noisy, timesteps, lq, references)
        sample = torch.cat([noisy, lq], 1)
        if references is None:
            return self.unet(sample, timesteps).sample
        with self.kv.attend(self.kv.build(references).repeat(rounds)):
            return self.unet(sample, timesteps).sample


def _several(numbers: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """So many of them, shuffled; where there are fewer, they come again, as with the authors."""
    return np.resize(rng.permutation(numbers), count).astype(np.int64)


def _pictures(data: ReferencePhotos, numbers: np.ndarray) -> np.ndarray:
    return np.stack([data.picture(int(index)) for index in numbers])


def _faces(data: ReferencePhotos, pictures: Tensor, numbers: np.ndarray) -> Tensor:
    """As recognisers see them, (n, 3, 112, 112), of restored pictures (n, 3, size, size) of the photos `numbers`."""
    if data.landmarks is None:
        return face_region(pictures)
    landmarks = torch.from_numpy(data.landmarks[numbers]).to(pictures.device)
    # Half precision would place the crop's pixels wrongly.
    with torch.autocast(pictures.device.type, enabled=False):
        return norm_crop_torch(pictures.float(), landmarks)


def _without(latents: Tensor, dropped: Tensor) -> Tensor:
    return latents * ~dropped.view(-1, *[1] * (latents.ndim - 1))


def _load_autoencoder(path: Path) -> Any:
    vae: Any = (load_model(path, "autoencoder") if path.is_dir() else load_vq(path)).eval()
    return vae.to(memory_format=torch.channels_last)  # where a CPU's convolutions are 2.5 times as fast


def _weights(path: Path) -> Path:
    return path / "diffusion_pytorch_model.safetensors" if path.is_dir() else path


if __name__ == "__main__":
    run(RestoreStage, RestoreTrainConfig)
