"""Restoration of a face from other photos of the person (ReF-LDM, arXiv 2412.05043, github.com/ChiWeiHsiao/ref-ldm)."""

from __future__ import annotations

import copy
import inspect
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, ImagePipelineOutput, UNet2DModel, VQModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from idgen.adapters.arc2face.convert import load_model
from idgen.adapters.cachekv.build import lay_out
from idgen.adapters.cachekv.cache import ReferenceCache, gather
from idgen.adapters.cachekv.concat import CONDITIONINGS, GuidedBeside
from idgen.adapters.cachekv.config import ReFLDMConfig
from idgen.adapters.cachekv.convert import load_refldm
from idgen.adapters.cachekv.encode import ENCODINGS, Encoding, encode_references
from idgen.adapters.cachekv.injection import CacheKV
from idgen.adapters.cachekv.photos import as_list, as_people, as_pixels
from idgen.adapters.cachekv.sampling import GuidedUNet, restore, set_timesteps
from idgen.adapters.cachekv.sources import locate
from idgen.errors import IdgenError
from idgen.pipelines.shared import SharedNetworks

Cache = ReferenceCache | str | os.PathLike[str]


class ReferenceRestorePipeline(SharedNetworks):
    """A bad photo of a face and good photos of the same person -> a good photo: `pipe(bad, references=[...]).images`.

    Faces are aligned as FFHQ's are; for whole photos there is `idgen.restoration.restore_photo`.

        pipe = ReferenceRestorePipeline.from_pretrained("mini")
        anna = pipe.cache(["anna1.png", "anna2.png"])
        anna.save("anna.safetensors")                      # serves every photo of hers from now on
        pipe(["bad1.png", "bad2.png"], cache=anna, generator=torch.Generator().manual_seed(0)).images

    Args:
        unet: predicts from the noisy latents and, after them on the channels, the bad photo's.
        vq: the autoencoder.
        size: side of the photos in pixels.
        ref_encoding: how references are encoded where a call does not say, see `encode_references`.
        references: with how many the UNet was trained; 0 for one that never saw any.
        conditioning: how it reads them. `"cachekv"`; or, for comparison, as latents beside the photo's on the channels
            (`"channel"`) or in space (`"spatial"`), for which there is neither cache nor choice of levels.
    """

    model_cpu_offload_seq = "vq->unet->vq"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        unet: UNet2DModel,
        vq: VQModel | AutoencoderTiny,
        scheduler: KarrasDiffusionSchedulers,
        size: int = ReFLDMConfig.size,
        ref_encoding: str = "panorama",
        references: int = ReFLDMConfig.references,
        conditioning: str = "cachekv",
    ) -> None:
        super().__init__()
        if conditioning not in CONDITIONINGS:
            raise IdgenError(f"conditioning is {conditioning!r}, expected one of {', '.join(CONDITIONINGS)}")
        lay_out(unet, vq)
        self.register_modules(unet=unet, vq=vq, scheduler=scheduler)
        self.register_to_config(size=size, ref_encoding=ref_encoding, references=references, conditioning=conditioning)
        self.image_processor = VaeImageProcessor()
        self._interrupt = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        published: ReFLDMConfig | None = None,
        **kwargs: Any,
    ) -> ReferenceRestorePipeline:
        """Load the mini family, the authors' files, or what `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: `"mini"`; `refldm.ckpt` or the folder that holds it (and vqgan.ckpt); a saved
                pipeline or its hub id.
            published: what the authors' weights do not say of themselves, for a model trained with other settings than theirs.
            kwargs: as in diffusers (`torch_dtype`, `variant`, `scheduler=...`, `cache_dir`, `local_files_only`, ...).

        Raises:
            IdgenError: something is missing, broken, or not on this machine and can not be fetched.
        """
        source = locate(pretrained_model_name_or_path, kwargs)
        if source.checkpoint is not None:
            config = published or ReFLDMConfig()
            model = load_refldm(source.checkpoint, config, vqgan=source.vqgan)
            unet, vq = (part.to(_dtype(kwargs, name)) for name, part in (("unet", model.unet), ("vq", model.vq)))
            parts = {"unet": unet, "vq": vq, "scheduler": model.scheduler}
            parts |= {name: kwargs[name] for name in parts if name in kwargs}
            return cls(**parts, size=config.size, references=config.references)
        assert source.folder is not None and source.vq is not None
        for part, folder, what in (("unet", source.folder / "unet", "UNet"), ("vq", source.vq, "autoencoder")):
            if part not in kwargs:
                kwargs[part] = load_model(folder, what, dtype=_dtype(kwargs, part), variant=kwargs.get("variant"))
        try:
            return super().from_pretrained(str(source.folder), **kwargs)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise IdgenError(f"cannot load the pipeline in {source.folder}: {reason}") from error

    @property
    def kv(self) -> CacheKV:
        """What lets the UNet read references."""
        return CacheKV.of(self.unet)

    @property
    def interrupt(self) -> bool:
        """Set (`_interrupt = True`) by a callback to stop at the current latents."""
        return self._interrupt

    @torch.no_grad()
    def cache(
        self,
        references: Any,
        ref_encoding: Encoding | None = None,
        levels: Sequence[int] | None = None,
        size: int | None = None,
    ) -> ReferenceCache:
        """One person's references, read once; it serves any photo, seed, sampler and number of steps.

        Args:
            references: aligned photos of one person, see `as_pixels`.
            ref_encoding: `"panorama"`, as the authors do, or `"independent"`, in which photos do not influence each other.
            levels: the resolutions at which the references are to be read, as divisors of the latents'; all by default.
            size: side of the photos in pixels; the model's by default.

        Raises:
            IdgenError: no photo, one that can not be read, a level that the UNet does not have, or a UNet without references.
        """
        cache = self._build(references, ref_encoding, levels, self._size(size))
        self.maybe_free_model_hooks()
        return cache

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        references: Any | None = None,
        *,
        cache: Cache | Sequence[Cache | None] | None = None,
        num_inference_steps: int = ReFLDMConfig.steps,
        guidance_scale: float = ReFLDMConfig.guidance_scale,
        ref_encoding: Encoding | None = None,
        levels: Sequence[int] | None = None,
        size: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | Any:
        """Restore photos.

        Args:
            image: one aligned photo or several, see `as_pixels`.
            references: aligned photos of one person, who is in all of the photos; or a list of such lists, one person per
                photo, which may be of different lengths or empty. Without references the photo alone is restored.
            cache: what `cache` made or `ReferenceCache.save` wrote, instead of references: one, or one per photo (None for a
                photo to be restored without).
            num_inference_steps: with DDIM there are a few more where they do not divide the training's 1000, as with the authors.
            guidance_scale: how far the references are followed; 1 is as trained, and needs half the time.
            ref_encoding, levels, size: as in `cache`.
            latents: the noise to begin with, (photos, channels, h, w), instead of a generator.
            output_type: "pil", "np" (photos, size, size, 3) in [0, 1], "pt" (photos, 3, size, size) in [0, 1], "latent".
            callback_on_step_end: as in diffusers; gets and may change `latents`.

        Returns:
            `.images`.

        Raises:
            IdgenError: photos, references, caches or settings that do not fit the model or each other.
        """
        size = self._size(size)
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise IdgenError(
                f"a callback sees {', '.join(self._callback_tensor_inputs)}, not {', '.join(sorted(unknown))}"
            )
        if not math.isfinite(guidance_scale):
            raise IdgenError(f"guidance_scale is {guidance_scale}, expected a finite number")
        if references is not None and cache is not None:
            raise IdgenError("pass either references or a cache that was made of them, and not both")
        lq = self._encode(as_pixels(image, size)[:, None], "independent")[:, 0]
        if self.config.conditioning == "cachekv":
            people = self._people(references, cache, levels, ref_encoding, size)
            guided: Any = self._guided(lq, people, levels, guidance_scale)
        elif cache is not None or levels is not None:
            raise IdgenError(f"this model ({self.config.conditioning}) has neither cache nor levels: pass references")
        else:
            guided = self._guided_beside(lq, references, ref_encoding, size, guidance_scale)
        if latents is None:
            latents = randn_tensor(lq.shape, generator=generator, device=lq.device, dtype=lq.dtype)
        elif latents.shape != lq.shape:
            raise IdgenError(f"latents have the shape {list(latents.shape)}, expected {list(lq.shape)}")
        scheduler = copy.deepcopy(self.scheduler)  # its counters are of this call
        _set_timesteps(scheduler, num_inference_steps, lq.device)
        # Such schedulers may add noise at each step.
        noise = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        self._interrupt = False
        with self.progress_bar(total=len(scheduler.timesteps)) as bar:

            def on_step(index: int, step: Any) -> Tensor | None:
                bar.update()
                if callback_on_step_end is None:
                    return None
                seen = {name: step.prev_sample for name in callback_on_step_end_tensor_inputs}
                changed = callback_on_step_end(self, index, scheduler.timesteps[index], seen) or {}
                now = changed.get("latents", step.prev_sample)
                if self._interrupt:
                    raise _Interrupted(now)
                return now

            try:
                made = restore(guided, scheduler, latents.to(lq), on_step, **noise)
            except _Interrupted as interrupted:
                made = interrupted.latents
        images: Any = made
        if output_type != "latent":
            pixels = self.vq.decode(made.to(self.vq.dtype) / self.vq.config.scaling_factor).sample
            images = self.image_processor.postprocess(pixels.float(), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images) if return_dict else (images,)

    def _people(
        self,
        references: Any | None,
        cache: Cache | Sequence[Cache | None] | None,
        levels: Sequence[int] | None,
        ref_encoding: Encoding | None,
        size: int,
    ) -> list[ReferenceCache | None]:
        """One for all photos, or one per photo; None for nobody."""
        if cache is not None:
            given = [None if one is None else self._checked(one) for one in as_list(cache)]
            return [one if one is None or levels is None else one.select(levels) for one in given]
        people = [None] if references is None else as_people(references)
        return [None if _nobody(one) else self._build(one, ref_encoding, levels, size) for one in people]

    def _build(
        self, references: Any, ref_encoding: Encoding | None, levels: Sequence[int] | None, size: int
    ) -> ReferenceCache:
        if self.config.conditioning != "cachekv":
            raise IdgenError(f"this model ({self.config.conditioning}) can not keep what it reads: pass references")
        return self.kv.build(self._latents(references, ref_encoding, size), levels)

    def _latents(self, references: Any, ref_encoding: Encoding | None, size: int) -> Tensor:
        """One person's references: (1, references, channels, h, w)."""
        if self.config.references == 0:
            raise IdgenError(
                "this model was trained without references: pass a photo alone, or load one that reads them"
            )
        return self._encode(as_pixels(references, size)[None], ref_encoding or self.config.ref_encoding)

    def _guided(
        self, lq: Tensor, people: list[ReferenceCache | None], levels: Sequence[int] | None, scale: float
    ) -> GuidedUNet:
        if self.config.references == 0:  # a UNet that never reads
            return GuidedUNet(self.kv, lq, None, 1.0)
        _check_count(people, lq)
        # What stood for no references in training: as many of them, all of whose latents are zero.
        nobody = self.kv.null((lq.shape[-2], lq.shape[-1]), self.config.references, levels, lq.device)
        read = gather([(nobody if one is None else one).to(lq.device, lq.dtype) for one in people])
        return GuidedUNet(self.kv, lq, read, 1.0 if all(one is None for one in people) else scale)

    def _guided_beside(
        self, lq: Tensor, references: Any | None, ref_encoding: Encoding | None, size: int, scale: float
    ) -> GuidedBeside:
        people = [None if _nobody(one) else one for one in ([None] if references is None else as_people(references))]
        _check_count(people, lq)
        known = {i: self._latents(one, ref_encoding, size) for i, one in enumerate(people) if one is not None}
        counts = {latents.shape[1] for latents in known.values()} or {self.config.references}
        if len(counts) > 1:
            raise IdgenError(
                f"a batch with {' and '.join(map(str, sorted(counts)))} references: this model"
                f" ({self.config.conditioning}) takes equally many of each person"
            )
        nobody = lq.new_zeros(1, *counts, *lq.shape[1:])
        rows = torch.cat([known.get(i, nobody) for i in range(len(people))]).expand(len(lq), -1, -1, -1, -1)
        return GuidedBeside(self.unet, self.config.conditioning, lq, rows, scale if known else 1.0)

    def _checked(self, cache: Any) -> ReferenceCache:
        if isinstance(cache, (str, os.PathLike)):
            return self.kv.check(ReferenceCache.read(cache), str(cache))
        if not isinstance(cache, ReferenceCache):
            raise IdgenError(
                f"a cache is what pipe.cache(photos) makes, or the file of one, not {type(cache).__name__}"
            )
        return self.kv.check(cache)

    def _encode(self, pixels: Tensor, mode: Any) -> Tensor:
        """(people, photos, 3, size, size) in [-1, 1] -> (people, photos, channels, h, w), scaled."""
        if mode not in ENCODINGS:
            raise IdgenError(f"references are encoded as {' or '.join(ENCODINGS)}, not {mode!r}")
        pixels = pixels.to(self._execution_device, self.vq.dtype)
        latents = encode_references(self.vq, pixels, mode) * self.vq.config.scaling_factor
        return latents.to(self.unet.dtype)

    def _size(self, size: int | None) -> int:
        size = self.config.size if size is None else size
        blocks = len(self.vq.config.block_out_channels) + len(self.unet.config.block_out_channels) - 2
        if size < 1 or size % 2**blocks:
            raise IdgenError(f"size is {size}, and this model takes photos of a multiple of {2**blocks} px")
        return size


