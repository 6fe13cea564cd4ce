"""Restoring a photo's latents: DDIM with guidance over the references."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from idgen.adapters.cachekv.cache import MergedCache, ReferenceCache, merge
from idgen.adapters.cachekv.config import SCHEDULES, Schedule
from idgen.adapters.cachekv.injection import CacheKV
from idgen.errors import IdgenError


def timesteps(steps: int, schedule: Schedule = "uniform_trailing", train_timesteps: int = 1000) -> list[int]:
    """The timesteps of the published schedules, noisiest first (ReF-LDM's `make_ddim_timesteps`).

    Both are `train_timesteps // steps` apart: `uniform_trailing` from the last one down, `uniform` from 1 up. Where the
    division leaves a rest there are more timesteps than `steps`.

    Raises:
        IdgenError: no such schedule, or more steps than there are timesteps.
    """
    if schedule not in SCHEDULES:
        raise IdgenError(f"the schedule is {schedule!r}, expected one of {', '.join(SCHEDULES)}")
    if not 1 <= steps <= train_timesteps:
        raise IdgenError(f"{steps} steps: expected 1 to {train_timesteps}")
    stride = train_timesteps // steps
    if schedule == "uniform_trailing":
        return list(range(train_timesteps - 1, -1, -stride))
    return list(range(1, train_timesteps, stride))[::-1]


def set_timesteps(
    scheduler: DDIMScheduler,
    steps: int,
    schedule: Schedule = "uniform_trailing",
    device: str | torch.device | None = None,
) -> None:
    """`scheduler.set_timesteps` with a published schedule; each step goes down by `train_timesteps // steps`.

    Raises:
        IdgenError: as `timesteps`.
    """
    chosen = timesteps(steps, schedule, scheduler.config.num_train_timesteps)
    scheduler.set_timesteps(steps, device=device)
    scheduler.timesteps = torch.tensor(chosen, device=device)


class GuidedUNet:
    """The model's prediction for a restoration: `guided(latents, t)`.

    eps = eps(photo, null) + scale (eps(photo, references) - eps(photo, null)), where null references are as many and have
    latents of zero. Guidance is over the references only: the photo is in both. Scale 1 takes one pass without null.

    Args:
        kv: in its UNet.
        lq: (photos, channels, h, w) latents of the photos to restore.
        references: of one person for all photos, or one row per photo; None to restore without.
        scale: how far the references are followed.
    """

    def __init__(
        self, kv: CacheKV, lq: Tensor, references: ReferenceCache | MergedCache | None, scale: float = 1.5
    ) -> None:
        self.kv, self.scale = kv, scale
        self.guided = references is not None and scale != 1
        self.lq = lq.repeat(2, 1, 1, 1) if self.guided else lq
        self.cache: MergedCache | None = None
        if references is not None:
            given = references.parts if isinstance(references, MergedCache) else (references.expand(len(lq)),)
            nulls = [self._null(part) for part in given] if self.guided else []
            self.cache = merge(*nulls, *given)

    def __call__(self, latents: Tensor, timestep: Tensor | float) -> Tensor:
        """
        Args:
            latents: (photos, channels, h, w), noisy.
        """
        noisy = latents.repeat(2, 1, 1, 1) if self.guided else latents
        with self.kv.attend(self.cache) if self.cache is not None else nullcontext():
            predicted = self.kv.unet(torch.cat([noisy, self.lq], 1), timestep).sample
        if not self.guided:
            return predicted
        without, with_references = predicted.chunk(2)
        return without + self.scale * (with_references - without)

    def _null(self, part: ReferenceCache) -> ReferenceCache:
        size = (self.lq.shape[-2], self.lq.shape[-1])
        count = part.references * part.copies
        return self.kv.null(size, count, part.levels, self.lq.device).expand(part.rows)


@torch.no_grad()
def restore(
    guided: GuidedUNet,
    scheduler: Any,
    noise: Tensor,
    on_step: Callable[[int, Any], Tensor | None] | None = None,
    **options: Any,
) -> Tensor:
    """Latents of the restored photos (photos, channels, h, w); `vq.decode` makes pictures of them.

    Args:
        scheduler: of diffusers, with its timesteps set; for the published ones see `set_timesteps`.
        noise: what to begin with, like the result.
        on_step: sees each step's number and what the scheduler returned (`prev_sample`; DDIM's also has
            `pred_original_sample`, the clean latents as predicted); latents that it returns take the place of the step's.
        options: for `scheduler.step`, such as `generator`.
    """
    latents = noise * scheduler.init_noise_sigma
    for index, timestep in enumerate(scheduler.timesteps):
        predicted = guided(scheduler.scale_model_input(latents, timestep), timestep)
        step = scheduler.step(predicted, timestep, latents, **options)
        changed = on_step(index, step) if on_step is not None else None
        latents = step.prev_sample if changed is None else changed
    return latents
