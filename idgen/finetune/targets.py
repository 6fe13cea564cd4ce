"""Which layers are finetuned, and whether a kind of finetuning fits them."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence

from torch import nn

from idgen.errors import IdgenError
from idgen.finetune.config import FinetuneConfig
from idgen.finetune.places import Place, places


def find_targets(models: Mapping[str, nn.Module], config: FinetuneConfig) -> dict[str, list[str]]:
    """Names of the layers that `config.targets` means, by component.

    Raises:
        IdgenError: an ending of a layer's name that no layer has, or a component without any.
    """
    names = {component: [place.name for place in places(model)] for component, model in models.items()}
    if not isinstance(config.targets, str):
        everything = [name for layers in names.values() for name in layers]
        for ending in config.targets:
            if not any(_ends(name, ending) for name in everything):
                endings = sorted({name.rsplit(".", 1)[-1] for name in everything if not name[-1].isdigit()})
                near = difflib.get_close_matches(ending, endings, 1, 0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"layers end in {', '.join(endings)}"
                raise IdgenError(f"no linear layer or convolution is named {ending!r}: {hint}")
    found = {
        component: [name for name in layers if any(_ends(name, ending) for ending in config.endings)]
        for component, layers in names.items()
    }
    for component, layers in found.items():
        if not layers:
            raise IdgenError(
                f"none of the targets ({', '.join(config.endings)}) is in {component}: leave it out of modules"
            )
    return found


def name_targets(models: Mapping[str, nn.Module], layers: Mapping[str, Sequence[str]]) -> list[str]:
    """The shortest ends of names that mean these layers of the models and no others; whole names where there are none."""
    wanted = {component: set(names) for component, names in layers.items()}
    endings = sorted({_ending(name) for names in wanted.values() for name in names})
    for component, model in models.items():
        meant = {place.name for place in places(model) if any(_ends(place.name, ending) for ending in endings)}
        if meant != wanted[component]:
            return sorted(set().union(*wanted.values()))
    return endings


def check_fit(component: str, chosen: Sequence[Place], config: FinetuneConfig) -> None:
    """Raise IdgenError where the kind can not change one of the layers, before anything is changed."""
    if config.kind == "boft" and config.butterfly > 1:
        _require_butterflies(config.butterfly)
    for place in chosen:
        name, layer = f"{component}.{place.name}", place.layer
        if isinstance(layer, nn.Conv2d):
            if layer.groups > 1:
                raise IdgenError(
                    f"{name} is a grouped convolution, which {config.kind} can not change: leave it out of targets"
                )
            if config.kind == "oft" and layer.kernel_size != (1, 1):
                # It folds overlapping patches without dividing by their number: no identity at the start.
                raise IdgenError(
                    f"{name} is a convolution of {layer.kernel_size[0]} x {layer.kernel_size[1]}, which peft's OFT computes"
                    " wrongly: use boft, or leave it out of targets"
                )
            features = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
        else:
            features = layer.in_features
        if config.kind in ("oft", "boft") and features % config.block_size:
            fitting = [size for size in (4, 8, 16, 32, 64) if features % size == 0]
            raise IdgenError(
                f"{name} has {features} features, which blocks of {config.block_size} do not divide: set block_size to"
                f" {' or '.join(map(str, fitting)) if fitting else f'a divisor of {features}'}"
            )


def _require_butterflies(factors: int) -> None:
    from peft.tuners.boft.layer import get_fbd_cuda

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it can not be built is said below, in one line
        built = get_fbd_cuda()
    if not built:
        raise IdgenError(
            f"butterfly is {factors}: peft's CUDA extension for it can not be built here; set butterfly to 1"
        )


def _ending(name: str) -> str:
    """The last word of a name, with the numbers that follow it: `to_out.0`."""
    parts = name.split(".")
    words = [index for index, part in enumerate(parts) if not part.isdigit()]
    return ".".join(parts[words[-1] :])


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")
