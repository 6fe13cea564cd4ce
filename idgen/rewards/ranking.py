"""Losses that ask of a reward only which of several pictures is better: any recogniser or person will do.

* Diffusion-DPO (Wallace et al., arXiv 2311.12908): the better picture's denoising error falls against the base's by more than
  the worse one's.
* DrPO (arXiv 2606.02521; facts from github.com/UGVly/DrPO `src/drpo/drift.py`): features of what is generated are drawn to those
  of the best candidates, away from the worst and from each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgen.errors import IdgenError

RADII = (0.02, 0.05, 0.2)
PATCHES = (1, 2, 4)


def dpo_loss(better: Tensor, worse: Tensor, base_better: Tensor, base_worse: Tensor, beta: float) -> Tensor:
    """Diffusion-DPO's loss, a scalar.

    Args:
        better, worse: (pairs,) mean squared denoising error of the model, at the same noise and timestep for both.
        base_better, base_worse: the same of the frozen base.
        beta: 2000 for Stable Diffusion 1.5, 5000 for SDXL (the authors); it carries the paper's factor of timesteps and weight,
            and the half that the authors' code has.
    """
    gained = (better - worse) - (base_better - base_worse).detach()
    return -F.logsigmoid(-0.5 * beta * gained).mean()


def drift_loss(
    generated: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    weight: float = 10.0,
    radii: Sequence[float] = RADII,
) -> Tensor:
    """DrPO's loss, (groups,): the distance of features to where they should drift; gradients reach `generated` only.

    Args:
        generated: (groups, n, dim) features.
        positives, negatives: (groups, any, dim) features of the best and of the worst.
        weight: of positives and negatives, where each of the generated weighs 1.
        radii: of the exponential kernels, in units of the mean distance.

    Raises:
        IdgenError: no positives or no negatives.
    """
    if not positives.shape[1] or not negatives.shape[1]:
        raise IdgenError("DrPO needs at least one candidate to be drawn to and one to be kept from")
    generated = generated.float()
    with torch.no_grad():
        here = generated.detach()
        count, dim = here.shape[1:]
        targets = torch.cat([here, negatives.float(), positives.float()], 1)  # (groups, targets, dim)
        weights = torch.full((targets.shape[1],), weight, device=here.device)
        weights[:count] = 1
        distances = _distances(here, targets)  # (groups, n, targets)
        # One scale for all groups, as in the original.
        scale = ((distances * weights).mean() / weights.mean()).clamp_min(1e-3)
        unit = (scale / math.sqrt(dim)).clamp_min(1e-3)
        itself = F.pad(torch.eye(count, device=here.device), (0, targets.shape[1] - count))
        attracting = torch.arange(targets.shape[1], device=here.device) >= targets.shape[1] - positives.shape[1]
        force = torch.zeros_like(here)
        for radius in radii:
            logits = -distances / (scale * radius) - 100 / radius * itself
            affinity = (logits.softmax(-1) * logits.softmax(-2)).clamp_min(1e-6).sqrt() * weights
            pull, push = affinity * attracting, affinity * ~attracting
            # Either side is weighed by the other's mass, so that neither wins by number.
            coefficients = pull * push.sum(-1, keepdim=True) - push * pull.sum(-1, keepdim=True)
            along = (coefficients @ targets - coefficients.sum(-1, keepdim=True) * here) / unit
            force += along / along.pow(2).mean().clamp_min(1e-8).sqrt()
        goal = here / unit + force
    return (generated / unit - goal).pow(2).mean((1, 2))


def extremes(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Places of the best and of the worst of each row, two (groups, count).

    Args:
        scores: (groups, candidates).

    Raises:
        IdgenError: fewer candidates than twice `count`: the same one would be both.
    """
    if scores.shape[1] < 2 * count:
        raise IdgenError(f"{count} best and {count} worst of {scores.shape[1]} candidates: make at least {2 * count}")
    order = scores.argsort(1, descending=True)
    return order[:, :count], order[:, -count:]


def take(rows: Tensor, places: Tensor) -> Tensor:
    """(groups, candidates, ...) at places (groups, count) -> (groups, count, ...)."""
    return rows[torch.arange(len(rows), device=rows.device)[:, None], places]


def unet_features(unet: nn.Module, run: Callable[[], object], layers: Sequence[str] = ("mid_block",)) -> list[Tensor]:
    """Means and deviations, over patches of several sizes, of what layers of a UNet put out while `run` calls it once.

    Returns:
        One (batch, patches, channels) for each layer, patch size and statistic.
    """
    caught: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in layers:

            def catch(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
                caught[name] = output[0] if isinstance(output, tuple) else output

            handle = unet.get_submodule(name).register_forward_hook(catch)
            stack.callback(handle.remove)
        run()
    return [statistic for name in layers for statistic in patch_statistics(caught[name].float())]


def patch_statistics(features: Tensor, patches: Sequence[int] = PATCHES) -> list[Tensor]:
    """(batch, channels, h, w) -> for each grid of `n x n` patches its means and deviations, (batch, n * n, channels)."""
    found = []
    for grid in patches:
        means = F.adaptive_avg_pool2d(features, grid)
        squares = F.adaptive_avg_pool2d(features.pow(2), grid)
        deviations = (squares - means.pow(2)).clamp_min(1e-6).sqrt()
        found += [statistic.flatten(2).transpose(1, 2) for statistic in (means, deviations)]
    return found


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """(groups, n, dim), (groups, m, dim) -> (groups, n, m)."""
    return torch.cdist(x, y).clamp_min(1e-4)
