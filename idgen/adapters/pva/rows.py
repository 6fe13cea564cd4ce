"""What a caller passes for all or for each -> one per row of a batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from idgen.errors import IdgenError
from idgen.imageio import load_array


def people_of(identity: Any) -> list[Any]:
    """One person, several, or None for nobody in particular -> a list."""
    if identity is None:
        return []
    people = list(identity) if isinstance(identity, (list, tuple)) else [identity]
    if not people:
        raise IdgenError("no identity given: pass an Identity, or None for nobody in particular")
    return people


def expanded(embeds: Tensor, rows: int, what: str) -> Tensor:
    """Prompt embeddings for all, or one for each person -> (rows, length, dim)."""
    if len(embeds) not in (1, rows):
        raise IdgenError(f"{len(embeds)} {what} given for {rows} people: give one for all or one for each")
    return embeds.expand(rows, -1, -1)


def for_rows(x: Tensor, rows: int, batch: int, what: str) -> Tensor:
    """One picture for all, or one per person -> one per row of the batch."""
    if len(x) not in (1, rows, batch):
        raise IdgenError(f"{len(x)} {what} given for {rows} people: give one for all or one for each")
    return x if len(x) == batch else x.repeat_interleave(batch // len(x), 0)


def pictures_of(portraits: Any) -> list[Tensor]:
    """Files, pictures or a tensor (n, 3, h, w) in [0, 1] -> tensors (n, 3, h, w) in [0, 1], of each picture's own size."""
    if isinstance(portraits, Tensor):
        if portraits.ndim != 4 or portraits.shape[1] != 3 or not len(portraits):
            raise IdgenError(f"portraits are a tensor (n, 3, height, width) in [0, 1], not {list(portraits.shape)}")
        return [portraits.float()]
    given = list(portraits) if isinstance(portraits, (list, tuple)) else [portraits]
    if not given:
        raise IdgenError("no portrait given: name at least one picture of the person")
    arrays = [torch.from_numpy(load_array(portrait)) for portrait in given]
    return [array.permute(2, 0, 1)[None].float() / 255 for array in arrays]


def check_settings(scheduler: Any, steps: int | None, guidance_scale: float) -> None:
    """What can be said of a call before anything is computed.

    Args:
        steps: None where the caller names the timesteps.
    Raises:
        IdgenError: a number of steps that the scheduler can not take, or a guidance that is no number.
    """
    most = scheduler.config.num_train_timesteps
    if steps is not None and (not isinstance(steps, int) or not 1 <= steps <= most):
        raise IdgenError(f"num_inference_steps is {steps!r}, expected 1 to {most}")
    if not math.isfinite(guidance_scale):
        raise IdgenError(f"guidance_scale is {guidance_scale}, expected a finite number")
