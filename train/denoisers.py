"""A pipeline whose UNet, and text encoders where wanted, are finetuned by an adapter: what `train/lora.py` trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoPipelineForText2Image,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from idgen.adapters.arc2face import Arc2FaceConfig, IdentityPrompt, identity_prompt_embeds, null_prompt_embeds
from idgen.errors import IdgenError
from idgen.finetune import FinetuneConfig, adapter_parameters, add_adapter, load_adapter, remove_adapter
from idgen.identity import Identity
from idgen.pipelines import Arc2FacePipeline
from idgen.weights import mini_root

NAME = "person"  # of the adapter

# What the UNet is told: captions, or unit embeddings (batch, 512) of which zeros mean nobody.
Conditions = Sequence[str] | Tensor


class PersonalDenoiser(nn.Module):
    """The adapter's parameters, and the pipeline that they act in; the pipeline is frozen and no part of the state dict.

    Args:
        pipe: Stable Diffusion, SDXL or Arc2Face.
        config: of the adapter.
        seed: of its first values.
        base_dtype: of the frozen weights; the adapter's are float32.
    """

    def __init__(
        self, pipe: Any, config: FinetuneConfig, seed: int = 0, base_dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self._pipe = [pipe]  # in a list, so that it does not become a part of this
        for name in ("unet", "text_encoder", "text_encoder_2"):
            part = getattr(pipe, name, None)
            if part is not None:
                part.requires_grad_(False)
                if part.dtype != base_dtype:
                    part.to(base_dtype)
        if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
            raise IdgenError(
                f"this UNet reads {pipe.unet.config.in_channels} channels, as for inpainting: personalise a text-to-image model"
            )
        if pipe.unet.device.type == "cpu":
            # The fused attention's backward pass takes longer than all the rest at these sizes.
            pipe.unet.set_attn_processor(AttnProcessor())
        self.config = config
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._take(add_adapter(pipe, config, NAME))
        self.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        self._words: dict[str, tuple[Tensor, ...]] = {}

    @property
    def pipe(self) -> Any:
        return self._pipe[0]

    def forward(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """
        Args:
            noisy: (batch, channels, h, w).
            timesteps: (batch,) int64.
            conditions: one a row.

        Returns:
            Like `noisy`.
        """
        trains_text = any(module != "unet" for module in self.config.modules)
        with torch.set_grad_enabled(trains_text and torch.is_grad_enabled()):
            context, *pooled = self._encode(conditions, keep=not trains_text)
        more = {"text_embeds": pooled[0], "time_ids": picture_sizes(self.pipe, noisy).to(context)} if pooled else None
        return self.pipe.unet(noisy, timesteps, context, added_cond_kwargs=more).sample

    @torch.no_grad()
    def encode_pictures(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) in [-1, 1] -> scaled latents (n, channels, h / f, w / f) float32."""
        vae = self.pipe.vae
        parts = []
        for part in images.to(vae.device, vae.dtype).split(8):
            encoded = vae.encode(part)
            latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
            parts.append((latents - (vae.config.get("shift_factor") or 0)) * vae.config.scaling_factor)
        return torch.cat(parts).float()

    def load(self, file: Path) -> None:
        """Take up an adapter that was saved, of the same settings."""
        remove_adapter(self.pipe, NAME)
        found = load_adapter(file, self.pipe, NAME)
        if found.kind != self.config.kind or found.modules != self.config.modules:
            raise IdgenError(
                f"{file} holds a {found.kind} adapter of {', '.join(found.modules)}: set adapter.kind and adapter.modules to that"
            )
        self._take(adapter_parameters(self.pipe, NAME))

    def _take(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.names = list(parameters)
        for parameter in parameters.values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        self.weights = nn.ParameterList(parameters.values())

    def _encode(self, conditions: Conditions, keep: bool) -> tuple[Tensor, ...]:
        """What `_encode_words` gives, of words or of a face."""
        if isinstance(conditions, Tensor):
            return (self._encode_identities(conditions),)
        if not keep:
            return self._encode_words(list(conditions))
        # The encoders do not change: every caption is read once.
        fresh = [text for text in dict.fromkeys(conditions) if text not in self._words]
        if fresh:
            rows = zip(*self._encode_words(fresh), strict=True)
            self._words |= dict(zip(fresh, rows, strict=True))
        return tuple(torch.stack(part) for part in zip(*(self._words[text] for text in conditions), strict=True))

    def _encode_words(self, captions: list[str]) -> tuple[Tensor, ...]:
        """Prompt embeddings (batch, tokens, dim), and for SDXL the pooled ones (batch, dim)."""
        encoded = self.pipe.encode_prompt(
            prompt=captions, device=self.pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return (encoded[0],) if len(encoded) == 2 else (encoded[0], encoded[2])

    def _encode_identities(self, vectors: Tensor) -> Tensor:
        encoder = self.pipe.text_encoder
        prompt = IdentityPrompt.tokenise(self.pipe.tokenizer, Arc2FaceConfig(recogniser=self.pipe.config.recogniser))
        people, rows = vectors.unique(dim=0, return_inverse=True)  # most rows of a batch are the same person
        context = identity_prompt_embeds(encoder, prompt, people)
        nobody = people.abs().sum(1) == 0
        if nobody.any():
            empty = null_prompt_embeds(encoder, prompt, vectors.device).to(context.dtype)
            context = torch.where(nobody[:, None, None], empty, context)
        return context[rows]


def open_pipeline(base: str, identity: bool, arc2face_base: str | None = None) -> Any:
    """The pipeline to personalise, in float32, on the CPU.

    Args:
        base: `"mini"`, a hub id or a folder.
        identity: whether it is an Arc2Face model, which is told a face in the place of words.
        arc2face_base: see `Arc2FacePipeline.from_pretrained`.

    Raises:
        IdgenError: it can not be loaded, or is of another kind.
    """
    if identity:
        pipe: Any = Arc2FacePipeline.from_pretrained(base, base=arc2face_base)
    else:
        source = str(mini_root()) if base == "mini" else base
        try:
            pipe = AutoPipelineForText2Image.from_pretrained(source, torch_dtype=torch.float32)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise IdgenError(
                f"cannot load the base {source}: {reason}; give a folder or hub id of Stable Diffusion"
            ) from error
        if not isinstance(pipe, StableDiffusionPipeline | StableDiffusionXLPipeline):
            raise IdgenError(f"{source} is a {type(pipe).__name__}: personalise Stable Diffusion 1.5, 2 or SDXL")
        if getattr(pipe, "safety_checker", None) is not None:
            pipe.safety_checker = None  # it would look at grids of training only
    pipe.set_progress_bar_config(disable=True)
    return pipe


def resolution(pipe: Any) -> int:
    """Pixels per side of the pictures that a pipeline was trained on."""
    return int(pipe.unet.config.sample_size * pipe.vae_scale_factor)


def picture_sizes(pipe: Any, latents: Tensor) -> Tensor:
    """(batch, 6) what SDXL is told of pictures that have these latents, see `told_size`."""
    height, width = (side * pipe.vae_scale_factor for side in latents.shape[-2:])
    return told_size(height, width).to(latents.device).expand(len(latents), -1)


def told_size(height: int, width: int) -> Tensor:
    """(6,) what SDXL is told of a picture: height and width, no crop, height and width again."""
    return torch.tensor([height, width, 0, 0, height, width])


def read_identities(encoder: Any, photos: Sequence[Any]) -> tuple[Tensor, Identity]:
    """Unit embeddings (photos, dim), of photos without a face the zeros that stand for nobody; and whom the others show."""
    seen = [index for index, photo in enumerate(photos) if photo.box is not None]
    identity: Identity = encoder([photos[index].original for index in seen])
    rows = torch.zeros(len(photos), identity.raw.shape[1])
    rows[seen] = identity.unit()
    return rows, identity