class _Interrupted(Exception):
    """A callback wants no further step."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents


def _nobody(references: Any | None) -> bool:
    return references is None or len(as_list(references)) == 0


def _check_count(people: Sequence[Any], lq: Tensor) -> None:
    if len(people) not in (1, len(lq)):
        raise IdgenError(f"{len(people)} people for {len(lq)} photos: give references of one person, or one for each")


def _set_timesteps(scheduler: Any, steps: int, device: torch.device) -> None:
    """DDIM's as the authors place them, which differ from diffusers' where the steps do not divide the schedule."""
    train_steps = scheduler.config.num_train_timesteps
    if not isinstance(steps, int) or not 1 <= steps <= train_steps:
        raise IdgenError(f"num_inference_steps is {steps!r}, expected 1 to {train_steps}")
    published = {"trailing": "uniform_trailing", "leading": "uniform"}
    schedule: Any = published.get(scheduler.config.get("timestep_spacing"))
    if isinstance(scheduler, DDIMScheduler) and schedule is not None:
        set_timesteps(scheduler, steps, schedule, device)
    else:
        scheduler.set_timesteps(steps, device=device)


def _dtype(options: dict[str, Any], component: str) -> torch.dtype:
    """diffusers' `dtype` (older: `torch_dtype`): one for all, or a dict by component; float32 when not given."""
    dtype: Any = options.get("dtype") or options.get("torch_dtype") or torch.float32
    if isinstance(dtype, dict):
        dtype = dtype.get(component, dtype.get("default", torch.float32))
    return dtype
