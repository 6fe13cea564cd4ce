"""Learns one person from 3 to 10 photos.

    accelerate launch train/lora.py --config configs/mini/personalise.yaml --set data.photos=DIR

A small adapter (LoRA, OFT and their relatives, see idgen/finetune) in the UNet, and in the text encoder where wanted, of Stable
Diffusion, SDXL or Arc2Face. A text-to-image base learns the person under a phrase; Arc2Face starts from the person that the
face embedding already draws. The loss may be weighted towards the face, a recogniser may say how like the person the predicted
pictures are, and pictures that the base drew of other people hold it to what it knew. `weights/adapter.safetensors` is the
result, for `idgen.finetune.load_adapter`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from idgen.agreement import doubts
from idgen.console import note, say
from idgen.data.person_photos import face_masks, read_photos
from idgen.errors import IdgenError
from idgen.evaluation.fingerprints import recogniser_fingerprint
from idgen.faces import FaceEncoder
from idgen.faces.align_torch import norm_crop_torch
from idgen.files import atomic_write
from idgen.finetune import FinetuneConfig, save_adapter
from idgen.identity import Identity
from idgen.losses.diffusion import Noised, add_noise, denoising_loss, predicted_latents
from idgen.losses.identity import schedule_weights, weighed_distance
from idgen.losses.masked import masked_denoising_loss
from idgen.rewards.policies import declare_rewards
from idgen.rewards.views import vae_decoder
from idgen.train.denoisers import NAME, PersonalDenoiser, open_pipeline, read_identities, resolution
from idgen.train.loop import Batch, Stage, run
from idgen.train.loss_settings import IdentityLossConfig
from idgen.train.picture_coding import load_tiny
from idgen.train.pictures import grid, to_float
from idgen.train.priors import prior_conditions, prior_pictures

FILE = "adapter.safetensors"


class PhotoSettings(BaseModel):
    """The photos of the person."""

    model_config = ConfigDict(extra="forbid")

    photos: Path = Field(
        description="folder with 3 to 10 photos of one person; beside each, if wanted, a .txt with its caption"
    )
    caption: str = Field(
        "photo of a id person", description="of every photo; {} in it is replaced by the text beside the photo"
    )
    faceless: Literal["skip", "mask", "error"] = Field(
        "skip", description="a photo without a face: left out, kept with nothing marked as face, or an error"
    )
    crop: float | None = Field(
        None,
        gt=1,
        description="side of the square that is cut out, in heights of the face; the largest square by default",
    )
    random_flip: bool = Field(False, description="also mirrored; faces are not symmetric")
    background_weight: float = Field(1.0, ge=0, le=1, description="of the loss beside the face; 1 is the plain loss")
    face_margin: float = Field(1.3, gt=0, description="the face as the loss sees it, in sizes of the detector's box")


class PriorSettings(BaseModel):
    """Pictures that the base draws of others, to be kept as they are."""

    model_config = ConfigDict(extra="forbid")

    weight: float = Field(0.0, ge=0, description="of their loss; 0 is without")
    images: int = Field(32, ge=1)
    batch_size: int = Field(2, ge=1, description="of them in every step")
    prompts: list[str] = Field(["photo of a person"], min_length=1, description="of a text-to-image base")
    folder: Path = Field(Path("runs/prior"), description="where they are kept between trainings")
    num_inference_steps: int = Field(20, ge=1)
    guidance_scale: float = Field(2.0, ge=0)


class LoraConfig(IdentityLossConfig):
    """Settings of train/lora.py."""

    data: PhotoSettings
    base: str = Field("mini", description="the pipeline to personalise: mini, a hub id or a folder")
    condition: Literal["identity", "text"] = Field(
        "identity", description="what the base is told: a face (Arc2Face), or words (Stable Diffusion, SDXL)"
    )
    arc2face_base: str | None = Field(None, description="Stable Diffusion 1.5 beside published Arc2Face weights")
    encoder: str = Field("mini", description="face encoder that finds, and for Arc2Face reads, the faces")
    judge: str | None = Field(None, description="face encoder that measures the grids and takes no other part")
    adapter: FinetuneConfig = FinetuneConfig()
    prior: PriorSettings = PriorSettings()
    resolution: int | None = Field(None, ge=32, description="pixels per side; what the base was trained on by default")
    snr_gamma: float | None = Field(
        None,
        gt=0,
        description="of min-SNR weights of the loss, for models that predict the noise; null: all times alike",
    )
    identity_weight: float = Field(
        0.0, ge=0, description="of a loss of identity by the encoder; 0 is without, as DreamBooth"
    )
    identity_batch: int = Field(4, ge=1, description="photos of a batch that are decoded for it")
    text_encoder_rate: float = Field(0.5, gt=0, le=1, description="share of the learning rate for text encoders")
    validation_prompts: list[str] = Field(
        [], description="of the grids of a text-to-image base; the caption by default"
    )
    num_validation_images: int = Field(4, ge=1)
    num_inference_steps: int = Field(20, ge=1, description="of the grids")
    guidance_scale: float = Field(2.0, ge=0, description="of the grids")


class LoraStage(Stage[LoraConfig]):
    """An adapter that learns one person."""

    module: PersonalDenoiser
    shardable = False

    def __init__(self, config: LoraConfig, device: torch.device) -> None:
        super().__init__(config, device)
        identity = config.condition == "identity"
        encoder = FaceEncoder.from_pretrained(config.encoder, device=device)
        pipe = open_pipeline(config.base, identity, config.arc2face_base)
        if identity and encoder.recogniser != pipe.config.recogniser:
            raise IdgenError(
                f"{config.base} was trained with faces read by {pipe.config.recogniser!r}, and encoder {config.encoder!r} is"
                f" {encoder.recogniser!r}: set encoder to the same"
            )
        self.encoder = encoder if config.identity_weight else None
        self.judge = FaceEncoder.from_pretrained(config.judge, device=device) if config.judge else None
        acts = identity or self.encoder is not None
        if self.judge is not None and acts and recogniser_fingerprint(self.judge) == recogniser_fingerprint(encoder):
            raise IdgenError(
                f"judge {config.judge!r} is the recogniser that takes part in the training (encoder {config.encoder!r}): its"
                " figures would flatter the adapter; set judge to another, or leave it out"
            )
        self.size = config.resolution or resolution(pipe)
        self.photos, self.report = read_photos(
            config.data.photos,
            encoder.detect,
            self.size,
            caption="a face" if identity else config.data.caption,
            faceless=config.data.faceless,
            crop=config.data.crop,
        )
        self._tell()
        pipe.to(device)
        references, shown = read_identities(encoder, self.photos)
        note(doubts(shown))
        references = references.to(device)
        self.identity = torch.nn.functional.normalize(references.sum(0, keepdim=True), dim=1)  # (1, dim)
        prior = self._draw_prior(pipe, references.shape[1] if identity else None)
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.mixed_precision, torch.float32)
        self.module = PersonalDenoiser(
            pipe, config.adapter, config.seed, low if device.type == "cuda" else torch.float32
        )
        self._encode(prior)
        if self.encoder is not None:
            pipe.vae.requires_grad_(False).to(memory_format=torch.channels_last)
            self.decode = load_tiny(config.tiny, device) if config.tiny else vae_decoder(pipe.vae)

    def batch(self, rng: np.random.Generator) -> Batch:
        chosen = rng.choice(
            len(self.photos), self.config.train_batch_size, replace=self.config.train_batch_size > len(self.photos)
        )
        mirrored = rng.random(len(chosen)) < 0.5 * self.config.data.random_flip
        rows = torch.from_numpy(chosen + len(self.photos) * mirrored)
        latents, masks = self.latents[rows], self.masks[rows]
        conditions: Any = (
            self.conditions[rows] if isinstance(self.conditions, Tensor) else [self.conditions[i] for i in rows]
        )
        if self.prior is not None:
            kept = torch.from_numpy(
                rng.choice(len(self.prior), min(self.config.prior.batch_size, len(self.prior)), replace=False)
            )
            latents = torch.cat([latents, self.prior[kept]])
            known: Any = self.prior_conditions
            if isinstance(known, Tensor):
                conditions = torch.cat([conditions, known[kept]])
            else:
                conditions = conditions + [known[i] for i in kept]
        names = [self.photos[index].name for index in chosen]
        batch: Batch = {"latents": latents, "masks": masks, "conditions": conditions, "ids": names}
        if self.encoder is not None:
            found = [self.photos[index].landmarks for index in chosen]
            places = np.stack([np.zeros((5, 2), np.float32) if one is None else one for one in found])
            batch["landmarks"] = torch.from_numpy(places).to(self.device)
            batch["faces"] = torch.tensor([one is not None for one in found], device=self.device)
            batch["mirrored"] = torch.from_numpy(mirrored).to(self.device)
        return batch

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        noised = add_noise(self.module.scheduler, batch["latents"], self.config.snr_gamma or math.inf)
        prediction = model(noised.noisy, noised.timesteps, batch["conditions"])
        count = len(batch["masks"])
        person = masked_denoising_loss(prediction[:count], _rows(noised, slice(count)), batch["masks"])
        losses = {"loss": person, "person": person}
        if len(prediction) > count:
            losses["prior"] = denoising_loss(prediction[count:], _rows(noised, slice(count, None)))
            losses["loss"] = losses["loss"] + self.config.prior.weight * losses["prior"]
        if self.encoder is not None:
            losses["identity"] = self._identity(prediction[:count], _rows(noised, slice(count)), batch)
            losses["loss"] = losses["loss"] + self.config.identity_weight * losses["identity"]
        return losses

    def _identity(self, prediction: Tensor, noised: Noised, batch: Batch) -> Tensor:
        """How unlike the person the predicted photos are."""
        config, scheduler, encoder = self.config, self.module.scheduler, self.encoder
        assert encoder is not None
        weights = schedule_weights(
            config.identity_schedule, scheduler.alphas_cumprod, noised.timesteps, config.identity_max_timestep
        )
        mirrored = batch["mirrored"].view(-1, 1, 1, 1)

        def see(pictures: Tensor, rows: Tensor) -> Tensor:
            # The right way round, as the landmarks are. Half precision would place the crop's pixels wrongly.
            with torch.autocast(self.device.type, enabled=False):
                pictures = torch.where(mirrored[rows], pictures.flip(3), pictures)
                return encoder.encode_aligned(norm_crop_torch(pictures, batch["landmarks"][rows]))

        clean = predicted_latents(scheduler, prediction, noised)
        people = self.identity.expand(len(clean), -1)
        return weighed_distance(see, self.decode, clean, people, weights * batch["faces"], config.identity_batch)

    def groups(self) -> list[dict[str, Any]]:
        pairs = list(zip(self.module.names, self.module.weights, strict=True))
        fast = [weight for name, weight in pairs if name.startswith("unet.")]
        slow = [weight for name, weight in pairs if not name.startswith("unet.")]
        groups = [{"params": fast, "rate": 1.0}, {"params": slow, "rate": self.config.text_encoder_rate}]
        return [group for group in groups if group["params"]]

    def models(self) -> list[nn.Module]:
        names = ("unet", "text_encoder", "text_encoder_2")
        return [part for name in names if (part := getattr(self.module.pipe, name, None)) is not None]

    def about(self) -> dict[str, Any]:
        return self.report.as_dict()

    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        config, pipe = self.config, self.module.pipe
        prompts: list[Any] = (
            [self.identity] if config.condition == "identity" else config.validation_prompts or [self.photos[0].caption]
        )
        pictures: list[Image.Image] = []
        for prompt in prompts:
            pictures += pipe(
                prompt,
                num_images_per_prompt=config.num_validation_images,
                num_inference_steps=config.num_inference_steps,
                guidance_scale=config.guidance_scale,
                height=self.size,
                width=self.size,
                generator=torch.Generator().manual_seed(config.seed),
            ).images
        figures: dict[str, float] = {
            "photos": len(self.report.used),
            "photos_unreadable": len(self.report.unreadable),
            "photos_without_face": len(self.report.faceless),
        }
        if self.judge is not None:
            with torch.autocast(self.device.type, enabled=False):
                figures |= self._judged(self.judge, pictures)
        columns = config.num_validation_images
        shown = [Image.fromarray(photo.pixels) for photo in self.photos[:columns]]
        shown += [Image.new("RGB", (self.size, self.size))] * (columns - len(shown))
        return figures, grid([*shown, *pictures], columns)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_adapter(folder / FILE, self.module.pipe, NAME)
        if self.encoder is not None:
            declare_rewards(folder / FILE, [self.encoder.recogniser])

    def load(self, folder: Path) -> None:
        self.module.load(folder / FILE)

    def _tell(self) -> None:
        for line in self.report.lines():
            say(line)
        with atomic_write(self.config.output_dir / "photos.json") as temporary:
            temporary.write_text(json.dumps(self.report.as_dict(), indent=1) + "\n", encoding="utf-8")

    def _draw_prior(self, pipe: Any, identity_dim: int | None) -> np.ndarray | None:
        prior = self.config.prior
        if not prior.weight:
            return None
        self.prior_conditions = prior_conditions(prior.prompts, prior.images, identity_dim, self.config.seed)
        return prior_pictures(
            pipe,
            self.prior_conditions,
            prior.folder,
            steps=prior.num_inference_steps,
            guidance=prior.guidance_scale,
            size=self.size,
            seed=self.config.seed,
        )

    def _encode(self, prior: np.ndarray | None) -> None:
        """Latents, masks and conditions of everything that is trained on; mirrored photos come behind the others."""
        pixels = to_float(np.stack([photo.pixels for photo in self.photos]), self.device)
        both = torch.cat([pixels, pixels.flip(3)]) if self.config.data.random_flip else pixels
        self.latents = self.module.encode_pictures(both)
        data = self.config.data
        masks = face_masks(self.photos, self.latents.shape[-1], data.face_margin, data.background_weight).to(
            self.device
        )
        self.masks = torch.cat([masks, masks.flip(3)])
        if self.config.condition == "identity":
            self.conditions: Any = self.identity.expand(2 * len(self.photos), -1)
        else:
            self.conditions = [photo.caption for photo in self.photos] * 2
        self.prior = None if prior is None else self.module.encode_pictures(to_float(prior, self.device))
        if self.prior is not None and isinstance(self.prior_conditions, Tensor):
            self.prior_conditions = self.prior_conditions.to(self.device)

    def _judged(self, judge: FaceEncoder, pictures: list[Image.Image]) -> dict[str, float]:
        """How like the photos the pictures are; a picture without a face is like nobody."""
        wanted = _seen(judge, [photo.original for photo in self.photos if photo.box is not None])
        made = _seen(judge, pictures)
        likeness = sum(float(one.similarity(other)) for one in made for other in wanted)
        return {
            "judge_cosine_to_photos": likeness / max(1, len(pictures) * len(wanted)),
            "faces_found": len(made) / len(pictures),
        }


def _seen(encoder: FaceEncoder, images: Sequence[Any]) -> list[Identity]:
    """The faces of images that show one large enough."""
    found = []
    for image in images:
        with suppress(IdgenError):
            found.append(encoder(image))
    return found


def _rows(noised: Noised, rows: slice) -> Noised:
    return Noised(noised.noisy[rows], noised.target[rows], noised.timesteps[rows], noised.weights[rows])


if __name__ == "__main__":
    run(LoraStage, LoraConfig)
