"""Weights of low-rank changes of attention projections (LoRA, arXiv 2106.09685), and the files that hold them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from torch import Tensor, nn

from idgen.adapters.injections.parts import Projection
from idgen.adapters.injections.tokens import rename
from idgen.adapters.layers import AttentionLayer
from idgen.errors import IdgenError

PROJECTIONS: tuple[Projection, ...] = ("q", "k", "v", "out")
TARGETS = tuple(f"{kind}.{name}" for kind in ("attn1", "attn2") for name in PROJECTIONS)
ENDS = {"down": "lora_A.weight", "up": "lora_B.weight"}  # peft's names


class LowRank(nn.Module):
    """Low-rank changes of one attention layer's projections.

    Args:
        projections: which of them.
    """

    def __init__(self, layer: AttentionLayer, rank: int, projections: Sequence[Projection] = PROJECTIONS) -> None:
        super().__init__()
        widths = {"q": layer.hidden, "k": layer.context, "v": layer.context, "out": layer.hidden}
        self.down: Any = nn.ModuleDict({name: nn.Linear(widths[name], rank, bias=False) for name in projections})
        self.up: Any = nn.ModuleDict({name: nn.Linear(rank, layer.hidden, bias=False) for name in projections})
        for module in self.up.values():
            nn.init.zeros_(cast(nn.Linear, module).weight)  # a fresh adapter begins as no change

    def weights(self) -> dict[Projection, tuple[Tensor, Tensor]]:
        """By projection: (rank, in) and (out, rank)."""
        return {name: (self.down[name].weight, self.up[name].weight) for name in self.down}


def projections(layer: AttentionLayer, targets: Sequence[str]) -> list[Projection]:
    """Those of a layer that are among `targets` (`"attn1.q"`)."""
    kind = layer.name.rpartition(".")[2]
    return [name for name in PROJECTIONS if f"{kind}.{name}" in targets]


def read_lora(
    tensors: Mapping[str, Tensor], layers: Sequence[AttentionLayer], what: str
) -> tuple[int, tuple[str, ...], dict[str, Tensor]]:
    """A LoRA of a UNet's attentions, in any of the namings that diffusers wrote over the years -> the weights of `LowRank`s.

    Those files hold no alpha: nothing is scaled.

    Args:
        what: names the weights in the error.

    Returns:
        The rank; the targets, such as `"attn1.q"`, which every layer has; weights as `"{layer.index}.down.q.weight"`.

    Raises:
        IdgenError: no such LoRA, one that changes other modules too, or a layer without what the others have.
    """
    named = convert_unet_state_dict_to_peft({key.removeprefix("unet."): value for key, value in tensors.items()})
    matches = (re.fullmatch(r".*\.(attn[12]\.to_\w+)(\.0)?\.lora_A\.weight", key) for key in named)
    present = {match[1] for match in matches if match}
    targets = tuple(target for target in TARGETS if target.replace(".", ".to_") in present)
    if not targets:
        raise IdgenError(
            f"{what} is no LoRA of a UNet's attentions: expected keys such as ...attn1.to_q.lora.down.weight"
        )
    names = {
        f"{layer.name}.to_{name}{'.0' * (name == 'out')}.{published}": f"{layer.index}.{end}.{name}.weight"
        for layer in layers
        for name in projections(layer, targets)
        for end, published in ENDS.items()
    }
    state = rename(named, names, what)
    return len(next(value for key, value in state.items() if ".down." in key)), targets, state
