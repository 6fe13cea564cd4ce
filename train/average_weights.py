"""The running average of the trained weights, which is what is validated and kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class Average:
    """diffusers' EMAModel, also over parameters that are sharded (DTensors), which it saves and loads whole."""

    def __init__(self, trained: Sequence[nn.Parameter], decay: float) -> None:
        self.trained = list(trained)
        # One kernel for all parameters instead of one each: on a GPU the launches would take as long as the step.
        self.ema = EMAModel(
            self.trained,
            decay=decay,
            use_ema_warmup=True,
            inv_gamma=1.0,
            power=0.75,
            foreach=all(parameter.device.type == "cuda" for parameter in self.trained),
        )

    def step(self) -> None:
        self.ema.step(self.trained)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The trained weights give way to their average."""
        self.ema.store(self.trained)
        self.ema.copy_to(self.trained)
        try:
            yield
        finally:
            self.ema.restore(self.trained)

    def state_dict(self) -> dict[str, Any]:
        """Every process of a sharded training takes part."""
        return {
            "optimization_step": self.ema.optimization_step,
            "shadow_params": [_whole(value) for value in self.ema.shadow_params],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Raises:
            ValueError: the average of other weights.
        """
        stored: list[Tensor] = state["shadow_params"]
        if [value.shape for value in stored] != [value.shape for value in self.ema.shadow_params]:
            raise ValueError("the averaged weights have other shapes")
        self.ema.optimization_step = int(state["optimization_step"])
        for own, value in zip(self.ema.shadow_params, stored, strict=True):
            own.copy_(_like(own, value))


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _like(own: Tensor, value: Tensor) -> Tensor:
    if not hasattr(own, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)  # type: ignore[attr-defined]
