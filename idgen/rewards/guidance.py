"""Contrastive preference guidance: at every step, away from what the worse pictures taught and towards what the better did.

Two low-rank adapters were trained plainly, one on what a reward liked best and one on what it liked least; neither ever saw the
reward's gradient. The answer is `base + weight * (positive - negative)` (arXiv 2602.18799; facts from
github.com/UGVly/PreferenceGuidanceDiffusion), ahead of classifier-free guidance and thus on both its halves.

    load_adapter("winners/adapter.safetensors", pipe.unet, "winners")
    load_adapter("losers/adapter.safetensors", pipe.unet, "losers")
    with ContrastiveGuidance(pipe.unet, "winners", "losers", weight=2.0):
        pipe(identity)

To first order the same without further passes: `pipe.unet.set_adapters(["winners", "losers"], [2.0, -2.0])`.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor

from idgen.errors import IdgenError
from idgen.finetune import activate, active_adapters


class ContrastiveGuidance:
    """Makes a UNet answer in three passes. Other adapters that are active stay so in all of them.

    Like peft's switches it acts on the UNet, not on a call: do not share the UNet between threads meanwhile.

    Args:
        unet: with both adapters: `idgen.finetune.load_adapter`, or as diffusers loads LoRAs.
        positive, negative: their names.
        weight: 0 is the UNet as it would be without them, in one pass.

    Raises:
        IdgenError: an adapter is not there.
    """

    def __init__(self, unet: Any, positive: str, negative: str, weight: float = 1.0) -> None:
        known = list(getattr(unet, "peft_config", {}))
        for name in (positive, negative):
            if name not in known:
                raise IdgenError(f"the UNet has no adapter {name!r}, only {', '.join(known) or 'none'}: load it first")
        if positive == negative:
            raise IdgenError(f"{positive!r} can not guide against itself: give two adapters")
        self.unet, self.positive, self.negative, self.weight = unet, positive, negative, weight
        self._before: list[str] | None = None

    def __enter__(self) -> ContrastiveGuidance:
        self.inject()
        return self

    def __exit__(self, *problem: object) -> None:
        self.eject()

    def inject(self) -> ContrastiveGuidance:
        """Take over the UNet's answers.

        Raises:
            IdgenError: somebody else has, or this has already.
        """
        if "forward" in vars(self.unet):
            raise IdgenError("this UNet's forward is taken over already: eject what did so, or unload its hooks, first")
        self._before = active_adapters(self.unet)
        self.unet.forward = self._forward
        return self

    def eject(self) -> None:
        """Leave the UNet as it was, with the adapters active that were."""
        if self._before is not None:
            del self.unet.forward
            activate(self.unet, self._before)
            self._before = None

    def _forward(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        others = [name for name in self._before or () if name not in (self.positive, self.negative)]

        def answer(*more: str) -> Tensor:
            activate(self.unet, [*others, *more])
            return type(self.unet).forward(self.unet, *args, return_dict=False, **kwargs)[0]

        guided = answer()
        if self.weight:
            guided = guided + self.weight * (answer(self.positive) - answer(self.negative))
        if not return_dict:
            return (guided,)
        return UNet2DConditionOutput(sample=guided)
