"""Prompts as a frozen text encoder reads them, each read once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from idgen.data.disk_cache import DiskCache, digest
from idgen.rewards.policies import Condition
from idgen.train.denoisers import picture_sizes, resolution, told_size
from idgen.train.priors import fingerprint

IN_MEMORY = 10_000  # prompts; each is 0.3 MB for Stable Diffusion 1.5 in float32
ENCODERS = ("text_encoder", "text_encoder_2")


@torch.no_grad()
def encode_prompts(pipe: Any, prompts: list[str]) -> Condition:
    """Prompts as Stable Diffusion or SDXL reads them, for pictures of the model's own size; of others see `of_pictures`."""
    encoded = pipe.encode_prompt(
        prompt=prompts, device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    if len(encoded) == 2:
        return Condition(encoded[0])
    context, _, pooled, _ = encoded
    return _with_sizes(pipe, context, pooled)


class PromptCache:
    """`encode_prompts` that reads a prompt once.

    Args:
        pipe: Stable Diffusion or SDXL, whose text encoders stay as they are.
        folder: where what was read is kept between trainings; None keeps it in memory.
    """

    def __init__(self, pipe: Any, folder: Path | None = None) -> None:
        self.pipe, self.memory = pipe, OrderedDict[str, dict[str, Tensor]]()
        self.disk = DiskCache(folder, {"encoders": fingerprint(pipe, ENCODERS)}) if folder else None

    def __call__(self, prompts: list[str]) -> Condition:
        fresh = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.memory]
        missing = [prompt for prompt in fresh if self.disk is None or not self.disk.path(_key(prompt)).exists()]
        read: dict[str, dict[str, Tensor]] = {}
        if missing:
            made = encode_prompts(self.pipe, missing)
            for place, prompt in enumerate(missing):
                pooled = {} if made.pooled is None else {"pooled": made.pooled[place].cpu()}
                read[prompt] = {"context": made.context[place].cpu(), **pooled}
        for prompt in fresh:
            if self.disk is None:
                self.memory[prompt] = read[prompt]
            else:
                self.memory[prompt], _ = self.disk.get(_key(prompt), partial(self._one, prompt, read))
        rows = [self.memory[prompt] for prompt in prompts]
        while len(self.memory) > IN_MEMORY:
            self.memory.popitem(last=False)
        context = torch.stack([row["context"] for row in rows]).to(self.pipe.device)
        if "pooled" not in rows[0]:
            return Condition(context)
        return _with_sizes(self.pipe, context, torch.stack([row["pooled"] for row in rows]).to(self.pipe.device))

    def _one(self, prompt: str, read: dict[str, dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was just read, or where a damaged file is made anew, is read now; and nothing beside it."""
        if prompt in read:
            return read[prompt], {}
        made = encode_prompts(self.pipe, [prompt])
        pooled = {} if made.pooled is None else {"pooled": made.pooled[0].cpu()}
        return {"context": made.context[0].cpu(), **pooled}, {}


def of_pictures(pipe: Any, condition: Condition, latents: Tensor) -> Condition:
    """The condition of pictures as large as these latents (batch, channels, h, w), where that is not the model's own size."""
    if condition.pooled is None:
        return condition
    return replace(condition, sizes=picture_sizes(pipe, latents).to(condition.context))


def _with_sizes(pipe: Any, context: Tensor, pooled: Tensor) -> Condition:
    sizes = told_size(resolution(pipe), resolution(pipe)).to(context)
    return Condition(context, None, pooled, sizes.repeat(len(context), 1))


def _key(prompt: str) -> str:
    return digest(prompt.encode())
