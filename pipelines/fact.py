"""FaceChain-FACT: portraits of a person from a prompt and photos (arXiv 2410.12312, github.com/modelscope/facechain)."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from torch import Tensor

from idgen.adapters.base import Scale
from idgen.adapters.call import KEY
from idgen.adapters.fact import FACTAdapter
from idgen.adapters.fact.sources import ADAPTER, SAVED, TRANSFACE, locate
from idgen.adapters.schedule import StepScales, sampling_timesteps
from idgen.checkpoint import save_weights
from idgen.errors import IdgenError
from idgen.identity import Identity
from idgen.models.transface import TransFace, load_transface
from idgen.pipelines.shared import EndsGuidance, bare, inside, take_out

Face = Identity | Tensor  # with its aligned crops, or TransFace's patch features (references, patches, 512)
Self = TypeVar("Self", bound="_FACT")


class _FACT(EndsGuidance):
    """What the two pipelines below have in common.

    Attributes:
        fact: the adapter, which is in the UNet; None until one is loaded.
        transface: makes patch features of aligned faces; None where features are given instead.
    """

    fact: FACTAdapter | None = None
    transface: TransFace | None = None
    _along = ("fact", "transface")

    @classmethod
    def from_pretrained(
        cls: type[Self],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        base: str | os.PathLike[str] | None = None,
        adapter: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load the published files, or what `save_pretrained` wrote.

        Args:
            pretrained_model_name_or_path: a folder with `adapter_*.ckpt` and `ms1mv2_model_TransFace_S.pt` as in ModelScope's
                yucheng1996/FaceChain-FACT, or a saved pipeline.
            base: hub id or folder of a Stable Diffusion 1.5 model. The authors trained `adapter_maj_*` with majicMIX
                realistic v6 and `adapter_film_*` with a model of theirs; with another base the likeness is less.
            adapter: which adapter of the folder, by a part of its name: `"maj"`, `"film"`.
            kwargs: as in diffusers (`torch_dtype`, `variant`, `scheduler=...`, `controlnet=...`, ...).
        Raises:
            IdgenError: something is missing, broken, or not on this machine and can not be fetched.
        """
        source = locate(pretrained_model_name_or_path, base, adapter, kwargs)
        try:
            pipe = super().from_pretrained(str(source.base), **kwargs)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise IdgenError(f"cannot load Stable Diffusion from {source.base}: {reason}") from error
        return cast(Self, pipe).load_fact(source.adapter, source.transface)

    def load_fact(
        self: Self,
        adapter: FACTAdapter | str | os.PathLike[str],
        transface: TransFace | str | os.PathLike[str] | None = None,
    ) -> Self:
        """Put an adapter into the UNet, in the place of one that was loaded before.

        Args:
            adapter: itself, or a published or saved file.
            transface: the recogniser or its file; without it a call takes patch features only.
        Raises:
            IdgenError: a file is missing, broken or of something else, or the adapter was made for another base.
        """
        unet = bare(self.unet)
        if not isinstance(adapter, FACTAdapter):
            adapter = FACTAdapter.from_pretrained(adapter, unet)
        if transface is not None and not isinstance(transface, TransFace):
            transface = load_transface(transface)
        self.unload_fact()
        self.fact, self.transface = adapter.inject(unet), transface
        return self

    def unload_fact(self) -> None:
        """Take the adapter out; the UNet is as it was."""
        take_out(self.fact, self.unet)
        self.fact = self.transface = None

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write the Stable Diffusion model as diffusers does, and beside it `fact/` with the adapter and the recogniser."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.fact is None:
            return
        folder = Path(save_directory) / SAVED
        folder.mkdir(exist_ok=True)
        self.fact.save(folder / ADAPTER)
        if self.transface is not None:
            save_weights(folder / TRANSFACE, self.transface.state_dict())

    @torch.no_grad()
    def encode_identity(self, identity: Face | Sequence[Face]) -> Tensor | list[Tensor]:
        """Patch features of each person: a list of (references, patches, 512). Reusable between calls as `identity`.

        The authors first paint everything but the head black; the crops of an `Identity` are as the photo shows them.

        Args:
            identity: one person or a list of them, as `Identity` with crops; features pass through.
        """
        if isinstance(identity, (list, tuple)):
            return [cast(Tensor, self.encode_identity(person)) for person in identity]
        if not isinstance(identity, Identity):
            return cast(Tensor, identity)
        if identity.crops is None:
            raise IdgenError("this identity has no crops, and FaceChain-FACT looks at the face: embed the photos again")
        if self.transface is None:
            raise IdgenError("no TransFace loaded: load_fact(adapter, 'ms1mv2_model_TransFace_S.pt'), or pass features")
        network = self.transface.to(self._execution_device)
        faces = identity.crops.permute(0, 3, 1, 2).to(network.pos_embed) / 127.5 - 1
        return network(faces)

    @torch.no_grad()
    def __call__(
        self,
        identity: Face | Sequence[Face],
        prompt: str | list[str] | None = None,
        *,
        scale: Scale = 0.5,
        cfg_face: bool = True,
        window: tuple[float, float] = (0.0, 1.0),
        mask: Any | None = None,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.0,
        num_images_per_prompt: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> StableDiffusionPipelineOutput | Any:
        """Generate `num_images_per_prompt` images of each person. Nothing is swapped into them afterwards.

        Args:
            identity: one person or a list of them, see `encode_identity`.
            prompt: one for all, or one per person; one person may also have several prompts.
            scale: strength of the adapter; the authors' application has 0.5. Per layer see `Adapter.condition`.
            cfg_face: whether guidance compares with nobody (True) or with the same person under the negative prompt.
            window: from which share of the steps to which the adapter acts, in [0, 1].
            mask: where in the picture, see `Adapter.condition`.
            cross_attention_kwargs: may bring other adapters' conditioning along (`conditioning.kwargs`).
            options: everything else that diffusers' pipeline takes.

        Returns:
            `.images` as diffusers' pipeline gives them.
        Raises:
            IdgenError: no adapter loaded, no prompt, or an identity that these weights do not understand.
        """
        parameters = inspect.signature(super().__call__).parameters
        unknown = [name for name in options if name not in parameters or name == "kwargs"]
        if unknown:  # diffusers would swallow it
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {unknown[0]!r}")
        adapter = inside(self.fact, self.unet, "FaceChain-FACT adapter", "load_fact('adapter_maj_....ckpt')")
        people = _people(identity)
        prompts, prompt, negative_prompt, options = _for_each(people, prompt, negative_prompt, options)
        conditioning = adapter.to(device=self._execution_device, dtype=self.unet.dtype).condition(
            self.encode_identity(identity),
            images=num_images_per_prompt * (prompts if people == 1 else 1),
            guidance=guidance_scale > 1 and self.unet.config.time_cond_proj_dim is None,
            cfg_face=cfg_face,
            scale=scale,
            mask=mask,
            schedule=self._schedule(window, num_inference_steps, options),
        )
        others = dict(cross_attention_kwargs or {})
        if KEY in others:
            conditioning = others[KEY] + conditioning
        return super().__call__(
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            cross_attention_kwargs=others | conditioning.kwargs,
            **options,
        )

    def _schedule(self, window: tuple[float, float], steps: int, options: dict[str, Any]) -> StepScales | None:
        if tuple(window) == (0.0, 1.0):
            return None
        own = {name: options[name] for name in ("timesteps", "sigmas") if options.get(name) is not None}
        times = sampling_timesteps(self.scheduler, cast(int, None) if own else steps, **own)
        return StepScales.window(times, *window)


class FACTPipeline(_FACT, StableDiffusionPipeline):
    """Stable Diffusion 1.5 with FaceChain-FACT: `pipe(identity, prompt).images`.

    Everything else is diffusers' own: schedulers, callbacks, offloading, LoRA, `save_pretrained`.

        pipe = FACTPipeline.from_pretrained("FaceChain-FACT", base="majicmix-realistic-v6", adapter="maj")
        identity = FaceEncoder.from_pretrained("buffalo_l")(["anna1.jpg", "anna2.jpg"])
        pipe(identity, "portrait of a woman in a garden", generator=torch.Generator().manual_seed(0)).images

    A ControlNet is another pipeline over the same modules, and costs nothing where it is not wanted:
    `FACTControlNetPipeline.from_pipe(pipe, controlnet=net)`.
    """


class FACTControlNetPipeline(_FACT, StableDiffusionControlNetPipeline):
    """The same with a ControlNet, such as the authors' for poses: `pipe(identity, prompt, image=pose).images`."""


def _people(identity: Face | Sequence[Face]) -> int:
    several = isinstance(identity, (list, tuple)) or (isinstance(identity, Tensor) and identity.ndim == 4)
    return len(cast(Any, identity)) if several else 1


def _for_each(
    people: int, prompt: str | list[str] | None, negative: str | list[str] | None, options: dict[str, Any]
) -> tuple[int, Any, Any, dict[str, Any]]:
    """How many prompts there are, and the prompts and embeddings that diffusers takes: where there are several people, one for
    each of them."""
    embeds = options.get("prompt_embeds")
    if prompt is None and embeds is None:
        raise IdgenError("no prompt given: say what the picture shows, or pass prompt_embeds")
    given = len(embeds) if embeds is not None else 1 if isinstance(prompt, str) else len(cast(list, prompt))
    if people < 2:
        return given, prompt, negative, options
    if given not in (1, people):
        raise IdgenError(f"{given} prompts given for {people} people: give one for all or one for each")
    names = ("prompt_embeds", "negative_prompt_embeds")
    rows = {name: options[name].expand(people, -1, -1) for name in names if options.get(name) is not None}
    return people, _repeated(prompt, people), _repeated(negative, people), options | rows


def _repeated(prompt: str | list[str] | None, people: int) -> list[str] | None:
    if prompt is None:
        return None
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    return prompts * people if len(prompts) == 1 else prompts
