"""Published weights -> our safetensors: the same values under flat published names, with their origin in the header."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

import torch

from idgen import hub
from idgen.checkpoint import SAFETENSORS_SUFFIXES, save_weights
from idgen.errors import IdgenError
from idgen.files import check_output
from idgen.inspection import WeightsReport, open_weights
from idgen.version import __version__

FORMAT = "idgen-weights-1"
Converter = Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]

# kind of file (idgen/signatures.py) or method -> what brings its keys up to date, or "module:attribute" of that.
CONVERTERS: dict[str, Converter | str] = {
    "arc2face-encoder": "idgen.adapters.arc2face.convert:modern_encoder_keys",
    "clip-text": "idgen.adapters.arc2face.convert:modern_encoder_keys",
    "autoencoder": "idgen.adapters.arc2face.convert:modern_attention_keys",
}


def convert_weights(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], *, method: str | None = None
) -> WeightsReport:
    """Write what a weights file holds as safetensors; it loads wherever the published file does, and runs no code.

    The header has `format`, `kind`, `method`, `base`, `version` (of idgen), `source` (its name, without the folder),
    `source_sha256` and `licence`, as far as they are known.

    Args:
        source: a weights file, or `owner/name@revision:path/in/it` on the hub.
        destination: ends in `.safetensors`; a file that is there is replaced.
        method: a method or kind of file, where the keys leave a choice.

    Returns:
        What the source is.

    Raises:
        IdgenError: the source is broken, not of that method, or no weights; the destination can not be written.
    """
    destination = Path(destination).expanduser()
    if destination.suffix not in SAFETENSORS_SUFFIXES:
        raise IdgenError(f"{destination}: weights are written as safetensors: let the name end in .safetensors")
    check_output(destination)
    path = find_weights(source)
    if destination.exists() and destination.samefile(path):
        raise IdgenError(f"{destination} is the file to read: write to another one")
    report, tensors = open_weights(path, method)
    if report.kind in ("identity", "onnx"):
        raise IdgenError(f"{path} is {report.title}: there is nothing to convert")
    converter = _converter(report)
    header = {
        "format": FORMAT,
        "kind": report.kind,
        "method": report.method,
        "base": report.family,
        "version": __version__,
        "source": path.name if path == Path(source).expanduser() else str(source),
        "source_sha256": report.sha256,
        "licence": report.licence,
    }
    known = {key: value for key, value in header.items() if value is not None}
    save_weights(destination, converter(tensors) if converter else tensors, known)
    return report


def find_weights(source: str | os.PathLike[str]) -> Path:
    """A weights file as it is, or one on the hub by `owner/name@revision:path/in/it`, from the cache or fetched.

    Raises:
        IdgenError: it is on the hub and can not be fetched.
    """
    path = Path(source).expanduser()
    on_hub = None if path.exists() else hub.split_file(str(source))
    return hub.fetch(*on_hub) if on_hub else path


def _converter(report: WeightsReport) -> Converter | None:
    found = CONVERTERS.get(report.kind) or CONVERTERS.get(report.method or "")
    if isinstance(found, str):
        module, _, attribute = found.partition(":")
        return getattr(import_module(module), attribute)
    return found
