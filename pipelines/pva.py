"""PVA: a hole in a photo filled with a person's face (Xu et al., WACV 2024, arXiv 2312.03556)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput, StableDiffusionSafetyChecker
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import retrieve_timesteps
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from idgen.adapters.base import Scale
from idgen.adapters.call import KEY, Conditioning
from idgen.adapters.embeddings import People, RawEmbeddings
from idgen.adapters.pva import PVAAdapter
from idgen.adapters.pva.person import Personal, PersonWeights
from idgen.adapters.pva.prompt import NEGATIVE, PLACEHOLDER, PROMPT, PersonPrompts, encode_prompts
from idgen.adapters.pva.rows import check_settings, expanded, for_rows, people_of, pictures_of
from idgen.adapters.pva.sources import ADAPTER, RECOGNISER, SAVED, load_adapter, load_parts, load_recogniser, locate
from idgen.adapters.pva.transform import face_crop
from idgen.blending import fill_seamlessly
from idgen.checkpoint import save_weights
from idgen.data.holes import check_holes
from idgen.errors import IdgenError
from idgen.models.iresnet import IResNet, load_iresnet
from idgen.pipelines.shared import EndsGuidance, bare, for_guidance, inside, take_out

if TYPE_CHECKING:
    from idgen.imageio import ImageLike

Prompt = str | Sequence[str]


class PVAInpaintPipeline(EndsGuidance, StableDiffusionInpaintPipeline):
    """An inpainting model with PVA: `pipe(identity, image=photo, mask_image=mask).images`.

        pipe = PVAInpaintPipeline.from_pretrained("expr/celebahq/PVA/stage2", base="stable-diffusion-2-inpainting")
        identity = pipe.encode_identity(["anna1.png", "anna2.png"])   # portraits as CelebA-HQ cuts them
        pipe(identity, image=photo, mask_image=mask, composite=True).images

    The authors sample 100 steps with eta=1 and without guidance. For a prompt that shall be obeyed ("photo of a <new1> person,
    laughing") they use guidance_scale=15 and text_control=True. Schedulers, offloading and LoRA are diffusers' own.

    Args:
        placeholder: the word that stands for the person in a prompt.

    Attributes:
        pva: the adapter, which is in the UNet; None until one is loaded: then nobody in particular is painted.
        recogniser: (n, 3, 112, 112) in [-1, 1] -> (n, 512), makes identities of portraits; None where they are given.
    """

    pva: PVAAdapter | None = None
    recogniser: nn.Module | None = None
    _along = ("pva", "recogniser", "_personal")

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
        placeholder: str = PLACEHOLDER,
    ) -> None:
        channels, expected = unet.config.in_channels, 2 * vae.config.latent_channels + 1
        if channels != expected:
            raise IdgenError(
                f"this UNet has {channels} input channels and inpainting needs {expected} (noise, mask, masked picture):"
                " use the UNet of an inpainting model such as stable-diffusion-2-inpainting"
            )
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
        self.register_to_config(placeholder=placeholder)
        self._personal = Personal()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        base: str | os.PathLike[str] | None = None,
        recogniser: nn.Module | str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> PVAInpaintPipeline:
        """Load the mini family, the layout of the authors' training, or what `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: `"mini"`; a folder with `FPIP.bin` and `config.json`, or that file; a hub id; or a
                saved PVAInpaintPipeline.
            base: hub id or folder of the inpainting model; default: the one that config.json names, or the saved one.
            recogniser: arcface_torch's IResNet-50 (`ms1mv3_arcface_r50.pth`) where it is not in the folder, or a network. Weights
                that were tuned together with the adapter ('face_net' in its file) come first.
            kwargs: as in diffusers (`torch_dtype`, `variant`, `scheduler=...`, `cache_dir`, `local_files_only`, ...).
        Raises:
            IdgenError: something is missing, broken, not an inpainting model, or not on this machine and can not be fetched.
        """
        source = locate(pretrained_model_name_or_path, base, kwargs)
        chosen = "scheduler" in kwargs
        kwargs |= load_parts(source, kwargs)
        if source.placeholder is not None:
            # Of the base only the model itself is wanted.
            kwargs = {"safety_checker": None, "feature_extractor": None, "placeholder": source.placeholder} | kwargs
            kwargs["requires_safety_checker"] = kwargs["safety_checker"] is not None
        try:
            pipe = super().from_pretrained(str(source.base), **kwargs)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise IdgenError(f"cannot load the tokenizer or scheduler from {source.base}: {reason}") from error
        if source.published and not chosen:
            # Stable Diffusion 2 inpainting comes with PNDM; the authors sample with DDIM.
            pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        pipe.vae.to(memory_format=torch.channels_last)  # faster on a CPU, see Arc2FacePipeline
        return pipe.load_pva(source.adapter, recogniser if recogniser is not None else source.recogniser)

    def load_pva(
        self, adapter: PVAAdapter | str | os.PathLike[str], recogniser: nn.Module | str | os.PathLike[str] | None = None
    ) -> PVAInpaintPipeline:
        """Put an adapter into the UNet, in the place of one that was loaded before.

        Args:
            adapter: itself, or a published or saved file. Text attention of the UNet's own that a published file has (CrossQKV)
                goes into the UNet to stay.
            recogniser: a network, or the file of an IResNet. None: the one in the adapter's file, or none.
        Raises:
            IdgenError: a file is missing, broken or of something else, or the adapter was made for another base.
        """
        unet = bare(self.unet)
        if isinstance(adapter, PVAAdapter):
            network = (
                recogniser if isinstance(recogniser, nn.Module) or recogniser is None else load_iresnet(recogniser)
            )
        else:
            network = load_recogniser(Path(adapter), recogniser)
            adapter = load_adapter(Path(adapter), unet)
        self.unload_pva()
        self.pva = adapter.inject(unet)
        self.recogniser = None if network is None else network.eval().requires_grad_(False)
        return self

    def unload_pva(self) -> None:
        """Take the adapter out; the UNet is as it was."""
        self.unload_person()
        take_out(self.pva, self.unet)
        self.pva = self.recogniser = None
        self._personal = Personal()

    @property
    def person(self) -> PersonWeights | None:
        """Whom the model is personalised for, by this pipeline or another one of the same UNet."""
        return self._personal.person

    def load_person(self, person: PersonWeights | str | os.PathLike[str]) -> PVAInpaintPipeline:
        """Change the model for one person, in the place of whoever was loaded before.

        Args:
            person: what `idgen.inpainting.personalise` made, or its file.
        Raises:
            IdgenError: the file is something else, or was made with another model.
        """
        if not isinstance(person, PersonWeights):
            person = PersonWeights.load(person)
        self._personal.change(self._adapter(), bare(self.unet), person)
        return self

    def unload_person(self) -> None:
        """Change the model back."""
        if self.pva is not None:
            self._personal.undo(self.pva, bare(self.unet))

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write the inpainting model as diffusers does, and beside it `pva/` with the adapter and the recogniser (an IResNet)."""
        if self.person is not None:
            raise IdgenError("a person's weights are loaded: unload_person() first, and save them by themselves")
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.pva is None:
            return
        folder = Path(save_directory) / SAVED
        folder.mkdir(exist_ok=True)
        self.pva.save(folder / ADAPTER)
        if isinstance(self.recogniser, IResNet):
            save_weights(folder / RECOGNISER, self.recogniser.state_dict())

    @torch.no_grad()
    def encode_identity(self, portraits: Tensor | ImageLike | Sequence[ImageLike]) -> RawEmbeddings:
        """One person's portraits -> their identity, as PVA makes it: no face is looked for in them.

        Args:
            portraits: files, PIL images or arrays, or a tensor (n, 3, h, w) in [0, 1]; cut as CelebA-HQ and FFHQ cut them
                (`idgen.faces.ffhq_crop`).
        Raises:
            IdgenError: no recogniser is loaded, or a portrait can not be read.
        """
        if self.recogniser is None or self.pva is None:
            raise IdgenError(
                "no face recogniser in this pipeline: pass recogniser='ms1mv3_arcface_r50.pth', or make the identity with a"
                " FaceEncoder of the adapter's recogniser"
            )
        network = self.recogniser.to(self._execution_device)
        crops = torch.cat([face_crop(2 * picture - 1) for picture in pictures_of(portraits)])
        return RawEmbeddings(network(crops.to(next(network.parameters()))), self.pva.config.recogniser)

    @torch.no_grad()
    def encode_person_prompt(self, prompts: Prompt) -> Tensor:
        """Prompts, in which `config.placeholder` stands for the person, -> (prompts, length, hidden) for `prompt_embeds`.

        Raises:
            IdgenError: the placeholder where no adapter is loaded, or where the prompt is cut off.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        tokens = PersonPrompts.tokenise(self.tokenizer, texts, self.config.placeholder)
        if self.pva is None:
            if tokens.mask.any():
                raise IdgenError(f"{self.config.placeholder!r} in the prompt is nobody: no PVA adapter is loaded")
            modifier = torch.zeros(self.text_encoder.config.hidden_size)
        else:
            modifier = self.pva.modifier
        where = self._execution_device
        return encode_prompts(self.text_encoder, tokens, modifier.to(where, self.text_encoder.dtype))

    @torch.no_grad()
    def __call__(
        self,
        identity: People | None = None,
        prompt: Prompt | None = None,
        image: Any = None,
        mask_image: Any = None,
        *,
        negative_prompt: Prompt = NEGATIVE,
        text_control: bool = False,
        composite: bool = False,
        scale: Scale = 1.0,
        height: int | None = None,
        width: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 1.0,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> StableDiffusionPipelineOutput | Any:
        """Fill the hole in a picture, `num_images_per_prompt` times for each person.

        Args:
            identity: one person or a list of them, as `encode_identity` or a FaceEncoder makes them, any number of references
                each. None: somebody who goes with the picture.
            prompt: one for all or one per person; one person may also have several prompts.
            image: the picture, or one per row of the batch.
            mask_image: of the picture's size, white where it is to be filled; one, or one per row.
            negative_prompt: what guidance compares with.
            text_control: whether guidance compares with the same person under the negative prompt, so that it stresses the
                words (with a guidance_scale of 6 and more); else with nobody, so that it stresses the person.
            composite: whether known pixels are kept as they are, and the filling takes their light where it meets them
                (`idgen.blending`); the authors' pipeline decodes them too.
            scale: strength of the adapter, see `Adapter.condition`.
            guidance_scale: 1 is no guidance, and one pass of the UNet instead of two.
            cross_attention_kwargs: may bring other adapters' conditioning along (`conditioning.kwargs`).
        The others are those of diffusers' StableDiffusionInpaintPipeline.

        Returns:
            `.images` as diffusers' pipeline gives them.
        Raises:
            IdgenError: no adapter, an identity that these weights do not understand, a mask that covers nothing, everything or
                another size than the picture's, or numbers of people, prompts and pictures that do not go together.
        """
        check_settings(self.scheduler, num_inference_steps if timesteps is sigmas is None else None, guidance_scale)
        people = people_of(identity)
        if prompt is None:
            prompt = PROMPT.replace(PLACEHOLDER, self.config.placeholder) if people else NEGATIVE
        if prompt_embeds is None:
            prompt_embeds = self.encode_person_prompt(prompt)
        self._guidance_scale, self._interrupt = guidance_scale, False
        guided = self.do_classifier_free_guidance
        if guided and negative_prompt_embeds is None:
            negative_prompt_embeds = self.encode_person_prompt(negative_prompt)
        rows = max(len(people), len(prompt_embeds))
        batch = rows * num_images_per_prompt
        embeds = expanded(prompt_embeds, rows, "prompts").repeat_interleave(num_images_per_prompt, 0)
        if guided:
            negative = expanded(cast(Tensor, negative_prompt_embeds), rows, "negative prompts")
            embeds = torch.cat([negative.repeat_interleave(num_images_per_prompt, 0), embeds])
        embeds = embeds.to(self._execution_device, self.unet.dtype)
        kwargs = dict(cross_attention_kwargs or {})
        if people:
            conditioning = self._condition(people, rows, num_images_per_prompt, guided, scale, text_control)
            kwargs |= (kwargs[KEY] + conditioning if KEY in kwargs else conditioning).kwargs

        height = height or self.unet.config.sample_size * self.vae_scale_factor
        width = width or self.unet.config.sample_size * self.vae_scale_factor
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        self.check_inputs(
            None, image, mask_image, height, width, strength, None, output_type, prompt_embeds=embeds,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        check_holes(image, mask_image)
        picture = self.image_processor.preprocess(image, height, width).float()  # (n, 3, height, width) in [-1, 1]
        hole = self.mask_processor.preprocess(mask_image, height, width)  # (n, 1, height, width), 1 in the hole
        # A row's noise comes from its own generator, the autoencoder's too: then a batch equals its single pictures.
        each = batch if isinstance(generator, list) or max(len(picture), len(hole)) > 1 else 1
        picture, hole = (for_rows(x, rows, each, what) for x, what in ((picture, "pictures"), (hole, "masks")))

        device = self._execution_device
        times, steps = retrieve_timesteps(self.scheduler, num_inference_steps, device, timesteps, sigmas)
        times, steps = self.get_timesteps(steps, strength, device)
        if steps < 1:
            raise IdgenError(f"strength={strength} of {num_inference_steps} steps leaves none: raise one of them")
        latents = self.prepare_latents(
            batch, self.vae.config.latent_channels, height, width, embeds.dtype, device, generator, latents,
            image=picture, timestep=times[:1].repeat(batch), is_strength_max=strength == 1.0,
        )[0]  # fmt: skip
        mask, masked_image_latents = self.prepare_mask_latents(
            hole, picture * (hole < 0.5), batch, height, width, embeds.dtype, device, generator, guided
        )
        if not mask.flatten(1).any(1).all():
            raise IdgenError(f"the mask is thinner than a latent of {self.vae_scale_factor} px everywhere: widen it")
        extra = self.prepare_extra_step_kwargs(generator, eta)
        self._num_timesteps = len(times)
        with self.progress_bar(total=steps) as bar:
            for index, time in enumerate(times):
                if self.interrupt:
                    continue
                guided = self.do_classifier_free_guidance  # a callback may end it, or change its scale
                given = self.scheduler.scale_model_input(torch.cat([latents] * (1 + guided)), time)
                # Without guidance the rows with identity alone, which are the last.
                words, *seen = (x[-len(given) :] for x in (embeds, mask, masked_image_latents))
                noise = self.unet(
                    torch.cat([given, *seen], 1), time, encoder_hidden_states=words,
                    cross_attention_kwargs=for_guidance(kwargs, guided) or None, return_dict=False,
                )[0]  # fmt: skip
                if guided:
                    without, with_ = noise.chunk(2)
                    noise = without + self.guidance_scale * (with_ - without)
                latents = self.scheduler.step(noise, time, latents, **extra, return_dict=False)[0]
                if callback_on_step_end is not None:
                    known = {
                        "latents": latents, "prompt_embeds": embeds, "negative_prompt_embeds": negative_prompt_embeds,
                        "mask": mask, "masked_image_latents": masked_image_latents,
                    }  # fmt: skip
                    chosen = {name: known[name] for name in callback_on_step_end_tensor_inputs}
                    known |= callback_on_step_end(self, index, time, chosen)
                    latents, embeds, negative_prompt_embeds = (
                        known[name] for name in ("latents", "prompt_embeds", "negative_prompt_embeds")
                    )
                    mask, masked_image_latents = known["mask"], known["masked_image_latents"]
                if (index + 1) % self.scheduler.order == 0:
                    bar.update()

        flagged = None
        if output_type == "latent":
            images: Any = latents
        else:
            images = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False, generator=generator)[
                0
            ]
            if composite:
                images = fill_seamlessly(picture.to(device), images.to(device), hole.to(device) >= 0.5)
            images, flagged = self.run_safety_checker(images, device, embeds.dtype)
            clean = [True] * len(images) if flagged is None else [not one for one in flagged]
            images = self.image_processor.postprocess(images.detach(), output_type, do_denormalize=clean)
        self.maybe_free_model_hooks()
        return StableDiffusionPipelineOutput(images, flagged) if return_dict else (images, flagged)

    def _condition(
        self, people: list[Any], rows: int, images: int, guided: bool, scale: Scale, text_control: bool
    ) -> Conditioning:
        if len(people) not in (1, rows):
            raise IdgenError(f"{rows} prompts given for {len(people)} people: give one for all or one for each")
        adapter = self._adapter().to(device=self._execution_device, dtype=self.unet.dtype)
        everybody = people * rows if len(people) == 1 else people
        return adapter.condition(everybody, images=images, guidance=guided, scale=scale, visual_null=text_control)

    def _adapter(self) -> PVAAdapter:
        return inside(self.pva, self.unet, "PVA adapter", "load_pva('FPIP.bin')")
