"""Codes of W+ -> identity tokens (the checkpoint's group `w_proj`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from idgen.errors import IdgenError
from idgen.models.published import State, depth, shape

GROUPS = (4, 4, 4, 6)  # levels of the code behind each token: pose and shape first, colours and details last


class WPlusProjector(nn.Module):
    """Codes of W+ (batch, 18, 512) -> tokens (batch, 4, cross_attention_dim); one token for each group of levels.

    A code of zeros gives the tokens of nobody, which classifier-free guidance compares with: the norm's bias.

    Args:
        cross_attention_dim: the UNet's.
        groups: how many levels of the code go into each token.
        style_dim: length of a level.
    """

    def __init__(self, cross_attention_dim: int = 768, groups: Sequence[int] = GROUPS, style_dim: int = 512) -> None:
        super().__init__()
        self.groups, self.style_dim = tuple(groups), style_dim
        for index, levels in enumerate(groups):
            setattr(self, f"proj_{index}", nn.Linear(levels * style_dim, cross_attention_dim, bias=False))
        self.norm = nn.LayerNorm(cross_attention_dim)

    def forward(self, w: Tensor) -> Tensor:
        if w.shape[1:] != (sum(self.groups), self.style_dim):
            wanted = f"(batch, {sum(self.groups)}, {self.style_dim})"
            raise IdgenError(f"the W+ Adapter takes codes of the shape {wanted}, not {list(w.shape)}")
        parts = w.split(self.groups, dim=1)
        tokens = [getattr(self, f"proj_{index}")(levels.flatten(1)) for index, levels in enumerate(parts)]
        return self.norm(torch.stack(tokens, dim=1))

    @staticmethod
    def sizes(state: State, what: str, style_dim: int = 512) -> dict[str, int | tuple[int, ...]]:
        """The arguments of the `WPlusProjector` that published weights (without `w_proj.`) belong to.

        Args:
            style_dim: the one size that the weights do not tell.
            what: names the weights in the error.

        Raises:
            IdgenError: the weights are no projector's.
        """
        inputs = [shape(state, f"proj_{index}.weight", 2, what)[1] for index in range(max(1, depth(state, "proj_")))]
        if any(length % style_dim for length in inputs):
            raise IdgenError(f"{what}: projections of {inputs} values do not fit codes of {style_dim}")
        return {
            "cross_attention_dim": shape(state, "norm.weight", 1, what)[0],
            "groups": tuple(length // style_dim for length in inputs),
            "style_dim": style_dim,
        }
