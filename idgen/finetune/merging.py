"""Active adapters as a part of the weights, and back, bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.oft.layer import OFTLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from idgen.errors import IdgenError
from idgen.finetune.adapters import active_in
from idgen.finetune.places import Models, components, holds, places, refuse_merged


class Merge:
    """What `merge` changed; `undo` puts the very same values back (peft's own unmerge computes them anew and misses bits)."""

    def __init__(self) -> None:
        self._originals: list[tuple[Any, Tensor]] = []
        self._layers: list[Any] = []

    def keep(self, layer: nn.Module, stack: list[Any]) -> None:
        """Remember a layer's weight before its stack of adapters is merged."""
        self._originals.append((layer, layer.weight.detach().clone()))  # type: ignore[operator]
        self._layers += stack

    def undo(self) -> None:
        """The models as they were before; a second call does nothing."""
        for layer, weight in self._originals:
            layer.weight.data = weight.to(layer.weight)
        for adapter_layer in self._layers:
            adapter_layer.merged_adapters.clear()
        self._originals, self._layers = [], []


@torch.no_grad()
def merge(models: Models) -> Merge:
    """Work every active adapter, at its strength, into the weights: the models compute the same at the base's cost.

    Until the result's `undo()`, adapters can be neither added, removed nor changed.

    Raises:
        IdgenError: nothing is active, something is merged already, or DoRA shares a layer with a kind that rotates.
    """
    chosen = components(models)
    refuse_merged(chosen)
    if not any(active_in(model) for model in chosen.values()):
        raise IdgenError("no adapter is active: there is nothing to merge")
    for component, model in chosen.items():
        for place in places(model):
            _refuse_dora_outside(f"{component}.{place.name}", _working(place.stack))
    done = Merge()
    try:
        for model in chosen.values():
            for place in places(model):
                stack = _working(place.stack)
                if not stack:
                    continue
                done.keep(place.layer, [layer for layer, _ in stack])
                for layer, names in reversed(stack):  # from the weights outwards
                    # Of several OFT adapters, peft's forward pass turns by the first first, and its merge by the last first.
                    layer.merge(adapter_names=names[::-1] if isinstance(layer, OFTLayer) else names)
    except Exception:
        done.undo()
        raise
    return done


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A model's state dict with its active adapters in the weights and under the names it has without them; copies."""
    done = merge({"model": model}) if active_in(model) else Merge()
    wrapped = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    state = {
        plain: value.detach().clone()
        for key, value in model.state_dict().items()
        if (plain := _plain(key, wrapped)) is not None
    }
    done.undo()
    return state


def _working(stack: list[Any]) -> list[tuple[Any, list[str]]]:
    found = []
    for layer in stack:
        names = [name for name in layer.active_adapters if holds(layer, name) and not layer.disable_adapters]
        if names:
            found.append((layer, names))
    return found


def _refuse_dora_outside(name: str, stack: list[tuple[Any, list[str]]]) -> None:
    for layer, names in stack[:-1]:
        if isinstance(layer, LoraLayer) and any(adapter in layer.lora_variant for adapter in names):
            raise IdgenError(
                f"{name} has DoRA around another adapter, which peft merges otherwise than it computes: activate one of them,"
                " merge it, and train the other anew"
            )


def _plain(key: str, wrapped: set[str]) -> str | None:
    """A key without the layers of adapters; None for what is theirs."""
    parts, kept = key.split("."), []
    for index, part in enumerate(parts):
        if ".".join(parts[:index]) not in wrapped:
            kept.append(part)
        elif part != "base_layer":
            return None
    return ".".join(kept)
