"""Arc2Face: photos of a person from the face embedding alone (arXiv 2403.11641, github.com/foivospar/Arc2Face)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput, StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from idgen.adapters.arc2face import (
    Arc2FaceConfig,
    IdentityPrompt,
    identity_prompt_embeds,
    load_encoder,
    load_unet,
    load_vae,
    locate,
    null_prompt_embeds,
)
from idgen.adapters.identities import IdentityLike, unit_embeddings
from idgen.errors import IdgenError
from idgen.pipelines.shared import EndsGuidance


class Arc2FacePipeline(EndsGuidance, StableDiffusionPipeline):
    """Stable Diffusion whose prompt is one face: `pipe(identity).images`.

    Everything else is diffusers' own: schedulers, callbacks, offloading, LoRA, `save_pretrained`.

        pipe = Arc2FacePipeline.from_pretrained("mini")
        identity = FaceEncoder.from_pretrained("mini")(["anna1.jpg", "anna2.jpg"])
        pipe(identity, num_images_per_prompt=4, generator=torch.Generator().manual_seed(0)).images

    Args:
        recogniser: who made the embeddings that the weights were trained with; an Identity of another one is refused.
    """

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        requires_safety_checker: bool = False,
        recogniser: str = Arc2FaceConfig.recogniser,
    ) -> None:
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )
        self.register_to_config(recogniser=recogniser)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        base: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Arc2FacePipeline:
        """Load the mini family, the published weights, or what `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: `"mini"`; a hub id such as `"FoivosPar/Arc2Face"`; or a folder: of that
                repository's layout (`arc2face/` the UNet, `encoder/` the text encoder), or a saved Arc2FacePipeline.
            base: for the published layout, the Stable Diffusion 1.5 hub id or folder that supplies the autoencoder,
                tokenizer and scheduler. Default: the folder itself if it holds them, else stable-diffusion-v1-5.
            kwargs: as in diffusers (`torch_dtype`, `variant`, `scheduler=...`, `cache_dir`, `local_files_only`, ...),
                and `recogniser`.
        Raises:
            IdgenError: something is missing, broken, or not on this machine and can not be fetched.
        """
        source = locate(pretrained_model_name_or_path, base, kwargs)
        for part, load, folder in (
            ("unet", load_unet, source.unet),
            ("text_encoder", load_encoder, source.encoder),
            ("vae", load_vae, source.base / "vae"),
        ):
            if part not in kwargs:
                kwargs[part] = load(folder, dtype=_dtype(kwargs, part), variant=kwargs.get("variant"))
        if source.recogniser is not None:
            # Of a Stable Diffusion base only the autoencoder, tokenizer and scheduler are wanted.
            kwargs = {"recogniser": source.recogniser, "safety_checker": None, "feature_extractor": None} | kwargs
            kwargs["requires_safety_checker"] = kwargs["safety_checker"] is not None
        try:
            pipe = super().from_pretrained(str(source.base), **kwargs)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise IdgenError(f"cannot load the tokenizer or scheduler from {source.base}: {reason}") from error
        if isinstance(pipe.scheduler, PNDMScheduler) and "scheduler" not in kwargs and source.recogniser is not None:
            # Stable Diffusion 1.5 comes with PNDM; the authors sample with DPM-Solver++ at evenly spaced steps.
            spacing = {"timestep_spacing": "linspace"}
            pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, **spacing)
        # Three times as fast on a CPU in bf16; the mini family's UNet loses by it.
        pipe.vae.to(memory_format=torch.channels_last)
        return pipe

    @torch.no_grad()
    def encode_identity(self, identity: IdentityLike) -> torch.Tensor:
        """The prompt embeddings of each person: (people, length, hidden). Reusable between calls as `prompt_embeds`.

        Args:
            identity: one person as `Identity`, several as a list of them, or a tensor of embeddings (people, 512)
                made by `config.recogniser`, raw or unit. The references of an Identity are pooled: the mean of their
                unit embeddings, made unit again.
        """
        faces = unit_embeddings(identity, recogniser=self.config.recogniser, dim=Arc2FaceConfig.embedding_dim)
        return identity_prompt_embeds(self.text_encoder, self._prompt(), faces.to(self._execution_device))

    @torch.no_grad()
    def encode_null(self) -> torch.Tensor:
        """The embeddings (1, length, hidden) of the empty prompt through the finetuned encoder, for guidance."""
        return null_prompt_embeds(self.text_encoder, self._prompt(), self._execution_device)

    @torch.no_grad()
    def __call__(
        self,
        identity: IdentityLike | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 3.0,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: Any | None = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 - diffusers' own signature
    ) -> StableDiffusionPipelineOutput | Any:
        """Generate `num_images_per_prompt` images of each person, person by person.

        Args:
            identity: see `encode_identity`.
            guidance_scale: 1 turns guidance off; the authors use 3.
            prompt_embeds: the output of `encode_identity`, instead of `identity`.
            negative_prompt_embeds: (people, length, hidden) or (1, length, hidden); default: the empty prompt's.
        The others are those of diffusers' StableDiffusionPipeline. There is no text prompt: the method has none.

        Returns:
            `.images`: PIL images, an array (images, height, width, 3) in [0, 1] for "np", a tensor
            (images, 3, height, width) for "pt", latents for "latent".
        Raises:
            IdgenError: no identity, or one that these weights do not understand (see `encode_identity`).
        """
        if identity is not None and prompt_embeds is None:
            prompt_embeds = self.encode_identity(identity)
        elif identity is not None or prompt_embeds is None:
            raise IdgenError("pass either an identity or prompt_embeds made by encode_identity, and not both")
        if negative_prompt_embeds is None and guidance_scale > 1 and self.text_encoder is not None:
            negative_prompt_embeds = self.encode_null()
        if negative_prompt_embeds is not None:
            negative_prompt_embeds = negative_prompt_embeds.expand(len(prompt_embeds), -1, -1)
        return super().__call__(
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            eta=eta,
            generator=generator,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            ip_adapter_image=ip_adapter_image,
            ip_adapter_image_embeds=ip_adapter_image_embeds,
            output_type=output_type,
            return_dict=return_dict,
            cross_attention_kwargs=cross_attention_kwargs,
            guidance_rescale=guidance_rescale,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )

    def _prompt(self) -> IdentityPrompt:
        return IdentityPrompt.tokenise(self.tokenizer, Arc2FaceConfig(recogniser=self.config.recogniser))


def _dtype(options: dict[str, Any], component: str) -> torch.dtype:
    """diffusers' `dtype` (older: `torch_dtype`): one for all, or a dict by component; float32 when not given."""
    dtype: Any = options.get("dtype") or options.get("torch_dtype") or torch.float32
    if isinstance(dtype, dict):
        dtype = dtype.get(component, dtype.get("default", torch.float32))
    return dtype
