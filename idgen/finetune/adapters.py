"""Adapters into models and out of them again, beside others that stay.

peft makes the layers. What is added here: an adapter of any kind sits at the bottom, next to the weights, so that it does the
same whether a LoRA was loaded before it or after it (peft's HRA would silently leave out what lies beneath it); the others stay
active; the last to leave restores the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from peft import inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraLayer
from torch import nn

from idgen.errors import IdgenError
from idgen.finetune.config import FinetuneConfig
from idgen.finetune.places import Models, Place, adapted, components, holds, places, refuse_merged
from idgen.finetune.targets import check_fit, find_targets

Parameters = dict[str, nn.Parameter]
DIALS = "_idgen_dials"  # where a model keeps what idgen.finetune.strength knows of its adapters


def add_adapter(models: Models, config: FinetuneConfig, name: str = "default") -> Parameters:
    """Put a new adapter into models. It changes nothing yet, is active beside those that were, and is all that is trained.

    Args:
        models: a pipeline, its components by name, or one UNet or text encoder; frozen by this.
        config: `modules` says which components.
        name: among the adapters of these models.

    Returns:
        Its parameters, see `adapter_parameters`.

    Raises:
        IdgenError: the name is taken, or the kind does not fit a layer. The models are as they were.
    """
    chosen = components(models, config.modules)
    return inject(chosen, config, find_targets(chosen, config), name)


def inject(
    chosen: Mapping[str, nn.Module], config: FinetuneConfig, layers: Mapping[str, Sequence[str]], name: str
) -> Parameters:
    """`add_adapter` with the names of the layers given, by component."""
    check_name(name)
    for component, model in chosen.items():
        if name in getattr(model, "peft_config", {}):
            raise IdgenError(f"{component} has an adapter {name!r} already: remove it first, or take another name")
    refuse_merged(chosen)
    for component in layers:
        check_fit(
            component, [place for place in places(chosen[component]) if place.name in set(layers[component])], config
        )
    done: dict[str, nn.Module] = {}
    try:
        for component, names in layers.items():
            done[component] = chosen[component]
            _inject(chosen[component], config.peft(component, names), set(names), name)
    except Exception:
        for model in done.values():
            _remove(model, name)
        raise
    parameters = adapter_parameters(chosen, name)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return parameters


def remove_adapter(models: Models, name: str) -> None:
    """Take an adapter out. The last one to leave restores the models: modules, state dict and output, bit for bit.

    Raises:
        IdgenError: there is none of that name, or adapters are merged into the weights.
    """
    found = adapted(models, name)
    refuse_merged(found)
    for model in found.values():
        _remove(model, name)


def active_adapters(models: Models) -> list[str]:
    """Names of the adapters that take part in the output."""
    names = {name: None for model in components(models).values() for name in active_in(model)}
    return list(names)


def activate(models: Models, names: Sequence[str]) -> None:
    """Let these adapters take part in the output and no others; which of them are trained stays as it was.

    Raises:
        IdgenError: there is none of one of the names, or adapters are merged into the weights.
    """
    for name in names:
        adapted(models, name)
    everything = components(models)
    refuse_merged(everything)
    for model in everything.values():
        activate_in(model, names)


def adapter_parameters(models: Models, name: str) -> Parameters:
    """An adapter's parameters as `component.layer.part`, in peft's names for files (`unet.(...).to_q.lora_A.weight`)."""
    found: Parameters = {}
    for component, model in adapted(models, name).items():
        for place in places(model):
            for layer in place.stack:
                found |= {f"{component}.{place.name}.{key}": value for key, value in parts_of(layer, name)}
    return found


def parts_of(layer: Any, name: str) -> Iterator[tuple[str, nn.Parameter]]:
    for attribute in layer.adapter_layer_names:
        container = getattr(layer, attribute)
        if name not in container:
            continue
        if isinstance(container[name], nn.Parameter):
            yield attribute, container[name]
        else:
            for key, parameter in container[name].named_parameters():
                yield f"{attribute}.{key}", parameter


def _inject(model: Any, config: Any, names: set[str], name: str) -> None:
    active = active_in(model)
    chosen = [place for place in places(model) if place.name in names]
    kind = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    with _trainable_as_before(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of adapters beside others, which is meant, and of rank patterns
        with _lifted(chosen, kind.tuner_layer_cls), _without_compiler(config):
            inject_adapter_in_model(config, model, name)
        model._hf_peft_config_loaded = True  # diffusers and transformers ask this before they look at adapters
        activate_in(model, [*active, name])


@contextmanager
def _lifted(chosen: Iterable[Place], kind: type) -> Iterator[None]:
    """Take off what is wrapped around the layers, down to an adapter layer of the same kind, and put it back outside."""
    lifted = []
    for place in chosen:
        stack = place.stack
        if stack and isinstance(stack[-1], kind):
            stack.pop()  # it takes up several adapters of its kind
        if stack:
            lifted.append((place, place.top, stack[-1]))
            place.put(stack[-1].base_layer)
    try:
        yield
    finally:
        for place, top, lowest in lifted:
            lowest.base_layer = place.top
            place.put(top)


@contextmanager
def _without_compiler(config: Any) -> Iterator[None]:
    """peft tries to compile BOFT's CUDA extension anew for every layer; one factor does not need it."""
    if getattr(config, "boft_n_butterfly_factor", 0) != 1:
        yield
        return
    from peft.tuners.boft import layer

    before, layer._FBD_CUDA = layer._FBD_CUDA, False
    try:
        yield
    finally:
        layer._FBD_CUDA = before


