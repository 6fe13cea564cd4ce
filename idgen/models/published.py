"""What a published weights file says without a config: its parts, and the sizes of its networks."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from idgen.errors import IdgenError

State = Mapping[str, torch.Tensor]


def part(state: State, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix` (`"image_proj."`), under the rest of their names."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def shape(state: State, key: str, dimensions: int, what: str) -> tuple[int, ...]:
    """The shape of one tensor.

    Args:
        dimensions: how many it must have.
        what: names the weights in the error.

    Raises:
        IdgenError: it is missing, or has another number of dimensions.
    """
    if key not in state:
        raise IdgenError(f"{what}: the tensor {key!r} is missing: these are other weights, or a part of them")
    found = tuple(state[key].shape)
    if len(found) != dimensions or 0 in found:
        raise IdgenError(f"{what}: the tensor {key!r} has the shape {list(found)}, expected {dimensions} dimensions")
    return found


def depth(state: State, prefix: str) -> int:
    """How many numbered parts there are behind `prefix`: 4 for `layers.0.*` to `layers.3.*`."""
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})
