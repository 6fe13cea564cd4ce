"""A dial for every kind of adapter: 0 is the base, 1 the adapter as it was trained.

LoRA, LoHa and LoKr add to the weights: the sum is scaled. OFT and BOFT rotate: the skew matrix of the Cayley transform is
scaled. HRA's reflections start in pairs that cancel each other, and two reflections are a rotation by twice the angle between
their normals: the second normal is turned towards the first. DoRA's magnitude goes to the base's as its LoRA goes to nothing.
What is not a scale but a parameter is written into the layers, and the trained values are kept aside, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from idgen.errors import IdgenError
from idgen.finetune.adapters import DIALS, activate_in, active_in, parts_of
from idgen.finetune.places import Models, adapted, holds, places, refuse_merged


@dataclass
class Dial:
    """Where an adapter of one model stands.

    Attributes:
        value: its strength.
        trained: the parameters that the strength changes, by layer and part, as they were trained; empty at strength 1.
        written: what stands in the layers in their place.
    """

    value: float = 1.0
    trained: dict[str, Tensor] = field(default_factory=dict)
    written: dict[str, Tensor] = field(default_factory=dict)


def set_strength(models: Models, name: str, value: float) -> None:
    """Set how much an adapter changes the models, from 0 (exactly the base: it is not active) to 1 (as trained) and beyond.

    Training goes on at strength 1 only. Files hold the adapter at strength 1, whatever the dial says; merging takes it as it is.

    Raises:
        IdgenError: no such adapter, a value that is no finite number, adapters that are merged, or one that was trained while
            its strength was another than 1.
    """
    if not isinstance(value, int | float) or not torch.isfinite(torch.tensor(float(value))):
        raise IdgenError(f"strength is {value!r}, expected a finite number: 0 is the base, 1 the adapter as trained")
    found = adapted(models, name)
    refuse_merged(found)
    for model in found.values():
        dials = model.__dict__.setdefault(DIALS, {})
        dials[name] = _turn(model, name, dials.get(name, Dial()), float(value))
        active = [other for other in active_in(model) if other != name]
        activate_in(model, [*active, name] if value else active)


def strength(models: Models, name: str) -> float:
    """Where the dial of an adapter stands; 1 if it was never touched."""
    values = {dial_of(model, name).value for model in adapted(models, name).values()}
    if len(values) > 1:
        raise IdgenError(f"{name!r} has different strengths in the components: set one for all of them")
    return values.pop()


def dial_of(model: Any, name: str) -> Dial:
    """The dial of an adapter of one model."""
    return getattr(model, DIALS, {}).get(name, Dial())


@torch.no_grad()
def _turn(model: Any, name: str, dial: Dial, value: float) -> Dial:
    new = Dial(value)
    for place in places(model):
        for layer in place.stack:
            if not holds(layer, name):
                continue
            parameters = {f"{place.name}.{part}": parameter for part, parameter in parts_of(layer, name)}
            for key, kept in dial.trained.items():
                if key in parameters:
                    _put_back(name, parameters[key], kept, dial.written[key])
            if hasattr(layer, "set_scale") and hasattr(layer, "scaling"):
                layer.set_scale(name, value)
            if value == 1:
                continue
            for key, parameter in parameters.items():
                change = CHANGES.get(key.removeprefix(f"{place.name}."))
                if change is not None:
                    new.trained[key] = parameter.detach().clone()
                    parameter.copy_(change(parameter, value, layer))
                    new.written[key] = parameter.detach().clone()
    return new


def _put_back(name: str, parameter: Tensor, trained: Tensor, written: Tensor) -> None:
    if not torch.equal(parameter, written.to(parameter)):
        raise IdgenError(
            f"{name!r} was trained while its strength was not 1: what it learned there has no strength; load it anew"
        )
    parameter.copy_(trained)


def _scale(parameter: Tensor, value: float, layer: Any) -> Tensor:
    return parameter * value


def _towards_one(parameter: Tensor, value: float, layer: Any) -> Tensor:
    return 1 + value * (parameter - 1)


def _towards_base_norm(parameter: Tensor, value: float, layer: Any) -> Tensor:
    """DoRA's magnitudes (out,) or (1, out, 1, 1)."""
    weight = layer.get_base_layer().weight
    base = torch.linalg.norm(weight.flatten(1), dim=1).reshape(parameter.shape).to(parameter)
    return base + value * (parameter - base)


def _turn_pairs(parameter: Tensor, value: float, layer: Any) -> Tensor:
    """HRA's normals (features, rank), in pairs of neighbours; a reflection knows no sign, so the shorter way is taken."""
    first, second = parameter.double()[:, 0::2], parameter.double()[:, 1::2]
    u, v = first / first.norm(dim=0), second / second.norm(dim=0)
    cosine = (u * v).sum(0)
    v, cosine = torch.where(cosine < 0, -v, v), cosine.abs()
    across = v - cosine * u
    sine = across.norm(dim=0)
    direction = across / sine.clamp_min(1e-12)
    angle = value * torch.atan2(sine, cosine)
    turned = (torch.cos(angle) * u + torch.sin(angle) * direction) * second.norm(dim=0)
    return torch.stack([first, turned], -1).flatten(1).to(parameter)


CHANGES: dict[str, Callable[[Tensor, float, Any], Tensor]] = {
    "oft_R.weight": _scale,
    "boft_R": _scale,
    "boft_s": _towards_one,
    "hra_u": _turn_pairs,
    "lora_magnitude_vector.weight": _towards_base_norm,
}