@contextmanager
def _trainable_as_before(model: nn.Module) -> Iterator[None]:
    """peft switches gradients as it switches adapters. The base is frozen; other adapters stay as they were."""
    own = {id(parameter) for place in places(model) for parameter in place.layer.parameters()}
    adapters = [parameter for place in places(model) for layer in place.stack for parameter in layer.parameters()]
    before = {id(parameter): (parameter, parameter.requires_grad) for parameter in adapters if id(parameter) not in own}
    yield
    for parameter, trained in before.values():
        parameter.requires_grad_(trained)


def active_in(model: Any) -> list[str]:
    """Names, in the order in which the adapters came."""
    working = {
        name
        for place in places(model)
        for layer in place.stack
        if not layer.disable_adapters
        for name in layer.active_adapters
        if holds(layer, name)
    }
    return [name for name in getattr(model, "peft_config", {}) if name in working]


def activate_in(model: Any, names: Sequence[str]) -> None:
    configs = getattr(model, "peft_config", {})
    # DoRA rescales what stands before it in its layer, which must be the bare weights alone.
    ordered = sorted(names, key=lambda name: not getattr(configs.get(name), "use_dora", False))
    with _trainable_as_before(model):
        for place in places(model):
            for layer in place.stack:
                layer.set_adapter(ordered)
                # An idle layer of another kind would still multiply by an identity; of LoRA it adds nothing, and a LoRA that
                # diffusers loads into the layer later must find it enabled.
                layer.enable_adapters(isinstance(layer, LoraLayer) or any(holds(layer, name) for name in ordered))


def check_name(name: str) -> None:
    """Raise IdgenError unless an adapter may be called so: torch keeps its parts under this name."""
    if not name or "." in name:
        raise IdgenError(f"an adapter can not be called {name!r}: use a name without dots")


def _remove(model: Any, name: str) -> None:
    remaining = [other for other in active_in(model) if other != name]
    with _trainable_as_before(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft would make another adapter active in the place of this one, and says so
        for place in places(model):
            above: Any = None
            for layer in place.stack:
                if holds(layer, name):
                    layer.delete_adapter(name)
                if any(len(getattr(layer, attribute)) for attribute in layer.adapter_layer_names):
                    above = layer
                elif above is None:
                    place.put(layer.base_layer)
                else:
                    above.base_layer = layer.base_layer
        getattr(model, "peft_config", {}).pop(name, None)
        getattr(model, DIALS, {}).pop(name, None)
        activate_in(model, remaining)
    if not getattr(model, "peft_config", True):
        del model.peft_config
        model._hf_peft_config_loaded = False
