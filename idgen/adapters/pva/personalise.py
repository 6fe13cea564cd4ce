"""A few steps of training for one person (PVA's FT40): from their photos to `PersonWeights`.

Each photo in turn is the target with its face painted over, and the others are the references, the last of them once more
mirrored (Xu et al., WACV 2024; github.com/AtlantixJJ/PVA-CelebAHQ-IDI). A single photo has itself mirrored as its reference. What
does not change, embeddings and latents, is computed once. Where a recogniser is at hand, the loss of identity that ReF-LDM scales
over the noise (`idgen.losses.identity`) is added; the authors have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor

from idgen.adapters.pva.person import (
    PersonWeights,
    Variant,
    add_lora,
    compress,
    fingerprint,
    lora_parameters,
    lora_weights,
    remove_lora,
)
from idgen.adapters.pva.prompt import PLACEHOLDER, PROMPT, PersonPrompts
from idgen.adapters.pva.training import HoleBatch, PVADenoiser, make_holes, stratified_times, train_on_bins
from idgen.errors import IdgenError
from idgen.losses.diffusion import Noised, predicted_latents
from idgen.losses.identity import timestep_weights, weighed_distance
from idgen.rewards.identity import mean_reference
from idgen.rewards.views import vae_decoder

if TYPE_CHECKING:
    from idgen.pipelines.pva import PVAInpaintPipeline

# Pictures (n, 3, size, size) in [-1, 1] and their landmarks (n, 5, 2) px -> raw embeddings (n, dim), with gradients.
Look = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How fast a person is learned, and how much the loss of identity counts."""

    rate: float
    identity_weight: float


# LoRA begins at zero and acts through two factors: at the whole weights' rate nothing happens in 40 steps.
AUTHORS: dict[Variant, Recipe] = {"visual": Recipe(2e-5, 0.0), "lora": Recipe(1e-4, 0.0)}
# Of a small model, chosen on validation people.
MINI = Recipe(1e-3, 1.0)


@dataclass(frozen=True, repr=False)
class PersonPhotos:
    """Aligned portraits of one person.

    Attributes:
        pictures: (n, 3, size, size) in [-1, 1].
        holes: (n, 1, size, size), 1 over the face.
        landmarks: (n, 5, 2) px of the pictures.
        references, mirrored: (n, dim) raw embeddings of the photos, and of their mirror images.
    """

    pictures: Tensor
    holes: Tensor
    landmarks: Tensor
    references: Tensor
    mirrored: Tensor


def train_person(
    pipe: PVAInpaintPipeline,
    photos: PersonPhotos,
    *,
    steps: int = 40,
    variant: Variant = "visual",
    seed: int = 0,
    learning_rate: float | None = None,
    look: Look | None = None,
    identity_weight: float | None = None,
    modifier_rate: float = 1e-3,
    weight_decay: float = 0.01,
    time_bins: int = 2,
    rank: int = 16,
    report: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> PersonWeights:
    """Train and hand back what changed; the pipeline is as it was.

    Args:
        steps: of the optimiser, each over one photo at `time_bins` times. 0 changes nothing.
        variant: see `PersonWeights`.
        learning_rate: default: the authors' 2e-5 for visual attention, 1e-4 for LoRA; for the mini family with a recogniser 1e-3.
        look: the recogniser that made the references; None: there is no loss of identity.
        identity_weight: of that loss. Default: 1 for the mini family, and none as the authors for others.
        modifier_rate: of the person's word.
        rank: of LoRA.
        report: wraps the steps, such as a progress bar.
    Raises:
        IdgenError: no adapter is loaded, an unknown variant, or a weight of identity and nothing that looks.
    """
    if variant not in get_args(Variant):
        raise IdgenError(f"variant={variant!r} is unknown: use {' or '.join(map(repr, get_args(Variant)))}")
    adapter = pipe.pva
    if adapter is None:
        raise IdgenError("no PVA adapter in this pipeline: load_pva('FPIP.bin')")
    if pipe.person is not None:
        raise IdgenError("this pipeline has a person's weights already: unload_person() first")
    recipe = MINI if look is not None and adapter.config.recogniser == "mini" else AUTHORS[variant]
    if learning_rate is not None:
        recipe = replace(recipe, rate=learning_rate)
    if identity_weight is not None:
        recipe = replace(recipe, identity_weight=identity_weight)
    identity = None
    if recipe.identity_weight:
        if look is None:
            raise IdgenError("a loss of identity needs the recogniser: pass look, or leave identity_weight out")
        identity = _identity_loss(pipe, photos, look, recipe.identity_weight)
    device = pipe._execution_device
    rng = np.random.default_rng(seed)
    with (
        _only_adapter_trains(pipe),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.enable_grad(),
    ):
        torch.manual_seed(seed)
        # Half-precision weights would not feel steps of this size.
        dtype = adapter.modifier.dtype
        adapter.to(device).float()
        before = {name: value.detach().clone() for name, value in adapter.named_parameters()}
        try:
            if variant == "lora":
                add_lora(pipe.unet, rank)
                weights = [value for _, value in lora_parameters(pipe.unet)]
                for value in weights:
                    value.data = value.data.float()
            else:
                weights = [*adapter.kv.parameters(), *adapter.query.parameters()]
            for value in (*weights, adapter.modifier):
                value.requires_grad_(True)
            groups = [{"params": weights, "lr": recipe.rate}, {"params": [adapter.modifier], "lr": modifier_rate}]
            optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)
            denoiser = PVADenoiser(pipe.unet, adapter, pipe.text_encoder).eval()
            makers = _batches(pipe, photos, rng)
            for _ in report(range(steps)):
                # The authors' backward passes, one a stratum of time, in one of them.
                one, target, turned = next(makers)
                batch = one.repeat(time_bins)
                times = stratified_times(pipe.scheduler, 1, time_bins, device).T
                noise = torch.randn_like(batch.latents)[None]
                more = None if identity is None else partial(identity, target, turned)
                train_on_bins(denoiser, optimizer, pipe.scheduler, batch, times, noise, 1, more)
            changes: dict[str, Tensor] = {}
            for name, value in adapter.named_parameters():
                if not torch.equal(value, before[name]):
                    changes |= compress(name, (value.detach() - before[name]).cpu())
            if variant == "lora":
                changes |= lora_weights(pipe.unet)
        finally:
            for name, value in adapter.named_parameters():
                value.data.copy_(before[name])
            adapter.to(dtype)
            remove_lora(pipe.unet)
    return PersonWeights(variant, changes, fingerprint(adapter))


