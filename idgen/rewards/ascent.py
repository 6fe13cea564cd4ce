"""Reward guidance: at each of the later sampling steps the predicted picture goes a little way up a reward. Nothing is trained.

What a step predicts as clean latents is decoded and scored, and moved along the gradient of the score. That does not pass through
the UNet: a step costs one pass of the decoder and the recogniser each way (training-free guidance: Bansal et al., arXiv
2302.07121; Yu et al., arXiv 2303.09833; the shortcut around the UNet is He et al.'s, arXiv 2311.16424).

    guided = guide_identity(encoder, pipe.vae, [identity]).guided(pipe)
    guided(identity)
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from idgen.errors import IdgenError
from idgen.identity import Identity
from idgen.rewards.identity import IdentityReward, mean_reference
from idgen.rewards.scores import Reward
from idgen.rewards.views import Asked, FaceFinder, PictureView, View, WholeView, vae_decoder
from idgen.rewards.words import WordsReward

if TYPE_CHECKING:
    from idgen.faces import FaceEncoder
    from idgen.models.probe import AttributeReader

# Of the mini family, chosen on validation people (docs/RESULTS.md, "Guidance by a recogniser").
STRENGTH = 0.01
# Below this share of the picture in the noisy latents their prediction shows nobody in particular.
START = 0.9
# Words are told of coarser things, which the steps before settle.
WORDS_STRENGTH, WORDS_START = 0.04, 0.4


class RewardGuidance:
    """Moves what sampling steps predict towards a higher reward.

    Args:
        view: from clean latents to what the reward looks at.
        reward: any of `idgen.rewards`; pictures of which it can tell nothing are left alone.
        asked: what the pictures of a batch are to show: one row for all of them, or one each.
        strength: how far each step goes, as root mean square over a picture's latents.
        start: steps of which the noisy latents have a smaller share of the picture (the square root of alphas_cumprod) are left
            alone.

    Raises:
        IdgenError: a strength that is negative or not finite.
    """

    def __init__(
        self,
        view: Callable[[Tensor], View],
        reward: Reward,
        asked: Asked,
        strength: float = STRENGTH,
        start: float = START,
    ) -> None:
        if not math.isfinite(strength) or strength < 0:
            raise IdgenError(f"the strength of guidance is {strength}, expected 0 or more")
        self.view, self.reward, self.asked, self.strength, self.start = view, reward, asked, strength, start

    def __deepcopy__(self, memo: dict[int, Any]) -> RewardGuidance:
        return self  # a pipeline may copy its scheduler for a call; the networks are not copied with it

    @torch.enable_grad()
    def shift(self, clean: Tensor) -> Tensor:
        """What to add to predicted clean latents (batch, channels, h, w); zeros where the reward can tell nothing."""
        latents = clean.detach().float().requires_grad_(True)
        scored = self.reward(self.view(latents), _each(self.asked, len(latents)))
        # Of a loss: `bounded` lets a gradient through where descent leads back inside.
        (gradient,) = torch.autograd.grad(-(scored.values * scored.counted).sum(), latents)
        size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        return torch.where(size > 0, -self.strength * gradient / size.clamp_min(1e-20), 0.0)

    def guided(self, pipe: Any) -> Any:
        """A pipeline of the same networks that samples with this guidance, and with those that `pipe` has already. `pipe` stays
        as it is, also for other threads.

        Raises:
            IdgenError: a scheduler whose latents are not the weighed sum of picture and noise that alphas_cumprod says.
        """
        scheduler = copy.deepcopy(pipe.scheduler)
        kind = type(scheduler)
        if not hasattr(scheduler, "alphas_cumprod") or scheduler.init_noise_sigma != 1:
            raise IdgenError(
                f"guidance by a reward does not work with {kind.__name__}: use DDIMScheduler, DPMSolverMultistepScheduler"
                " or UniPCMultistepScheduler (Scheduler.from_config(pipe.scheduler.config))"
            )
        if not issubclass(kind, _Guided):
            scheduler.__class__ = type(f"Guided{kind.__name__}", (_Guided, kind), {"step": _guided_step(kind.step)})
            scheduler.reward_guidances = ()
        scheduler.reward_guidances = (*scheduler.reward_guidances, self)
        twin = copy.copy(pipe)
        twin.scheduler = scheduler
        return twin


class _Guided:
    """A scheduler whose steps are guided."""

    reward_guidances: tuple[RewardGuidance, ...]


def _guided_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """A scheduler's step whose prediction x0 becomes x0 + shift while the predicted noise stays: the next latents,
    a x0 + sigma noise, move by a times the shift, whatever the solver."""

    @functools.wraps(step)  # pipelines look at its signature for what it takes, such as a generator
    def guided(
        self: Any,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        *args: Any,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        time = int(timestep)
        made = step(self, model_output, timestep, sample, *args, return_dict=return_dict, **kwargs)
        signal = self.alphas_cumprod[time].sqrt()
        acting = [one for one in self.reward_guidances if one.strength and signal > one.start]
        if not acting:
            return made
        later = self.timesteps[self.timesteps < time]
        after = self.alphas_cumprod[int(later.max())].sqrt() if len(later) else torch.tensor(1.0)
        clean = clean_latents(model_output, sample, signal, self.config.prediction_type)
        before = made.prev_sample if return_dict else made[0]
        shift = torch.stack([one.shift(clean) for one in acting]).sum(0)
        moved = before + (after.to(before.device) * shift).to(before.dtype)
        if not return_dict:
            return (moved, *made[1:])
        made.prev_sample = moved
        return made

    return guided


def clean_latents(answer: Tensor, noisy: Tensor, signal: Tensor, prediction_type: str) -> Tensor:
    """The clean latents that a model's answer stands for, float32.

    Args:
        answer, noisy: (batch, channels, h, w).
        signal: the square root of alphas_cumprod, ().
        prediction_type: "epsilon", "v_prediction" or "sample".
    """
    answer, noisy, signal = answer.float(), noisy.float(), signal.to(noisy.device)
    noise_share = (1 - signal**2).sqrt()
    if prediction_type == "epsilon":
        return (noisy - noise_share * answer) / signal
    return signal * noisy - noise_share * answer if prediction_type == "v_prediction" else answer


def guide_identity(
    encoder: FaceEncoder,
    vae: Any,
    people: Sequence[Identity | None],
    strength: float = STRENGTH,
    start: float = START,
) -> RewardGuidance:
    """Guidance by what a recogniser sees in the faces that are being made.

    Args:
        encoder: finds and reads the faces; never a judge of the result.
        vae: the pipeline's autoencoder.
        people: who is to be seen: one for all pictures of a batch, or one each; None for nobody in particular.
        strength, start: see `RewardGuidance`.

    Raises:
        IdgenError: embeddings of another recogniser, or of nobody at all.
    """
    known = [one for one in people if one is not None]
    if not known:
        raise IdgenError("guidance by a recogniser needs to know the person: give at least one photo")
    for one in known:
        if one.recogniser != encoder.recogniser:
            raise IdgenError(
                f"embeddings of {one.recogniser!r} can not be compared with faces that {encoder.recogniser!r} reads"
            )
    references = [torch.zeros(known[0].raw.shape[1]) if one is None else mean_reference(one.raw) for one in people]
    asked = Asked(torch.stack(references).to(encoder.device))
    return RewardGuidance(
        WholeView(vae_decoder(vae), FaceFinder(encoder)), IdentityReward(encoder), asked, strength, start
    )


def guide_words(
    reader: AttributeReader,
    vae: Any,
    prompts: Sequence[str],
    strength: float = WORDS_STRENGTH,
    start: float = WORDS_START,
) -> RewardGuidance:
    """Guidance by whether a reader finds in the pictures what their prompts ask for, see `idgen.rewards.words`.

    Args:
        reader: `load_reader()`, the family's, or another; never the probe that measures the result.
        vae: the pipeline's autoencoder.
        prompts: one for all pictures of a batch, or one each.
        strength, start: see `RewardGuidance`.
    """
    return RewardGuidance(
        PictureView(vae_decoder(vae)), WordsReward(reader), Asked(prompts=list(prompts)), strength, start
    )


def _each(asked: Asked, batch: int) -> Asked:
    rows = max(0 if asked.references is None else len(asked.references), len(asked.prompts))
    if rows not in (0, 1, batch):
        raise IdgenError(
            f"the guidance is for {rows} people or prompts, and the batch has {batch} pictures: give one for all, or one each"
        )
    return asked.repeat(batch) if rows == 1 else asked
