"""Trains PVA, inpainting with a person's face: `accelerate launch train/inpaint.py --config configs/mini/inpaint.yaml`.

Stage 1 of PVA (Xu et al., WACV 2024, arXiv 2312.03556; github.com/AtlantixJJ/PVA-CelebAHQ-IDI): a network that turns 1 to 5
references into visual tokens, attention to them, and the vector that stands for the person in the prompt; each picture once in
every stratum of time. There the inpainting model is given and frozen. The mini family has none, so its text-to-face model
learns to inpaint at the same time (`train_unet`), and then needs pictures without a person too (`condition_dropout`).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from transformers import CLIPTokenizer

from idgen.adapters.arc2face.convert import load_model
from idgen.adapters.embeddings import RawEmbeddings
from idgen.adapters.pva import PVAAdapter, PVAConfig
from idgen.adapters.pva.prompt import NEGATIVE, PROMPT, PersonPrompts
from idgen.adapters.pva.sources import ADAPTER, SAVED
from idgen.adapters.pva.training import HoleBatch, PVADenoiser, make_holes, predict_hole, stratified_times
from idgen.adapters.pva.transform import face_crop
from idgen.adapters.wplus.sources import load_base
from idgen.checkpoint import sha256
from idgen.data.celebahq_idi import CelebAHQIDI
from idgen.data.faces import FaceFolder
from idgen.data.portraits import Portraits, SynthPortraits, as_tensor, embed_portraits, mirrored_caption
from idgen.errors import IdgenError
from idgen.faces.align_torch import norm_crop_torch
from idgen.losses.diffusion import Noised, denoising_loss, predicted_latents
from idgen.losses.identity import schedule_weights, weighed_distance
from idgen.models.inpainting import inpainting_unet
from idgen.models.iresnet import load_iresnet
from idgen.models.registry import load_recogniser, read_config
from idgen.pipelines.pva import PVAInpaintPipeline
from idgen.rewards.identity import mean_reference
from idgen.rewards.views import vae_decoder
from idgen.train.base import attend_plainly
from idgen.train.loop import Batch, Stage, run
from idgen.train.loss_settings import IdentityLossConfig, WordsLossConfig
from idgen.train.picture_coding import load_tiny
from idgen.train.pictures import grid, to_pil
from idgen.train.words import WordsLoss


class InpaintTrainConfig(IdentityLossConfig, WordsLossConfig):
    """Settings of train/inpaint.py."""

    layout: Literal["synth", "celebahq_idi"] = Field("synth", description="of the data: `idgen synth`, or CelebAHQ-IDI")
    data: Path = Field(description="folder of the data set; of CelebAHQ-IDI the train split")
    validation: Path = Field(description="the same with people of no training; of CelebAHQ-IDI the val split")
    setting: int = Field(5, ge=1, description="of CelebAHQ-IDI: #Ref, the N of annotation/idi-N.json")
    base: Path = Field(description="folder of the text-to-image or inpainting pipeline")
    recogniser: Path = Field(description="folder of the conditioning recogniser, or file of arcface_torch's IResNet")
    references: int = Field(5, ge=1, description="at most so many; each step draws how many")
    tokens: int = Field(10, ge=1, description="visual tokens")
    layers: int = Field(4, ge=1, description="of the network that makes them")
    feedforward: int = Field(2048, ge=1, description="width of each layer's hidden one")
    caption_share: float = Field(0.5, ge=0, le=1, description="the other prompts only say that it is the person")
    flip_share: float = Field(0.5, ge=0, le=1, description="pictures that are mirrored")
    condition_dropout: float = Field(0.0, ge=0, le=1, description="pictures that are filled with nobody in particular")
    time_bins: int = Field(4, ge=1, description="strata of time, in each of which every picture of a batch is seen")
    train_unet: bool = Field(False, description="the base is no inpainting model, and shall become one")
    transform_rate: float = Field(4.0, gt=0, description="the token network's multiple of the learning rate")
    modifier_rate: float = Field(125.0, gt=0, description="the person's word's multiple of the learning rate")
    initialiser: str = Field("person", description="word whose embedding the person's word starts as")
    identity_weight: float = Field(0.0, ge=0, description="of a loss that PVA's authors do not have; 0 is without")
    identity_batch: int = Field(8, ge=1, description="samples of a batch that are decoded for it")


class InpaintStage(Stage[InpaintTrainConfig]):
    """PVA's own weights, and where wanted the UNet's."""

    module: PVADenoiser

    def __init__(self, config: InpaintTrainConfig, device: torch.device) -> None:
        super().__init__(config, device)
        parts: dict[str, Any] = load_base(config.base, {})
        for name, part in parts.items():
            parts[name] = part.to(device).eval().requires_grad_(False)
        self.vae = parts["vae"].to(memory_format=torch.channels_last)
        self.decode = load_tiny(config.tiny, device) if config.tiny else vae_decoder(self.vae)
        self.tokenizer = CLIPTokenizer.from_pretrained(config.base / "tokenizer")
        self.scheduler = DDIMScheduler.from_pretrained(config.base / "scheduler")
        unet = self._unet(parts["unet"]).to(device)
        self.size = unet.config.sample_size * 8
        self._open_data()
        self.words = self._words() if config.words_weight else None
        sizes = {"in_dim": self.embeddings.shape[1], "num_q_token": config.tokens, "num_layer": config.layers}
        sizes["feedforward"] = config.feedforward
        width = unet.config.cross_attention_dim
        adapter = PVAAdapter.for_unet(unet, PVAConfig(recogniser=self.recogniser_name, out_dim=width, **sizes))
        self._initialise(adapter, parts["text_encoder"])
        if config.train_unet:  # before the adapter takes the processors' place
            parts["unet"] = unet
            attend_plainly(nn.ModuleDict({name: parts[name] for name in ("unet", "text_encoder")}), device)
        adapter.to(device).inject(unet)
        self.adapter: PVAAdapter = adapter
        self.module = PVADenoiser(unet, adapter, parts["text_encoder"])

    def batch(self, rng: np.random.Generator) -> Batch:
        config = self.config
        chosen = rng.choice(len(self.data), min(config.train_batch_size, len(self.data)), replace=False)
        others = [self._others(int(index)) for index in chosen]
        count = min(int(rng.integers(1, config.references + 1)), min(map(len, others)))
        references = np.stack([self.embeddings[rng.choice(rest, count, replace=False)] for rest in others])
        shown = rng.random(len(chosen)) >= config.condition_dropout
        pictures = np.stack([self.data.picture(int(index)) for index in chosen])
        holes = np.stack([self.data.hole(int(index), rng) for index in chosen])
        mirrored = rng.random(len(chosen)) < config.flip_share
        pictures[mirrored], holes[mirrored] = pictures[mirrored, :, ::-1], holes[mirrored, :, ::-1]
        told = rng.random(len(chosen)) < config.caption_share
        ways = zip(chosen, shown, told, mirrored, strict=True)
        texts = [self._prompt(int(index), *map(bool, way)) for index, *way in ways]
        # Who it is: what the recogniser sees in all the others.
        people = [mean_reference(torch.from_numpy(self.embeddings[rest])) for rest in others]
        return {
            "photos": torch.from_numpy(chosen),
            "mirrored": torch.from_numpy(mirrored).to(self.device),
            "told": torch.from_numpy(told).to(self.device),
            "people": torch.stack(people).to(self.device),
            "pictures": as_tensor(pictures, self.device),
            "holes": torch.from_numpy(holes[:, None]).to(self.device).float(),
            # Left on the CPU: each person's are looked at there, and moved together.
            "references": torch.from_numpy(references),
            "shown": torch.from_numpy(shown).to(self.device),
            "prompts": PersonPrompts.tokenise(self.tokenizer, texts),
        }

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        latents, masked, mask = make_holes(self.vae, batch["pictures"], batch["holes"])
        bins = self.config.time_bins

        def often(x: Tensor) -> Tensor:
            return torch.cat([x] * bins)

        prompts = PersonPrompts(often(batch["prompts"].input_ids), often(batch["prompts"].mask))
        rows = HoleBatch(
            often(latents.float()),
            often(masked.float()),
            often(mask.float()),
            often(batch["references"]),
            prompts,
            often(batch["shown"]) if self.config.condition_dropout else None,
        )
        times = stratified_times(self.scheduler, len(latents), bins, self.device).flatten()
        prediction, noised = predict_hole(model, self.scheduler, rows, times, torch.randn_like(rows.latents))
        denoising = denoising_loss(prediction, noised)
        if not self.config.identity_weight and self.words is None:
            return {"loss": denoising}
        losses = {"loss": denoising, "denoising": denoising}
        clean = predicted_latents(self.scheduler, prediction, noised)
        if self.config.identity_weight:
            losses["identity"] = self._identity(clean, noised, batch)
            losses["loss"] = losses["loss"] + self.config.identity_weight * losses["identity"]
        if self.words is not None:
            photos, told, mirrored = (batch[name].repeat(bins) for name in ("photos", "told", "mirrored"))
            losses["words"] = self.words(clean, rows.latents, noised.timesteps, photos, told, mirrored)
            losses["loss"] = losses["loss"] + self.config.words_weight * losses["words"]
        return losses

    def _identity(self, clean: Tensor, noised: Noised, batch: Batch) -> Tensor:
        config, photos = self.config, len(batch["photos"])
        weights = schedule_weights(
            config.identity_schedule, self.scheduler.alphas_cumprod, noised.timesteps, config.identity_max_timestep
        )

        # The batch goes from stratum to stratum: those that are looked at shall be of all.
        order = torch.randperm(len(clean), device=clean.device)

        def see(pictures: Tensor, rows: Tensor) -> Tensor:
            rows = order[rows] % photos
            pictures = torch.where(batch["mirrored"][rows].view(-1, 1, 1, 1), pictures.flip(3), pictures)
            return self._embed(self.data, pictures, batch["photos"][rows.cpu()].numpy())

        weights = (weights * batch["shown"].repeat(config.time_bins))[order]
        targets = batch["people"][order % photos]
        return weighed_distance(see, self.decode, clean[order], targets, weights, config.identity_batch)

    def groups(self) -> list[dict[str, Any]]:
        network = list(self.adapter.transform_network.parameters())
        apart = {id(parameter) for parameter in [*network, self.adapter.modifier]}
        rest = [p for p in self.module.parameters() if p.requires_grad and id(p) not in apart]
        return [
            {"params": rest, "rate": 1.0},
            {"params": network, "rate": self.config.transform_rate},
            {"params": [self.adapter.modifier], "rate": self.config.modifier_rate},
        ]

    def models(self) -> list[torch.nn.Module]:
        return [self.module, self.module.part("unet")]  # a frozen UNet is no part of the module

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], Image.Image | None]:
        """Whole faces of people of no training, filled from references and from none."""
        shots = [numbers for numbers in self.held_out.people if len(numbers) > 1][:8]
        chosen = np.array([numbers[0] for numbers in shots])
        vectors = [self.held_out_embeddings[numbers[1 : 1 + self.config.references]] for numbers in shots]
        people = [RawEmbeddings(torch.from_numpy(rows), self.recogniser_name) for rows in vectors]
        truth = as_tensor(np.stack([self.held_out.picture(int(index)) for index in chosen]), self.device)
        hole = np.stack([self.held_out.hole(int(index), None) for index in chosen])
        holes = torch.from_numpy(hole[:, None]).to(self.device).float()
        references = as_tensor(np.stack([self.held_out.picture(int(numbers[1])) for numbers in shots]), self.device)
        pipe = self._pipeline()
        figures, rows = {}, [truth * (1 - holes)]
        for name, who in (("person", people), ("nobody", None)):
            generator = [torch.Generator().manual_seed(index) for index in range(len(shots))]
            options: dict[str, Any] = {"num_inference_steps": 20, "output_type": "pt", "generator": generator}
            prompt = None if who else [NEGATIVE] * len(shots)
            made = pipe(who, prompt, (truth + 1) / 2, holes, **options).images.float() * 2 - 1
            rows.append(made)
            figures[f"error_{name}"] = float(((made - truth).abs() * holes).sum() / holes.sum() / 3)
            seen = F.normalize(self._embed(self.held_out, made, chosen), dim=-1).cpu()
            known = torch.stack([F.normalize(F.normalize(one.vectors, dim=-1).mean(0), dim=-1) for one in people])
            figures[f"cosine_{name}"] = float((seen * known).sum(-1).mean())
        rows += [truth, references]
        return figures, grid([picture for row in rows for picture in to_pil(row)], len(shots))

    def save(self, folder: Path) -> None:
        unet = self.module.part("unet")
        if self.config.train_unet:
            plain = type(unet).from_config(unet.config)
            plain.load_state_dict(unet.state_dict())
            plain.half().save_pretrained(folder / "unet")
        adapter = PVAAdapter(self.adapter.config, self.adapter.layers)
        adapter.load_state_dict(self.adapter.state_dict())
        adapter.half().save(folder / SAVED / ADAPTER)

    def load(self, folder: Path) -> None:
        unet = self.module.part("unet")
        if self.config.train_unet:
            unet.load_state_dict(load_model(folder / "unet", "UNet").state_dict())
        loaded = PVAAdapter.from_pretrained(folder / SAVED / ADAPTER, unet, dtype=torch.float32)
        self.adapter.load_state_dict(loaded.state_dict())

    def _unet(self, base: UNet2DConditionModel) -> UNet2DConditionModel:
        if self.config.train_unet:
            return inpainting_unet(base).train().requires_grad_(True)
        if base.config.in_channels != 2 * self.vae.config.latent_channels + 1:
            raise IdgenError(
                f"the UNet of {self.config.base} is none of an inpainting model: name one that is, or set train_unet"
            )
        return base

    def _words(self) -> WordsLoss:
        if not isinstance(self.data, SynthPortraits):
            raise IdgenError("words_weight needs pictures of `idgen synth`: no others say what their captions mean")
        return WordsLoss(self.config, self.data.data, self.scheduler, self.decode, self.device)

    def _open_data(self) -> None:
        config, device = self.config, self.device
        if config.layout == "synth":
            self.data: Portraits = SynthPortraits(FaceFolder.open(config.data))
            self.held_out: Portraits = SynthPortraits(FaceFolder.open(config.validation))
        else:
            self.data = CelebAHQIDI(config.data, "train", config.setting, self.size)
            self.held_out = CelebAHQIDI(config.validation, "val", config.setting, self.size)
        if config.recogniser.is_dir():
            self.recogniser = load_recogniser(config.recogniser)
            self.recogniser_name = str(read_config(config.recogniser).get("name", config.recogniser.name))
            file = config.recogniser / "model.safetensors"
        else:
            self.recogniser, self.recogniser_name, file = (
                load_iresnet(config.recogniser),
                PVAConfig.recogniser,
                config.recogniser,
            )
        self.recogniser.to(device).requires_grad_(False)
        splits = ("", "") if config.layout == "synth" else (f"-{config.setting}-train", f"-{config.setting}-val")
        names = [f"portraits-{sha256(file)[:12]}{split}" for split in splits]
        self.embeddings = embed_portraits(self.data, partial(self._embed, self.data), names[0], device)
        self.held_out_embeddings = embed_portraits(self.held_out, partial(self._embed, self.held_out), names[1], device)
        self._rest = {int(index): numbers for numbers in self.data.people for index in numbers}
        if min(map(len, self.data.people)) < 2:
            raise IdgenError(f"{config.data} has people of a single picture: nothing is left to be their reference")

    def _embed(self, data: Portraits, pictures: Tensor, numbers: np.ndarray) -> Tensor:
        """Raw embeddings, of crops as the recogniser was trained with."""
        if isinstance(data, SynthPortraits):
            landmarks = torch.from_numpy(data.data.landmarks[numbers]).to(pictures.device)
            # Half precision would place the crop's pixels wrongly.
            with torch.autocast(pictures.device.type, enabled=False):
                crops = norm_crop_torch(pictures.float(), landmarks)
            return self.recogniser(crops).float()
        return self.recogniser(face_crop(pictures)).float()

    def _others(self, index: int) -> np.ndarray:
        numbers = self._rest[index]
        return numbers[numbers != index]

    def _prompt(self, index: int, shown: bool, told: bool, mirrored: bool) -> str:
        prompt, caption = PROMPT if shown else NEGATIVE, self.data.caption(index)
        if not (caption and told):
            return prompt
        return f"{prompt}, {mirrored_caption(caption) if mirrored else caption}"

    def _initialise(self, adapter: PVAAdapter, text_encoder: Any) -> None:
        words = self.tokenizer(self.config.initialiser, add_special_tokens=False).input_ids
        table = text_encoder.get_input_embeddings().weight
        if table.shape[1] != len(adapter.modifier):
            raise IdgenError(
                f"base: its UNet reads {len(adapter.modifier)} channels and its text encoder gives {table.shape[1]}: PVA is for"
                " Stable Diffusion with one text encoder"
            )
        adapter.modifier.data.copy_(table[words].mean(0))

    def _pipeline(self) -> PVAInpaintPipeline:
        """Around the weights in training; nothing is copied."""
        pipe = PVAInpaintPipeline(
            vae=self.vae,
            text_encoder=self.module.part("text_encoder"),
            tokenizer=self.tokenizer,
            unet=self.module.part("unet"),
            scheduler=DDIMScheduler.from_config(self.scheduler.config),
        )
        pipe.set_progress_bar_config(disable=True)
        pipe.pva = self.adapter
        return pipe


if __name__ == "__main__":
    run(InpaintStage, InpaintTrainConfig)
