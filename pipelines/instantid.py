"""InstantID: photos of a person from one face and a prompt, with SDXL (arXiv 2401.07519, github.com/InstantID/InstantID)."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers import (
    ControlNetModel,
    MultiControlNetModel,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetPipeline,
)
from diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipelineOutput
from torch import Tensor

from idgen.adapters.base import Scale
from idgen.adapters.call import KEY, Conditioning
from idgen.adapters.embeddings import Person
from idgen.adapters.instantid import FaceCall, InstantIDAdapter
from idgen.adapters.instantid.identitynet import current_call
from idgen.adapters.instantid.scene import draw_faces, people_of, person_masks, size_of
from idgen.adapters.instantid.sources import SAVED, load_identitynet, locate
from idgen.adapters.schedule import StepScales
from idgen.errors import IdgenError
from idgen.pipelines.shared import SharedNetworks, bare, for_guidance, inside, take_out

Self = TypeVar("Self", bound="_InstantID")
People = Person | Sequence[Person | Sequence[Person]]

TEXTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")
EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


class _InstantID(SharedNetworks):
    """What the two pipelines below have in common. Their first ControlNet is IdentityNet.

    Attributes:
        instantid: the adapter, which is in the UNet; None until one is loaded.
    """

    instantid: InstantIDAdapter | None = None
    _along = ("instantid",)
    _pictures: str  # what diffusers' pipeline calls the ControlNets' pictures

    @classmethod
    def from_pretrained(
        cls: type[Self],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        base: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load the published weights, or what `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: a hub id such as `"InstantX/InstantID"`, or a folder: of that repository's layout
                (`ip-adapter.bin`, `ControlNetModel/`), or a saved pipeline.
            base: hub id or folder of the SDXL model. Default: the folder itself if it holds one, else
                stabilityai/stable-diffusion-xl-base-1.0.
            kwargs: as in diffusers (`torch_dtype`, `variant` (of the base), `scheduler=...`, `cache_dir`, ...).
        Raises:
            IdgenError: something is missing, broken, or not on this machine and can not be fetched.
        """
        source = locate(pretrained_model_name_or_path, base, kwargs)
        if source.identitynet is not None and "controlnet" not in kwargs:
            kwargs["controlnet"] = load_identitynet(source.identitynet, _dtype(kwargs, "controlnet"))
        try:
            pipe = super().from_pretrained(str(source.base), **kwargs)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise IdgenError(f"cannot load SDXL from {source.base}: {reason}") from error
        return cast(Self, pipe).load_instantid(source.adapter)

    def load_instantid(self: Self, adapter: InstantIDAdapter | str | os.PathLike[str]) -> Self:
        """Put an adapter into the UNet, in the place of one that was loaded before.

        Args:
            adapter: itself, or a published or saved file.
        Raises:
            IdgenError: the file is missing, broken or of something else, or the adapter was made for another base.
        """
        unet = bare(self.unet)
        if not isinstance(adapter, InstantIDAdapter):
            adapter = InstantIDAdapter.from_pretrained(adapter, unet)
        self.unload_instantid()
        self.instantid = adapter.inject(unet)
        return self

    def unload_instantid(self) -> None:
        """Take the adapter out; the UNet is as it was."""
        take_out(self.instantid, self.unet)
        self.instantid = None

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write SDXL and the ControlNets as diffusers does, and among them the adapter."""
        if self.instantid is not None:
            path = Path(save_directory) / SAVED
            path.parent.mkdir(parents=True, exist_ok=True)
            self.instantid.save(path)
        super().save_pretrained(save_directory, *args, **kwargs)

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        """What diffusers' loop hands to the UNet: the caller's own, and the faces of this thread's call."""
        own, call = self._cross_attention_kwargs, current_call()
        if call is None:
            return own
        # A callback may have ended the guidance between two steps.
        return for_guidance((own or {}) | call.conditioning.kwargs, self.do_classifier_free_guidance)

    @torch.no_grad()
    def __call__(
        self,
        identity: People,
        prompt: str | list[str] | None = None,
        image: Any | None = None,
        *,
        scale: Scale = 0.8,
        controlnet_conditioning_scale: float | list[float] = 0.8,
        landmarks: Any | None = None,
        keypoints_image: Any | None = None,
        mask: Any | None = None,
        schedule: StepScales | None = None,
        control_image: Any | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 30,
        guidance_scale: float = 5.0,
        num_images_per_prompt: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> StableDiffusionXLPipelineOutput | Any:
        """Generate `num_images_per_prompt` images of each person, or for each prompt.

        Args:
            identity: one person; a list of them, each in pictures of their own; or a list of lists, several in one picture,
                who then need a mask each. Raw embeddings of antelopev2; all references of a person count.
            prompt: one for all, or one per person; one person may also have several prompts. Default: none.
            image: what to begin with, where the pipeline is InstantIDImg2ImgPipeline: one for all or one per person.
            scale: strength of the face in the UNet; the authors use 0.8. Per layer see `Adapter.condition`.
            controlnet_conditioning_scale: strength of IdentityNet; a list where there are further ControlNets.
            landmarks: five points of each face in pixels of the picture to be made; where they are put and what is the default,
                see `idgen.adapters.instantid.scene.draw_faces`.
            keypoints_image: the finished picture of key points instead, one for all or one per person, of the size to be made.
            mask: where in the picture, see `Adapter.condition`; with several people in a picture a list of one for each.
            schedule: at which steps the face acts in the UNet. IdentityNet has `control_guidance_start` and `_end`.
            control_image: pictures of the further ControlNets, in their order. They read the prompt, as ever.
            height, width: default: the size of `keypoints_image`, of `image`, or what the UNet was trained at.
            cross_attention_kwargs: may bring other adapters' conditioning along (`conditioning.kwargs`).
            options: everything else that diffusers' pipeline takes, such as `guess_mode`.

        Returns:
            `.images` as diffusers' pipeline gives them: PIL images, an array for "np", a tensor for "pt", latents for "latent".
        Raises:
            IdgenError: no adapter loaded, an identity that these weights do not understand or that has no landmarks, or
                pictures, masks and prompts that do not fit each other.
        """
        parameters = set(inspect.signature(super().__call__).parameters) - {"kwargs"}
        unknown = [name for name in options if name not in parameters]
        if unknown:  # diffusers would swallow it
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {unknown[0]!r}")
        adapter, nets = self._loaded()
        pictures, options = _for_each(people_of(identity), options | {"prompt": prompt})
        count = len(pictures)

        size = self._size(height, width, keypoints_image, image)
        masks = person_masks(mask, count, len(pictures[0]))
        own = dict(cross_attention_kwargs or {})
        faces = [
            adapter.condition(
                [people[place] for people in pictures],
                images=num_images_per_prompt,
                guidance=guidance_scale > 1 and self.unet.config.time_cond_proj_dim is None,
                scale=scale,
                mask=person_mask,
                schedule=schedule,
            )
            for place, person_mask in enumerate(masks)
        ]
        conditioning = _sum([own.pop(KEY), *faces] if KEY in own else faces)

        if keypoints_image is None:
            keypoints_image = draw_faces(pictures, landmarks, masks, size)
        elif landmarks is not None:
            raise IdgenError("pass either landmarks or keypoints_image, and not both")
        options[self._pictures] = self._control_pictures(keypoints_image, control_image, len(nets), size)
        if self._pictures != "image":
            options["image"] = self._start(image, count, num_images_per_prompt, size)
        elif image is not None:
            raise IdgenError("to begin with a picture use InstantIDImg2ImgPipeline.from_pipe(pipe)")
        if isinstance(controlnet_conditioning_scale, int):
            controlnet_conditioning_scale = float(controlnet_conditioning_scale)
        with FaceCall(nets[0], conditioning).speaking():
            return super().__call__(
                height=size[0],
                width=size[1],
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                num_images_per_prompt=num_images_per_prompt,
                controlnet_conditioning_scale=controlnet_conditioning_scale,
                cross_attention_kwargs=own or None,
                **options,
            )

    def _loaded(self) -> tuple[InstantIDAdapter, list[ControlNetModel]]:
        """The adapter, where the UNet runs, and the ControlNets, IdentityNet first."""
        adapter = inside(self.instantid, self.unet, "InstantID adapter", "load_instantid('ip-adapter.bin')")
        net = bare(self.controlnet)
        nets = list(net.nets) if isinstance(net, MultiControlNetModel) else [self.controlnet]
        reads, gives = nets[0].config["cross_attention_dim"], adapter.config.projection["output_dim"]
        if reads != gives:
            raise IdgenError(
                f"the first ControlNet reads {reads} channels and the faces have {gives}: it must be IdentityNet"
            )
        return adapter.to(device=self._execution_device, dtype=self.unet.dtype), nets

    def _size(self, height: int | None, width: int | None, keypoints: Any | None, image: Any | None) -> tuple[int, int]:
        """(height, width) of the pictures."""
        unit = self.vae_scale_factor
        sample = self.unet.config.sample_size
        default = tuple(unit * side for side in (sample if isinstance(sample, (list, tuple)) else (sample, sample)))
        if keypoints is not None:
            default = size_of(keypoints, "keypoints_image")
        elif image is not None:
            latent = isinstance(image, Tensor) and image.ndim == 4 and image.shape[1] == self.vae.config.latent_channels
            sides = size_of(image, "image")
            default = tuple(side * unit if latent else side // unit * unit for side in sides)
        size = height or default[0], width or default[1]
        if size[0] % unit or size[1] % unit:
            raise IdgenError(f"the picture's size {size[1]} x {size[0]} must be made of multiples of {unit}")
        if keypoints is not None and size != default:
            raise IdgenError(
                f"keypoints_image is {default[1]} x {default[0]}, and the picture {size[1]} x {size[0]}: draw it at that size,"
                " for its points must not be scaled"
            )
        return size

    def _control_pictures(self, keypoints: Any, further: Any | None, nets: int, size: tuple[int, int]) -> Any:
        """The key points, and what further ControlNets look at."""
        others = list(further) if isinstance(further, (list, tuple)) else [] if further is None else [further]
        if len(others) != nets - 1:
            raise IdgenError(
                f"{len(others)} pictures in control_image for {nets - 1} ControlNets beside IdentityNet: give one for each"
            )
        first = self.control_image_processor.preprocess(keypoints, height=size[0], width=size[1])
        if not (first.min() >= 0 and first.max() <= 1):
            raise IdgenError("keypoints_image holds values outside [0, 1]: pass what draw_keypoints returns")
        return [first, *others] if others else first

    def _start(self, image: Any | None, pictures: int, images: int, size: tuple[int, int]) -> Tensor:
        """(pictures * images, channels, height, width), person by person."""
        if image is None:
            raise IdgenError("no picture to begin with: pass image=, or use InstantIDPipeline")
        # In [0, 1]: diffusers takes it to [-1, 1].
        first = self.control_image_processor.preprocess(image, height=size[0], width=size[1])
        if len(first) not in (1, pictures):
            raise IdgenError(
                f"{len(first)} pictures to begin with for {pictures} people or prompts: give one or one for each"
            )
        return first.expand(pictures, -1, -1, -1).repeat_interleave(images, 0)


class InstantIDPipeline(_InstantID, StableDiffusionXLControlNetPipeline):
    """SDXL with a face: `pipe(identity, prompt).images`.

    Everything else is diffusers' own: schedulers, callbacks, offloading, LoRA, `save_pretrained`.

        pipe = InstantIDPipeline.from_pretrained("InstantX/InstantID", base="stabilityai/stable-diffusion-xl-base-1.0")
        identity = FaceEncoder.from_pretrained("antelopev2")(["anna1.jpg", "anna2.jpg"])
        pipe(identity, "film noir, ink sketch", generator=torch.Generator().manual_seed(0)).images

    Other ControlNets join IdentityNet: `InstantIDPipeline.from_pipe(pipe, controlnet=[pipe.controlnet, pose_net])`, and
    `pipe(identity, prompt, control_image=pose)`. They read the prompt; only IdentityNet reads the face.

    One pipeline makes one call at a time, like all of diffusers'; for several threads, `from_pipe` gives each its own over the
    same modules (with a scheduler of its own: `scheduler=type(s).from_config(s.config)`).
    """

    _pictures = "image"


class InstantIDImg2ImgPipeline(_InstantID, StableDiffusionXLControlNetImg2ImgPipeline):
    """The same, beginning with a picture: `InstantIDImg2ImgPipeline.from_pipe(pipe)(identity, prompt, picture, strength=0.8)`."""

    _pictures = "control_image"


def _for_each(pictures: list[list[Person]], options: dict[str, Any]) -> tuple[list[list[Person]], dict[str, Any]]:
    """People and prompts, brought to the same number."""
    given: dict[str, Any] = {name: options[name] for name in TEXTS + EMBEDS if options.get(name) is not None}
    if "prompt" not in given and "prompt_embeds" not in given:
        given["prompt"] = ""
    counts = {name: 1 if isinstance(value, str) else len(value) for name, value in given.items()}
    counts["identity"] = len(pictures)
    count = max(counts.values())
    wrong = next((name for name, number in counts.items() if number not in (1, count)), None)
    if wrong is not None:
        raise IdgenError(f"{counts[wrong]} given as {wrong} for {count} pictures: give one for all or one for each")
    if count > 1:
        pictures = pictures * count if len(pictures) == 1 else pictures
        for name, value in given.items():
            if isinstance(value, Tensor):
                given[name] = value.expand(count, *value.shape[1:])
            elif counts[name] == 1:
                given[name] = ([value] if isinstance(value, str) else list(value)) * count
    return pictures, {name: value for name, value in options.items() if name not in TEXTS + EMBEDS} | given


def _sum(conditionings: list[Conditioning]) -> Conditioning:
    total = conditionings[0]
    for one in conditionings[1:]:
        total = total + one
    return total


def _dtype(options: dict[str, Any], component: str) -> torch.dtype:
    """diffusers' `dtype` (older: `torch_dtype`): one for all, or a dict by component; float32 when not given."""
    dtype: Any = options.get("dtype") or options.get("torch_dtype") or torch.float32
    if isinstance(dtype, dict):
        dtype = dtype.get(component, dtype.get("default", torch.float32))
    return dtype
