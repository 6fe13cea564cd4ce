"""W+ Adapter: photos of a face that is a code of StyleGAN2, and can be edited there (arXiv 2311.17461)."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers import EulerDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from torch import Tensor

from idgen.adapters.base import Scale
from idgen.adapters.call import KEY
from idgen.adapters.schedule import StepScales, sampling_timesteps
from idgen.adapters.wplus import WPlusAdapter
from idgen.adapters.wplus.directions import EditDirection
from idgen.adapters.wplus.portraits import portraits_of_crops, portraits_of_photos
from idgen.adapters.wplus.sources import ADAPTER, ENCODER, SAVED, load_base, locate
from idgen.checkpoint import save_weights
from idgen.errors import IdgenError
from idgen.faces.encoder import FaceEncoder
from idgen.identity import Identity
from idgen.models.e4e import E4E, load_e4e
from idgen.pipelines.shared import EndsGuidance, bare, inside, take_out

if TYPE_CHECKING:
    from idgen.imageio import ImageLike

Face = Identity | Tensor
Edit = tuple[EditDirection, float]
LONGEST_REST = 30  # steps: the authors' bound on how long the adapter rests


class WPlusPipeline(EndsGuidance, StableDiffusionPipeline):
    """Stable Diffusion 1.5 with the W+ Adapter: `pipe(w, prompt).images`.

    Everything else is diffusers' own: schedulers, callbacks, offloading, LoRA.

        pipe = WPlusPipeline.from_pretrained("w-plus-adapter", base="stable-diffusion-v1-5/stable-diffusion-v1-5")
        w = pipe.encode("anna.jpg")
        smile = load_interfacegan("smile.pt")
        pipe(w, "photo of a woman in a garden", edits=[(smile, 2.0)], generator=torch.Generator().manual_seed(0)).images

    The authors use the autoencoder stabilityai/sd-vae-ft-mse (`vae=`) and the negative prompt "monochrome, lowres, bad
    anatomy, worst quality, low quality".

    Threads take one pipeline each over the same modules (`from_pipe`). Their scheduler and tokenizer must be copies: both of
    these remember things of a call (a fast tokenizer how it pads).

    Attributes:
        wplus: the adapter, which is in the UNet; None until one is loaded.
        e4e: makes codes of faces, and with its decoder faces of codes; None where codes are given instead.
    """

    wplus: WPlusAdapter | None = None
    e4e: E4E | None = None
    _along = ("wplus", "e4e")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        base: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> WPlusPipeline:
        """Load the published files, or what `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: a folder with the authors' `wplus_adapter.bin` and, to encode faces,
                `e4e_ffhq_encode.pt`; the adapter's file alone; a hub id; or a saved WPlusPipeline.
            base: hub id or folder of the Stable Diffusion 1.5 model; for a saved pipeline its own.
            kwargs: as in diffusers (`torch_dtype`, `variant`, `scheduler=...`, `cache_dir`, `local_files_only`, ...).
        Raises:
            IdgenError: something is missing, broken, or not on this machine and can not be fetched.
        """
        source = locate(pretrained_model_name_or_path, base, kwargs)
        chosen = "scheduler" in kwargs
        kwargs |= load_base(source.base, kwargs)
        if not source.saved:
            kwargs = {"safety_checker": None, "feature_extractor": None} | kwargs
            kwargs["requires_safety_checker"] = kwargs["safety_checker"] is not None
        try:
            pipe = super().from_pretrained(str(source.base), **kwargs)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise IdgenError(f"cannot load the tokenizer or scheduler from {source.base}: {reason}") from error
        if isinstance(pipe.scheduler, PNDMScheduler) and not chosen and not source.saved:
            # Stable Diffusion 1.5 comes with PNDM; the authors sample with Euler.
            pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        return pipe.load_wplus(source.adapter, source.e4e)

    def load_wplus(
        self, adapter: WPlusAdapter | str | os.PathLike[str], e4e: E4E | str | os.PathLike[str] | None = None
    ) -> WPlusPipeline:
        """Put an adapter into the UNet, in the place of one that was loaded before.

        Args:
            adapter: itself, or a published or saved file.
            e4e: the encoder or its file; without it a call takes codes only.
        Raises:
            IdgenError: a file is missing, broken or of something else, the adapter was made for another base, or the
                encoder's codes are not what it reads.
        """
        unet = bare(self.unet)
        if not isinstance(adapter, WPlusAdapter):
            adapter = WPlusAdapter.from_pretrained(adapter, unet)
        if e4e is not None and not isinstance(e4e, E4E):
            e4e = load_e4e(e4e)
        code = (sum(adapter.config.groups), adapter.config.style_dim)
        if e4e is not None and e4e.encoder.code != code:
            raise IdgenError(f"this W+ Adapter reads codes {code}, and this e4e makes {e4e.encoder.code}")
        self.unload_wplus()
        self.wplus, self.e4e = adapter.inject(unet), e4e
        return self

    def unload_wplus(self) -> None:
        """Take the adapter out; the UNet is as it was."""
        take_out(self.wplus, self.unet)
        self.wplus = self.e4e = None

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write the Stable Diffusion model as diffusers does, and beside it `wplus/` with the adapter and the encoder."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.wplus is None:
            return
        folder = Path(save_directory) / SAVED
        folder.mkdir(exist_ok=True)
        self.wplus.save(folder / ADAPTER)
        if self.e4e is not None:
            save_weights(folder / ENCODER, self.e4e.state_dict())

    @torch.no_grad()
    def encode(
        self,
        photos: ImageLike | Sequence[ImageLike],
        masks: Any | Sequence[Any | None] | None = None,
        *,
        faces: FaceEncoder | str | os.PathLike[str] = "buffalo_l",
        select: str | int = "largest",
    ) -> Tensor:
        """Photos -> codes (photos, 18, 512), one for each; reusable as `w`. Of one person's photos, `.mean(0)` is one code.

        The authors also paint everything but the person's head white, by a face parser: pass its mask to do as they do.
        Without one the background goes into the code too.

        Args:
            photos: files, PIL images or (H, W, 3) uint8 RGB arrays, one or several.
            masks: one for each photo, (H, W) in [0, 1], white where skin and hair are.
            faces: who looks for the face: a FaceEncoder, or the name of one.
            select: which face of each photo, as for `FaceEncoder`.
        Raises:
            IdgenError: no e4e loaded, a photo can not be read or shows no such face, or a mask does not fit.
        """
        several = isinstance(photos, (list, tuple))
        given = cast("list[ImageLike]", list(photos) if several else [photos])  # type: ignore[arg-type]
        if masks is None or not several:
            masks = [masks] * len(given)
        size = self._face_side()
        if not isinstance(faces, FaceEncoder):
            faces = FaceEncoder.from_pretrained(faces)
        return self._codes_of(portraits_of_photos(given, masks, faces, size, select))

    @torch.no_grad()
    def encode_identity(self, identity: Identity | Sequence[Identity]) -> Tensor:
        """Codes (people, 18, 512) from the aligned crops of each person, the mean over references; reusable as `w`.

        A crop is narrower than the pictures that e4e knows, and a white border stands for the rest. Where the photos are at
        hand, `encode` keeps hair and chin.

        Raises:
            IdgenError: no e4e loaded, nobody given, or an identity without crops.
        """
        people: list[Any] = list(identity) if isinstance(identity, (list, tuple)) else [identity]
        if not people or not all(isinstance(person, Identity) for person in people):
            raise IdgenError("no identity given: pass an Identity with crops, or a list of them")
        if any(person.crops is None for person in people):
            raise IdgenError("an identity has no crops, and e4e looks at the face: embed the photos again")
        size = self._face_side()
        return torch.stack([self._codes_of(portraits_of_crops(person.crops, size)).mean(0) for person in people])

    @torch.no_grad()
    def __call__(
        self,
        identity: Face | Sequence[Face] | None = None,
        prompt: str | list[str] | None = None,
        *,
        w: Face | Sequence[Face] | None = None,
        edits: Sequence[Edit] = (),
        scale: Scale = 1.0,
        start_ratio: float | None = 0.2,
        start_step: int | None = None,
        mask: Any | None = None,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int = 30,
        guidance_scale: float = 7.5,
        num_images_per_prompt: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> StableDiffusionPipelineOutput | Any:
        """Generate `num_images_per_prompt` images of each person, person by person.

        Args:
            identity: a code (18, 512), codes (people, 18, 512) or an Identity (see `encode_identity`); or a list of these.
            prompt: one for all or one per person; one person may also have several prompts. It may come first, too.
            w: the same as `identity`, by the authors' name.
            edits: moves the codes along directions, one after the other: `[(load_interfacegan("age.pt"), 2.0), ...]`.
            scale: strength of the adapter, see `Adapter.condition`.
            start_ratio: share of the steps in [0, 1] through which the adapter rests, so that the prompt decides on pose and
                scene: up to and including step `int(start_ratio * steps)`, counted from 0 and at most 30. The
                authors' `start_embed_step_ratio=20` is 0.2; their 0, too, rests in step 0. None: acts from the first.
            start_step: the last step of rest, counted from 0, in the place of `start_ratio`.
            mask: where in the picture, see `Adapter.condition`.
            cross_attention_kwargs: may bring other adapters' conditioning along (`conditioning.kwargs`).
            options: everything else that diffusers' pipeline takes.

        Returns:
            `.images` as diffusers' pipeline gives them.
        Raises:
            IdgenError: no adapter loaded, nobody or no prompt given, codes or edits that do not fit.
        """
        parameters = inspect.signature(super().__call__).parameters
        unknown = [name for name in options if name not in parameters or name == "kwargs"]
        if unknown:  # diffusers would swallow it
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {unknown[0]!r}")
        adapter = inside(self.wplus, self.unet, "W+ Adapter", "load_wplus('wplus_adapter.bin')")
        prompt, who = _apart(identity, prompt, w)
        codes = _edited(self._codes(who), edits)
        if prompt is not None:
            texts = 1 if isinstance(prompt, str) else len(prompt)
        elif options.get("prompt_embeds") is not None:
            texts = len(options["prompt_embeds"])
        else:
            raise IdgenError("no prompt given: say what the picture shows, or pass prompt_embeds")
        rows = max(len(codes), texts)
        if {len(codes), texts} - {1, rows}:
            raise IdgenError(f"{texts} prompts given for {len(codes)} people: give one for all or one for each")
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            if options.get(name) is not None and len(options[name]) == 1:
                options[name] = options[name].expand(rows, -1, -1)
        conditioning = adapter.condition(
            codes.expand(rows, -1, -1),
            images=num_images_per_prompt,
            guidance=guidance_scale > 1 and self.unet.config.time_cond_proj_dim is None,
            scale=scale,
            mask=mask,
            schedule=self._schedule(start_ratio, start_step, num_inference_steps, options),
        )
        others = dict(cross_attention_kwargs or {})
        if KEY in others:
            conditioning = others[KEY] + conditioning
        return super().__call__(
            prompt=_for_each(prompt, rows),
            negative_prompt=_for_each(negative_prompt, rows),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            cross_attention_kwargs=others | conditioning.kwargs,
            **options,
        )

    def _codes(self, who: Any) -> Tensor:
        """(people, 18, 512), checked, where and in the dtype in which the adapter reads them."""
        if isinstance(who, Identity):
            who = self.encode_identity(who)
        elif isinstance(who, (list, tuple)):
            who = [self.encode_identity(one)[0] if isinstance(one, Identity) else one for one in who]
        assert self.wplus is not None
        return self.wplus.to(self._execution_device).embed(who)[0]

    def _face_side(self) -> int:
        if self.e4e is None:
            raise IdgenError("no e4e in this pipeline: load_wplus(adapter, 'e4e_ffhq_encode.pt'), or pass codes as w=")
        return self.e4e.encoder.size

    def _codes_of(self, portraits: Tensor) -> Tensor:
        assert self.e4e is not None
        encoder = self.e4e.to(self._execution_device)
        return encoder(portraits.to(next(encoder.parameters())))

    def _schedule(
        self, ratio: float | None, step: int | None, steps: int, options: dict[str, Any]
    ) -> StepScales | None:
        if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
            raise IdgenError(f"start_step is {step!r}, expected the number of a step, counted from 0")
        if ratio is not None and not 0 <= ratio <= 1:
            raise IdgenError(f"start_ratio is {ratio}, expected a share in [0, 1]: the authors' 20 is 0.2")
        own = {name: options[name] for name in ("timesteps", "sigmas") if options.get(name) is not None}
        if step is None:
            if ratio is None:
                return None
            step = min(LONGEST_REST, int(ratio * (len(next(iter(own.values()))) if own else steps)))
        times = sampling_timesteps(self.scheduler, cast(int, None) if own else steps, **own)
        return StepScales.after(times, step * self.scheduler.order)  # an order of 2 has two timesteps to a step


def _apart(*given: Any) -> tuple[str | list[str] | None, Any]:
    """Prompt and person, which can not be confused: either may come first."""
    there = [one for one in given if one is not None]
    texts = [one for one in there if _is_text(one)]
    people = [one for one in there if not _is_text(one)]
    if len(people) != 1 or len(texts) > 1:
        raise IdgenError(
            f"{len(people)} identities and {len(texts)} prompts given: pass one code (18, 512) or Identity, or one list of"
            " them, and one prompt or list of prompts"
        )
    return texts[0] if texts else None, people[0]


def _is_text(given: Any) -> bool:
    return isinstance(given, str) or (isinstance(given, (list, tuple)) and any(isinstance(one, str) for one in given))


def _edited(codes: Tensor, edits: Sequence[Edit]) -> Tensor:
    for edit in edits:
        if not isinstance(edit, (list, tuple)) or len(edit) != 2 or not isinstance(edit[0], EditDirection):
            raise IdgenError(f"an edit is a pair of an EditDirection and a strength, not {type(edit).__name__}")
        direction, strength = edit
        if not math.isfinite(strength):
            raise IdgenError(f"the strength of an edit is {strength}, expected a finite number")
        codes = direction.apply(codes, strength)
    return codes


def _for_each(prompt: str | Sequence[str] | None, rows: int) -> list[str] | None:
    if prompt is None:
        return None
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    return prompts * rows if len(prompts) == 1 else prompts
