"""What a UNet's self-attentions see of reference latents: one pass at time 0, kept for the calls that follow.

CacheKV (ReF-LDM, arXiv 2412.05043) and Arc2Face's reference adapter (arXiv 2510.04706) work so: the UNet itself reads the
references, and nothing is trained to describe them.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from idgen.adapters.call import Conditioning, Entry
from idgen.adapters.injections.parts import LowRankPart, Projection
from idgen.errors import IdgenError

if TYPE_CHECKING:
    from idgen.adapters.base import Adapter

ORDER = ("down_blocks", "mid_block", "up_blocks")  # in which they run


class _Heard(Exception):
    """The last layer that is listened to has spoken; the rest of the UNet need not run."""


@dataclass(frozen=True, repr=False)
class _Listener(LowRankPart):
    """Changes nothing, and keeps what the layer's keys are made of: it travels with the call, so threads do not meet."""

    heard: list[Tensor] = field(default_factory=list)
    last: bool = False

    def change(self, projection: Projection, result: Tensor, x: Tensor, scale: float | Tensor) -> Tensor:
        if projection == "k":
            self.heard.append(x)
            if self.last:
                raise _Heard
        return result


@torch.no_grad()
def read(
    unet: UNet2DConditionModel,
    adapter: Adapter,
    latents: Tensor,
    prompts: Tensor,
    layers: Iterable[str] | None = None,
    added: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """One pass over references at time 0 -> by self-attention, (references, tokens, hidden) what it attends to.

    Args:
        adapter: in the UNet; its own weights do not take part.
        latents: (references, channels, height, width), without noise.
        prompts: (references, length, dim).
        layers: names of self-attentions; all by default. The pass ends at the last of them.
        added: SDXL's `added_cond_kwargs`, one row per reference.
    """
    names = [layer.name for layer in adapter.layers if not layer.cross] if layers is None else list(layers)
    # Within a kind of blocks the published order is that in which they run.
    last = max(enumerate(names), key=lambda pair: (ORDER.index(pair[1].split(".")[0]), pair[0]))[1]
    listeners = {name: _Listener({}, last=name == last) for name in names}
    entry = Entry(adapter, {name: [one] for name, one in listeners.items()}, dict.fromkeys(listeners, 1.0))
    time = torch.zeros(len(latents), device=latents.device, dtype=torch.long)
    kwargs = Conditioning((entry,), len(latents), False).kwargs
    with suppress(_Heard):
        unet(latents, time, prompts, added_cond_kwargs=added, cross_attention_kwargs=kwargs, return_dict=False)
    return {name: one.heard[-1] for name, one in listeners.items()}


def inside(adapter: Adapter) -> Any:
    """The UNet that an adapter is in, which reads the references.

    Raises:
        IdgenError: it is in none.
    """
    if adapter.unet is None:
        raise IdgenError("the UNet itself reads the reference: inject() the adapter, then condition()")
    return adapter.unet
