"""Published weights -> our safetensors: the same values under flat published names, with their origin in the header."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path, PurePosixPath

import torch

from idgen import hub
from idgen.checkpoint import INDEX, ONNX_SUFFIXES, PICKLE_SUFFIXES, SAFETENSORS_SUFFIXES, save_weights, weights_files
from idgen.errors import IdgenError
from idgen.files import check_output
from idgen.headers import check_replaces
from idgen.inspection import WeightsReport, open_weights
from idgen.version import __version__

FORMAT = "idgen-weights-1"
SUFFIXES = SAFETENSORS_SUFFIXES + PICKLE_SUFFIXES + ONNX_SUFFIXES
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
        source: a weights file, the index of one in shards, a folder with such an index, or `owner/name@revision:path/in/it`
            on the hub.
        destination: ends in `.safetensors`; a file that is there is replaced, unless idgen wrote it for something else.
        method: a method or kind of file, where the keys leave a choice.

    Returns:
        What the source is.

    Raises:
        IdgenError: the source is broken, not of that method, or no weights; the destination can not be written or is not to be
            replaced.
    """
    destination = Path(destination).expanduser()
    if destination.suffix not in SAFETENSORS_SUFFIXES:
        raise IdgenError(f"{destination}: weights are written as safetensors: let the name end in .safetensors")
    check_output(destination)
    check_replaces(destination, FORMAT)
    path = find_weights(source)
    if destination.exists() and any(destination.samefile(one) for one in weights_files(path) if one.exists()):
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
    """A weights file as it is, the index of shards in a folder, or `owner/name@revision:path/in/it` on the hub, from the cache or
    fetched; of an index, with its shards.

    Raises:
        IdgenError: it is on the hub and can not be fetched, or a folder without one index of shards.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _index_in(path)
    on_hub = None if path.exists() else hub.split_file(str(source))
    if not on_hub:
        return path
    hub_id, name = on_hub
    found = hub.fetch(hub_id, name)
    for one in weights_files(found) if INDEX.search(found.name) else ():
        hub.fetch(hub_id, str(PurePosixPath(name).with_name(one.name)))
    return found


def _index_in(folder: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if INDEX.search(path.name))
    if len(found) == 1:
        return found[0]
    if found:
        raise IdgenError(
            f"{folder} is a folder with several indices ({', '.join(one.name for one in found)}): name one of them"
        )
    files = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
    some = f", such as {files[0]}" if files else ""
    raise IdgenError(f"{folder} is a folder: name the weights file in it{some}")


def _converter(report: WeightsReport) -> Converter | None:
    found = CONVERTERS.get(report.kind) or CONVERTERS.get(report.method or "")
    if isinstance(found, str):
        module, _, attribute = found.partition(":")
        return getattr(import_module(module), attribute)
    return found