def _identity_loss(
    pipe: PVAInpaintPipeline, photos: PersonPhotos, look: Look, weight: float
) -> Callable[[int, bool, Tensor, Noised], Tensor]:
    """How unlike the person predictions are, of (a photo's number, whether it is mirrored, prediction, what was asked)."""
    decode, person = vae_decoder(pipe.vae), mean_reference(photos.references)

    def loss(target: int, turned: bool, prediction: Tensor, noised: Noised) -> Tensor:
        def see(pictures: Tensor, rows: Tensor) -> Tensor:
            landmarks = photos.landmarks[target].to(pictures).expand(len(pictures), -1, -1)
            return look(pictures.flip(-1) if turned else pictures, landmarks)

        clean = predicted_latents(pipe.scheduler, prediction, noised)
        weights = timestep_weights(pipe.scheduler.alphas_cumprod, noised.timesteps)
        wanted = person.to(clean.device).expand(len(clean), -1)
        return weight * weighed_distance(see, decode, clean, wanted, weights, len(clean))

    return loss


def _batches(
    pipe: PVAInpaintPipeline, photos: PersonPhotos, rng: np.random.Generator
) -> Iterator[tuple[HoleBatch, int, bool]]:
    """Each photo once in a random order, and again; with its number and whether it is mirrored."""
    device = pipe._execution_device
    texts = [PROMPT.replace(PLACEHOLDER, pipe.config.placeholder)]
    prompts = PersonPrompts.tokenise(pipe.tokenizer, texts, pipe.config.placeholder)
    both = torch.stack([photos.references, photos.mirrored]).float()  # (2, n, dim)
    encoded: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
    count = len(photos.pictures)
    while True:
        for target in rng.permutation(count):
            turned = int(rng.integers(2))
            others = rng.permutation([index for index in range(count) if index != target]).astype(int)
            sides = rng.integers(2, size=len(others))
            last = (int(others[-1]), 1 - int(sides[-1])) if len(others) else (int(target), 1 - turned)
            rows = [both[side, index] for side, index in zip(sides, others, strict=True)] + [both[last[1], last[0]]]
            key = int(target), turned
            if key not in encoded:
                picture, hole = (x[target][None].to(device) for x in (photos.pictures, photos.holes))
                if turned:
                    picture, hole = picture.flip(-1), hole.flip(-1)
                made = make_holes(pipe.vae, picture.to(pipe.vae.dtype), hole.to(pipe.vae.dtype))
                encoded[key] = made[0].to(pipe.unet.dtype), made[1].to(pipe.unet.dtype), made[2].to(pipe.unet.dtype)
            yield HoleBatch(*encoded[key], torch.stack(rows)[None].to(device), prompts), int(target), bool(turned)


@contextmanager
def _only_adapter_trains(pipe: PVAInpaintPipeline) -> Iterator[None]:
    """No gradients for anything, and afterwards for what had them before."""
    parts: tuple[Any, ...] = (pipe.unet, pipe.text_encoder, pipe.vae, pipe.pva, pipe.recogniser)
    modules = [part for part in parts if part is not None]
    flags = [(value, value.requires_grad) for module in modules for value in module.parameters()]
    for value, _ in flags:
        value.requires_grad_(False)
    try:
        yield
    finally:
        for value, flag in flags:
            value.requires_grad_(flag)
            value.grad = None
