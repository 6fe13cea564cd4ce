"""Where adapters sit: the layers of a model by their plain names, whatever is wrapped around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from diffusers import DiffusionPipeline, UNet2DConditionModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from idgen.errors import IdgenError

# A pipeline, its components by name, or one of them alone (a UNet or a text encoder).
Models: TypeAlias = "DiffusionPipeline | Mapping[str, nn.Module] | nn.Module"

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Place:
    """A linear or convolutional layer and what is wrapped around it.

    Attributes:
        name: as in the model without adapters.
        parent, attribute: where the model holds it.
    """

    name: str
    parent: nn.Module
    attribute: str

    @property
    def top(self) -> Any:
        """What the model calls: the outermost adapter layer, or the layer itself."""
        return self.parent._modules[self.attribute]

    def put(self, module: nn.Module) -> None:
        """Let the model call another module in its place."""
        setattr(self.parent, self.attribute, module)

    @property
    def stack(self) -> list[Any]:
        """peft's layers around it, the outermost first."""
        found, module = [], self.top
        while isinstance(module, BaseTunerLayer):
            found.append(module)
            module = module.base_layer
        return found

    @property
    def layer(self) -> Any:
        """The linear layer or convolution at the bottom."""
        return self.top.get_base_layer() if isinstance(self.top, BaseTunerLayer) else self.top


def places(model: nn.Module, prefix: str = "") -> Iterator[Place]:
    """Every linear layer and convolution of a model, in its order, under the name it has without adapters."""
    for attribute, child in model.named_children():
        place = Place(prefix + attribute, model, attribute)
        if isinstance(place.layer, nn.Linear | nn.Conv2d):
            yield place
        elif not isinstance(child, BaseTunerLayer):
            yield from places(child, f"{prefix}{attribute}.")


def holds(layer: Any, name: str) -> bool:
    """Whether one of peft's layers has weights of this adapter."""
    return any(name in getattr(layer, attribute) for attribute in layer.adapter_layer_names)


def components(models: Models, wanted: tuple[str, ...] | None = None) -> dict[str, nn.Module]:
    """The models by their names in a pipeline.

    Args:
        wanted: names; by default the UNet and text encoders that are there.

    Raises:
        IdgenError: one of them is not there.
    """
    known: Mapping[str, Any]
    if isinstance(models, DiffusionPipeline):
        known = models.components
        names = wanted or tuple(name for name in COMPONENTS if known.get(name) is not None)
    elif isinstance(models, Mapping):
        known, names = models, wanted or tuple(models)
    else:
        known = {"unet" if isinstance(models, UNet2DConditionModel) else "text_encoder": models}
        names = wanted or tuple(known)
    for name in names:
        if not isinstance(known.get(name), nn.Module):
            there = ", ".join(key for key, value in known.items() if isinstance(value, nn.Module)) or "nothing"
            raise IdgenError(f"no component {name!r} to finetune: there is {there}")
    return {name: known[name] for name in names}


def adapted(models: Models, name: str) -> dict[str, nn.Module]:
    """The components that have an adapter of this name.

    Raises:
        IdgenError: none has; says which adapters there are.
    """
    everything = components(models)
    found = {key: model for key, model in everything.items() if name in getattr(model, "peft_config", {})}
    if not found:
        there = {other for model in everything.values() for other in getattr(model, "peft_config", {})}
        raise IdgenError(f"no adapter {name!r} here: there is {', '.join(sorted(there)) or 'none'}")
    return found


def refuse_merged(models: Mapping[str, nn.Module]) -> None:
    """Raise IdgenError where adapters are merged into the weights."""
    for component, model in models.items():
        if any(layer.merged for place in places(model) for layer in place.stack):
            raise IdgenError(f"adapters are merged into the weights of {component}: undo the merge first")
