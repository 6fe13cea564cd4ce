"""Which steps of sampling a reward's gradient passes through.

Each function turns noise into clean latents that carry gradients to the model; what it is rewarded for is none of its business.
All random choices come from torch's global generator.

* ReFL (Xu et al., arXiv 2304.05977; github.com/THUDM/ImageReward): one late step, its prediction of the clean picture.
* DRaFT-K and DRaFT-LV (Clark et al., arXiv 2309.17400): the last K steps; or the last one, on further noisings of the result.
* AlignProp (Prabhudesai et al., arXiv 2310.03739; github.com/mihirp1998/AlignProp): a random number of last steps.
* DRTune (Wu et al., arXiv 2405.00760): steps spread over the whole chain, the model's input held fixed, so that gradients pass
  along the chain's own linear path alone and do not explode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from idgen.rewards.chain import Chain, Denoise

Truncation = Literal["uniform", "gaussian"]


def refl(denoise: Denoise, chain: Chain, noise: Tensor, *, window: float = 0.25) -> Tensor:
    """One step at random among the last `window` of the chain, and the clean latents as predicted there.

    Args:
        window: the authors take steps 30 to 39 of 40.
    """
    earliest = min(len(chain) - 1, round((1 - window) * len(chain)))
    stop = _integer(earliest, len(chain) - 1)
    with torch.no_grad():
        latents = chain.walk(denoise, noise, last=stop)
    return chain.clean(chain.ask(denoise, latents, stop), stop, latents)


def draft(denoise: Denoise, chain: Chain, noise: Tensor, *, last_steps: int = 1) -> Tensor:
    """All steps, gradients through the last `last_steps` of them, by way of the model's input too."""
    start = max(0, len(chain) - last_steps)
    with torch.no_grad():
        latents = chain.walk(denoise, noise, last=start)
    return chain.walk(denoise, latents, first=start)


def draft_lv(denoise: Denoise, chain: Chain, noise: Tensor, *, copies: int = 2) -> Tensor:
    """DRaFT-1, and `copies` more last steps on the result noised anew: less variance for one step's price each.

    Returns:
        ((1 + copies) * batch, channels, h, w): the batch, then its copies one after the other.
    """
    last = len(chain) - 1
    made = [draft(denoise, chain, noise)]
    for _ in range(copies):
        latents = chain.noisy(made[0].detach(), torch.randn_like(noise), last)
        made.append(chain.step(chain.ask(denoise, latents, last), last, latents))
    return torch.cat(made)


def alignprop(denoise: Denoise, chain: Chain, noise: Tensor, *, truncation: Truncation = "uniform") -> Tensor:
    """`draft` whose number of steps with gradients is drawn anew each time.

    Args:
        truncation: `"uniform"` over all numbers (the paper); `"gaussian"`: about the last sixth (the authors' code: the first
            step with gradients is normal with mean 42 and deviation 5 of 50).
    """
    steps = len(chain)
    if truncation == "uniform":
        start = _integer(0, steps - 1)
    else:
        start = round(float(torch.randn(())) * steps / 10 + steps * 42 / 50)
    return draft(denoise, chain, noise, last_steps=steps - min(max(start, 0), steps - 1))


def drtune(
    denoise: Denoise, chain: Chain, noise: Tensor, *, trained_steps: int = 2, early_stop: float = 0.25
) -> Tensor:
    """`trained_steps` evenly spread steps from a random start; the chain ends early at random.

    Args:
        early_stop: share of the chain, at its end, within which it may stop and predict the clean latents from there.
    """
    steps = len(chain)
    stop = _integer(steps - 1 - min(steps - 1, round(early_stop * steps)), steps - 1)
    trained = min(trained_steps, stop + 1)
    stride = (stop + 1) // trained
    start = _integer(0, stop - (trained - 1) * stride)
    chosen = {start + place * stride for place in range(trained)}
    latents = noise
    for index in range(stop + 1):
        if index in chosen:
            answer = chain.ask(denoise, latents.detach(), index)
        else:
            with torch.no_grad():
                answer = chain.ask(denoise, latents, index)
        if index == stop:
            break
        latents = chain.step(answer, index, latents)
    return chain.clean(answer, stop, latents)


GradientName = Literal["refl", "draft", "draft_lv", "alignprop", "drtune"]
RankName = Literal["drpo", "dpo", "winners", "losers"]


class AlgorithmConfig(BaseModel):
    """How a reward reaches the model. The first five need its gradient; the next four only what is better than what; `mse` is
    plain training without a reward, to compare with."""

    model_config = ConfigDict(extra="forbid")

    name: GradientName | RankName | Literal["mse"] = "draft"
    steps: int = Field(20, ge=1, description="of sampling")
    window: float = Field(0.25, gt=0, le=1, description="refl: the last share of the steps, one of which is trained")
    last_steps: int = Field(1, ge=1, description="draft: K")
    copies: int = Field(2, ge=1, description="draft_lv: further noisings of each result")
    truncation: Truncation = Field("uniform", description="alignprop: how K is drawn")
    trained_steps: int = Field(2, ge=1, description="drtune: how many steps have gradients")
    early_stop: float = Field(
        0.25, ge=0, lt=1, description="drtune: the last share of steps, in which sampling may end"
    )
    candidates: int = Field(8, ge=2, description="drpo, dpo, winners, losers: pictures per condition that are ranked")
    chosen: int = Field(2, ge=1, description="drpo: how many of the best and of the worst pull and push")
    beta: float = Field(2000.0, gt=0, description="dpo: how dear it is to leave the base")

    @property
    def needs_gradient(self) -> bool:
        """Whether the reward must be differentiable."""
        return self.name in GRADIENT

    @property
    def ranks(self) -> bool:
        """Whether candidates are made and ranked."""
        return self.name in ("drpo", "dpo", "winners", "losers")

    def latents(self, denoise: Denoise, chain: Chain, noise: Tensor) -> Tensor:
        """Clean latents with gradients; `draft_lv` returns several rows for each of the noise's."""
        arguments, function = GRADIENT[self.name]
        return function(denoise, chain, noise, **{name: getattr(self, name) for name in arguments})


# name -> the settings it reads, and the function.
GRADIENT: dict[str, tuple[tuple[str, ...], Callable[..., Tensor]]] = {
    "refl": (("window",), refl),
    "draft": (("last_steps",), draft),
    "draft_lv": (("copies",), draft_lv),
    "alignprop": (("truncation",), alignprop),
    "drtune": (("trained_steps", "early_stop"), drtune),
}


def _integer(low: int, high: int) -> int:
    """At random, both ends included."""
    return int(torch.randint(low, high + 1, ()))
