"""ReF-LDM's published weights (refldm.ckpt, vqgan.ckpt) -> diffusers models, strictly: every key is known and none is missing.

refldm.ckpt is a flat state dict of the whole LatentDiffusion module: the UNet (`model.diffusion_model.*`), its moving
average (`model_ema.*`, the same names with the dots taken out), the autoencoder (`first_stage_model.*`) and two more names
for it (`cond_stage_model.*`), the noise schedule, and the recogniser of the training loss. vqgan.ckpt holds the autoencoder
alone, with the losses it was trained with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import init_empty_weights
from diffusers import DDIMScheduler, UNet2DModel, VQModel

from idgen.adapters.cachekv.build import build_scheduler
from idgen.adapters.cachekv.config import ReFLDMConfig
from idgen.adapters.cachekv.keys import Described, KeyMap, describe_unet, describe_vq
from idgen.checkpoint import load_weights
from idgen.errors import IdgenError
from idgen.models.published import part

Model = TypeVar("Model", UNet2DModel, VQModel)
State = Mapping[str, torch.Tensor]

UNET, EMA, FIRST_STAGE = "model.diffusion_model.", "model_ema.", "first_stage_model."
CONDITIONS = ("cond_stage_model.lq_image.", "cond_stage_model.ref_image.")
RECOGNISER = "perceptual_loss."
EMA_COUNTERS = ("decay", "num_updates")
SCHEDULE = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
VQ_LOSSES = "loss."  # in vqgan.ckpt: its discriminator and LPIPS


@dataclass(frozen=True)
class ReFLDM:
    """A whole model in diffusers' classes, in eval mode.

    Attributes:
        unet: predicts noise from the noisy latents and the photo's, side by side on the channels.
        vq: the autoencoder; `vq.encode` does not quantise, `vq.decode` does.
        scheduler: DDIM over the model's noise schedule.
        unet_keys: `unet_keys.to_published(unet.state_dict())` gives trained weights their published names.
    """

    unet: UNet2DModel
    vq: VQModel
    scheduler: DDIMScheduler
    unet_keys: KeyMap


def load_refldm(
    path: str | os.PathLike[str],
    config: ReFLDMConfig | None = None,
    *,
    vqgan: str | os.PathLike[str] | None = None,
    ema: bool = True,
) -> ReFLDM:
    """refldm.ckpt as the authors published it.

    Args:
        config: what the weights do not show; the authors' by default.
        vqgan: vqgan.ckpt, for a file that does not hold the autoencoder.
        ema: the averaged weights, which the authors restore with, rather than those that training goes on from.

    Raises:
        IdgenError: a missing or broken file; keys that are missing, unknown or of another shape.
    """
    config = config or ReFLDMConfig()
    what = Path(path).name
    state = load_weights(path)
    _refuse_unknown(state, (UNET, EMA, FIRST_STAGE, *CONDITIONS, RECOGNISER), SCHEDULE, what)
    unet, keys = _unet(state, config, ema=ema, what=what)
    if any(key.startswith(FIRST_STAGE) for key in state):
        vq = _vq(part(state, FIRST_STAGE), config, FIRST_STAGE, what)
        _check_conditions(state, what)
    elif vqgan is not None:
        vq = load_vq(vqgan, config)
    else:
        raise IdgenError(f"{what} has no keys {FIRST_STAGE}*, the autoencoder: put vqgan.ckpt beside it")
    return ReFLDM(unet, vq, _scheduler(state, what), keys)


def load_unet(path: str | os.PathLike[str], config: ReFLDMConfig | None = None, *, ema: bool = True) -> UNet2DModel:
    """The UNet of refldm.ckpt alone.

    Raises:
        IdgenError: as `load_refldm`.
    """
    state = load_weights(path)
    _refuse_unknown(state, (UNET, EMA, FIRST_STAGE, *CONDITIONS, RECOGNISER), SCHEDULE, Path(path).name)
    return _unet(state, config or ReFLDMConfig(), ema=ema, what=Path(path).name)[0]


def load_vq(path: str | os.PathLike[str], config: ReFLDMConfig | None = None) -> VQModel:
    """The autoencoder, from vqgan.ckpt.

    Raises:
        IdgenError: as `load_refldm`.
    """
    state = {key: value for key, value in load_weights(path).items() if not key.startswith(VQ_LOSSES)}
    return _vq(state, config or ReFLDMConfig(), "", Path(path).name)


def _unet(state: State, config: ReFLDMConfig, *, ema: bool, what: str) -> tuple[UNet2DModel, KeyMap]:
    live = part(state, UNET)
    if not live:
        raise IdgenError(f"{what} has no keys {UNET}*: this is not ReF-LDM")
    described = describe_unet(live, head_channels=config.head_channels, norm_groups=config.norm_groups, what=what)
    unet = _empty(UNet2DModel, described)
    _check(described.keys.to_published(unet.state_dict()), live, UNET, what)
    averaged = _averaged(state, live, what)
    if ema and not averaged:
        raise IdgenError(f"{what} has no averaged weights {EMA}*: pass ema=False to take {UNET}*")
    return _fill(unet, described, averaged if ema else live, what), described.keys


def _averaged(state: State, live: State, what: str) -> dict[str, torch.Tensor]:
    """The moving average under the UNet's own keys; empty where the file has none."""
    stored = {key: value for key, value in part(state, EMA).items() if key not in EMA_COUNTERS}
    if not stored:
        return {}
    prefix = UNET.removeprefix("model.")
    short = {f"{prefix}{key}".replace(".", ""): key for key in live}
    if len(short) != len(live):
        raise IdgenError(f"{what}: two keys of the UNet are the same without dots: its averaged weights are ambiguous")
    _check({name: live[key] for name, key in short.items()}, stored, EMA, what)
    return {key: stored[name] for name, key in short.items()}


