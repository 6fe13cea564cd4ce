"""From a config's `architecture` to a network, for recognisers and detectors.

Builders are named, not imported: asking for one network loads no other. `register_recogniser` adds an architecture.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from idgen.checkpoint import load_strict, load_weights
from idgen.errors import IdgenError

Builder = Callable[..., nn.Module]

# architecture -> the callable that builds it, or "module:attribute" of one.
RECOGNISERS: dict[str, Builder | str] = {
    "iresnet18": "idgen.models.iresnet:iresnet18",
    "iresnet34": "idgen.models.iresnet:iresnet34",
    "iresnet50": "idgen.models.iresnet:iresnet50",
    "iresnet100": "idgen.models.iresnet:iresnet100",
    "slim_iresnet": "idgen.models.iresnet:slim_iresnet",
    "mini_recogniser": "idgen.models.mini_recogniser:MiniRecogniser",
    "judge": "idgen.models.mini_recogniser:JudgeRecogniser",
}
DETECTORS: dict[str, Builder | str] = {"mini_detector": "idgen.models.mini_detector:MiniDetector"}

# Keys of a config that say something about the weights, not about the network.
NOTES = ("architecture", "name")


def register_recogniser(architecture: str, builder: Builder | str) -> None:
    """Let configs name `architecture`; `builder` (or "module:attribute") takes the config's other keys and returns a
    network from aligned crops (B, 3, 112, 112) RGB in [-1, 1] to raw embeddings (B, d)."""
    RECOGNISERS[architecture] = builder


def build_recogniser(config: Mapping[str, Any]) -> nn.Module:
    """A recogniser with fresh weights.

    Args:
        config: `architecture`, a note `name`, and the arguments of that architecture.

    Raises:
        IdgenError: an unknown architecture, or arguments that it does not have.
    """
    return _build(RECOGNISERS, config, "recogniser")


def build_detector(config: Mapping[str, Any]) -> nn.Module:
    """A detector with fresh weights; see `build_recogniser`."""
    return _build(DETECTORS, config, "detector")


def load_recogniser(folder: Path) -> nn.Module:
    """The recogniser in a folder with config.json and model.safetensors, in eval mode on the CPU in fp32."""
    return _load(build_recogniser, folder)


def load_detector(folder: Path) -> nn.Module:
    """The detector in a folder with config.json and model.safetensors, in eval mode on the CPU in fp32."""
    return _load(build_detector, folder)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a network's folder.

    Raises:
        IdgenError: it is missing or not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IdgenError(f"{folder} has no config.json: is it the folder of a network?") from None
    except (OSError, ValueError) as error:
        raise IdgenError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise IdgenError(f"{path} is not a JSON object")
    return config


def _load(build: Callable[[Mapping[str, Any]], nn.Module], folder: Path) -> nn.Module:
    network = build(read_config(folder))
    load_strict(network, load_weights(folder / "model.safetensors"), what=str(folder))
    return network.eval()


def _build(builders: Mapping[str, Builder | str], config: Mapping[str, Any], kind: str) -> nn.Module:
    architecture = str(config.get("architecture"))
    if architecture not in builders:
        raise IdgenError(f"unknown {kind} architecture {architecture!r}: use one of {', '.join(sorted(builders))}")
    builder = builders[architecture]
    if isinstance(builder, str):
        module, _, attribute = builder.partition(":")
        builder = getattr(import_module(module), attribute)
    arguments = {key: value for key, value in config.items() if key not in NOTES}
    try:
        inspect.signature(builder).bind(**arguments)
    except TypeError as error:
        raise IdgenError(f"config of the {kind} {architecture!r}: {error}") from None
    return builder(**arguments)
