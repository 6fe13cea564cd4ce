"""CacheKV in a Stable Diffusion UNet, behind the adapter contract."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from idgen.adapters.base import Adapter, AdapterConfig
from idgen.adapters.cachekv.attention import block_levels
from idgen.adapters.embeddings import MAX_REFERENCES
from idgen.adapters.injections.listening import inside, read
from idgen.adapters.injections.parts import JointPart, Part
from idgen.adapters.layers import attention
from idgen.errors import IdgenError

ADDED = ("text_embeds", "time_ids")  # SDXL's


@dataclass(frozen=True)
class CacheKVConfig(AdapterConfig):
    """Where references are read; there are no weights.

    Attributes:
        recogniser: none looks at the references; the UNet itself does.
        levels: the resolutions at which they are read where a call does not say, as divisors of the latents'; None for all.
    """

    recogniser: str = ""
    levels: tuple[int, ...] | None = None


class CacheKVAdapter(Adapter):
    """ReF-LDM's CacheKV (Hsiao et al., NeurIPS 2024, arXiv 2412.05043) for any Stable Diffusion UNet, as it comes.

    `condition(latents, prompt_embeds=...)`: the UNet runs over the references once, at time 0 and without noise, and every
    self-attention then reads their keys and values beside its own, in one softmax. Nothing is trained; a UNet that was
    trained so (a user's LoRA) takes part in the references' pass too. Rows without identity do not see the references.

        adapter = CacheKVAdapter.for_unet(pipe.unet, CacheKVConfig()).inject(pipe.unet)
        latents = pipe.vae.encode(photos).latent_dist.mean * pipe.vae.config.scaling_factor     # (references, 4, h, w)
        context, _ = pipe.encode_prompt("a photo of a face", device, 1, False)
        conditioning = adapter.condition(latents, prompt_embeds=context, levels=[2, 4])
        pipe("a photo of a face", cross_attention_kwargs=conditioning.kwargs).images
    """

    method = "cachekv"
    config_class = CacheKVConfig

    def embed(
        self,
        latents: Tensor | Sequence[Tensor],
        *,
        prompt_embeds: Tensor,
        levels: Sequence[int] | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """
        Args:
            latents: of one person's references (references, channels, height, width); of several people a list of those, of
                any lengths, or (people, references, channels, height, width). Scaled as the UNet expects them. An
                inpainting UNet sees them as pictures in which nothing is to be filled.
            prompt_embeds: (people or 1, length, dim) the text of the references' pass.
            levels: the resolutions at which the references are read, as divisors of the latents'.
            added_cond_kwargs: for SDXL, its `text_embeds` and `time_ids`, (people or 1, ...) each.
        """
        unet = inside(self)
        people = [_without_hole(one, unet.config["in_channels"]) for one in _people(latents)]
        most = max(len(one) for one in people)
        padded = torch.stack([F.pad(one, (0, 0) * 3 + (0, most - len(one))) for one in people])
        there = torch.tensor([[index < len(one) for index in range(most)] for one in people])
        width = unet.config["cross_attention_dim"]
        if prompt_embeds.ndim != 3 or prompt_embeds.shape[2] != width or len(prompt_embeds) not in (1, len(people)):
            raise IdgenError(
                f"prompt_embeds have the shape {list(prompt_embeds.shape)}, expected ({len(people)}, length, {width}):"
                " the pipeline's encode_prompt makes them"
            )
        prompts = prompt_embeds.to(unet.dtype)
        added = self._added(added_cond_kwargs, len(people))
        chosen = torch.tensor(self._levels(levels))
        rows = [one.expand(len(people), *one.shape[1:]) for one in (prompts, chosen[None], *added)]
        return padded.to(prompts), there.to(prompts), *rows

    def null(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Nobody is absence: rows that do not look."""
        latents, there, *others = (one[:1] for one in inputs)
        return latents, torch.zeros_like(there), *others

    def project(self, *inputs: Tensor) -> Any:
        """What the self-attentions see of each reference, a `Bank`."""
        latents, there, prompts, levels, *added = inputs
        shown = there.flatten() > 0  # (rows * references,)

        def each(rows: Tensor) -> Tensor:
            return rows.repeat_interleave(there.shape[1], 0)[shown]

        further = {name: each(rows) for name, rows in zip(ADDED, added, strict=False)}
        names = self._names(levels[0].tolist())
        states = read(inside(self), self, latents.flatten(0, 1)[shown], each(prompts), names, further or None)
        return Bank(states, there > 0)

    def parts(self, tokens: Any) -> dict[str, list[Part]]:
        """The bank's keys and values in the softmax of each self-attention that listened."""
        bank: Bank = tokens
        made: dict[str, list[Part]] = {}
        for layer in self.layers:
            if layer.name not in bank.states:
                continue
            module: Any = attention(inside(self), layer)
            states = bank.states[layer.name]  # (references shown, tokens, hidden)
            key, value = (bank.laid_out(project(states)) for project in (module.to_k, module.to_v))
            bias = None
            if not bank.there.all():
                absent = ~bank.there.repeat_interleave(states.shape[1], 1)
                bias = torch.zeros(absent.shape).to(key).masked_fill(absent.to(key.device), -math.inf)
            made[layer.name] = [JointPart(key, value, bias=bias)]
        return made

    def _names(self, levels: Sequence[int]) -> list[str]:
        wanted = tuple(block for block, level in block_levels(inside(self)).items() if level in levels)
        return [layer.name for layer in self.layers if not layer.cross and layer.name.startswith(wanted)]

    def _levels(self, levels: Sequence[int] | None) -> list[int]:
        own = [layer.name for layer in self.layers if not layer.cross]
        blocks = block_levels(inside(self)).items()
        known = sorted({level for block, level in blocks if any(name.startswith(block) for name in own)})
        chosen = levels if levels is not None else self.config.levels
        if chosen is None:
            return known
        if not set(chosen) <= set(known) or not chosen:
            raise IdgenError(f"this UNet has self-attention at the levels {known}, not at all of {list(chosen)}")
        return list(chosen)

    def _added(self, given: Mapping[str, Tensor] | None, people: int) -> list[Tensor]:
        unet = inside(self)
        wanted = ADDED if unet.config["addition_embed_type"] == "text_time" else ()
        given = given or {}
        if set(given) != set(wanted) or any(len(one) not in (1, people) for one in given.values()):
            needs = " and ".join(wanted) if wanted else "nothing"
            raise IdgenError(f"added_cond_kwargs: this UNet takes {needs} there, with one row or one per person")
        return [given[name].to(unet.dtype) for name in wanted]


@dataclass(frozen=True, repr=False)
class Bank:
    """What the self-attentions saw of references.

    Attributes:
        states: by layer, (references shown, tokens, hidden) what keys and values are made of.
        there: (rows, references) bool, which of them are shown, row by row.
    """

    states: Mapping[str, Tensor]
    there: Tensor

    def laid_out(self, shown: Tensor) -> Tensor:
        """(references shown, tokens, hidden) -> (rows, references * tokens, hidden), zeros for references that are not."""
        held = shown.new_zeros(self.there.numel(), *shown.shape[1:])
        held[self.there.flatten()] = shown
        return held.unflatten(0, self.there.shape).flatten(1, 2)


def _people(latents: Any) -> list[Tensor]:
    """One (references, channels, height, width) per person."""
    listed = list(latents) if isinstance(latents, (list, tuple)) or _has_dimensions(latents, 5) else [latents]
    if not listed:
        raise IdgenError("no identity given: pass the latents of at least one reference")
    for one in listed:
        if not _has_dimensions(one, 4) or 0 in one.shape:
            found = list(one.shape) if isinstance(one, Tensor) else type(one).__name__
            raise IdgenError(f"a person's references are latents (references, channels, height, width), not {found}")
        if one.shape[1:] != listed[0].shape[1:]:
            raise IdgenError("references of one batch must be latents of one size")
        if len(one) > MAX_REFERENCES:
            raise IdgenError(f"{len(one)} references given, at most {MAX_REFERENCES} make sense")
        if not one.isfinite().all():
            raise IdgenError("the references' latents hold NaN or infinity: encode the photos again")
    return listed


def _without_hole(latents: Tensor, wanted: int) -> Tensor:
    """Latents as an inpainting UNet takes them: then the mask, all zero, and the picture outside of it."""
    channels = latents.shape[1]
    if wanted == 2 * channels + 1:
        return torch.cat([latents, torch.zeros_like(latents[:, :1]), latents], 1)
    if channels != wanted:
        raise IdgenError(f"the references' latents have {channels} channels, and this UNet takes {wanted}")
    return latents


def _has_dimensions(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == count