def _vq(state: State, config: ReFLDMConfig, prefix: str, what: str) -> VQModel:
    described = describe_vq(state, norm_groups=config.norm_groups, what=what)
    vq = _empty(VQModel, described)
    _check(described.keys.to_published(vq.state_dict()), state, prefix, what)
    return _fill(vq, described, state, what)


def _check_conditions(state: State, what: str) -> None:
    """Both conditions pass through the first stage; a file that says otherwise is another model."""
    first = part(state, FIRST_STAGE)
    for prefix in CONDITIONS:
        own = part(state, prefix)
        if not own:
            continue
        _check(first, own, prefix, what)
        other = next((key for key, value in own.items() if not torch.equal(value, first[key])), None)
        if other:
            raise IdgenError(
                f"{what}: {prefix}{other} differs from {FIRST_STAGE}{other}: this model has another encoder"
            )


def _scheduler(state: State, what: str) -> DDIMScheduler:
    """DDIM over the schedule that the file holds."""
    missing = [name for name in SCHEDULE if name not in state]
    if missing:
        raise IdgenError(f"{what}: missing {', '.join(missing)}, the noise schedule")
    betas = state["betas"].double().numpy()
    roots = np.sqrt(betas)
    even = np.linspace(roots[0], roots[-1], len(betas))
    if np.abs(roots - even).max() > 1e-6:
        raise IdgenError(f"{what}: the square roots of betas do not rise evenly: this is not ReF-LDM's noise schedule")
    start, end = (float(f"{beta:.6g}") for beta in (betas[0], betas[-1]))
    scheduler = build_scheduler(start, end, len(betas))
    if not torch.allclose(scheduler.alphas_cumprod, state["alphas_cumprod"].float(), rtol=1e-4):
        raise IdgenError(f"{what}: alphas_cumprod does not belong to betas: the file is damaged")
    return scheduler


def _refuse_unknown(state: State, prefixes: tuple[str, ...], names: tuple[str, ...], what: str) -> None:
    unknown = [key for key in state if key not in names and not key.startswith(prefixes)]
    if unknown:
        raise IdgenError(f"{what}: {len(unknown)} unknown keys: {', '.join(unknown[:10])}: this is not refldm.ckpt")


def _check(expected: State, state: State, prefix: str, what: str) -> None:
    """Compare keys and shapes under their published names, so that the error says what is wrong with the file."""
    problems = {
        "missing": [key for key in expected if key not in state],
        "unknown": [key for key in state if key not in expected],
        "misshapen": [key for key in expected if key in state and state[key].shape != expected[key].shape],
    }
    found = [
        f"{len(keys)} {kind}: {', '.join(prefix + key for key in keys[:10])}" for kind, keys in problems.items() if keys
    ]
    if found:
        raise IdgenError(f"{what}: {'; '.join(found)}: the file is incomplete, or these are other weights")


def _empty(kind: type[Model], described: Described) -> Model:
    with init_empty_weights(include_buffers=False):
        return kind(**described.config)


def _fill(model: Model, described: Described, state: State, what: str) -> Model:
    model.load_state_dict(described.keys.to_diffusers(state, what), strict=True, assign=True)
    return model.eval()
