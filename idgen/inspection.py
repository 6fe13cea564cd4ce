"""What a weights file is: told from its metadata, its keys and its shapes, without building any model."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from idgen import checkpoint
from idgen.errors import IdgenError
from idgen.families import FAMILIES, family_name, text_width
from idgen.headers import IDENTITY as IDENTITY_FORMAT
from idgen.headers import MEANINGS
from idgen.signatures import IDENTITY, NAMES, ONNX, SIGNATURES, UNKNOWN, Signature, recognise, twins

OWN_FORMATS = "idgen-"


@dataclass(frozen=True)
class WeightsReport:
    """What is known of a weights file.

    Attributes:
        path: where it lies.
        kind: of which published layout it is (`"ip-adapter-faceid"`), see idgen/signatures.py; `"unknown"` of none.
        title: the same in words.
        method: the identity method it belongs to, as idgen/adapters names it, or None.
        family: the base model it was made for, in words, or None where nothing says so.
        tensors, parameters: how many tensors, and how many numbers in them.
        dtypes: numbers by dtype.
        bytes: size of the file, or of all shards that an index names.
        sha256: of the file, or of all shards one after the other.
        metadata: the header of a safetensors file.
        licence: of the weights, where it is known.
        notes: what else is worth knowing, a sentence each.
    """

    path: Path
    kind: str
    title: str
    method: str | None
    family: str | None
    tensors: int
    parameters: int
    dtypes: dict[str, int]
    bytes: int
    sha256: str
    metadata: dict[str, str]
    licence: str | None
    notes: tuple[str, ...]


def inspect_weights(path: str | os.PathLike[str]) -> WeightsReport:
    """Say what a weights file is; nothing in it is executed, and values that are not finite are refused.

    Raises:
        IdgenError: as `idgen.checkpoint.load_weights`.
    """
    return open_weights(path)[0]


def open_weights(
    path: str | os.PathLike[str], name: str | None = None
) -> tuple[WeightsReport, dict[str, torch.Tensor]]:
    """The report of a file together with its tensors.

    The constants of an ONNX recogniser come under the names that arcface_torch gives them: the exporter's are numbers.

    Args:
        name: a method or a kind that the file is known to be of, where its keys leave a choice.

    Raises:
        IdgenError: as `inspect_weights`, or the file is not of that kind.
    """
    path = Path(path).expanduser()
    onnx = path.suffix in checkpoint.ONNX_SUFFIXES
    tensors = _from_onnx(path) if onnx else checkpoint.load_weights(path)
    metadata = checkpoint.load_metadata(path) if path.suffix in checkpoint.SAFETENSORS_SUFFIXES else {}
    signature = _signature(tensors, path, metadata)
    if name is not None:
        signature = _named(name, tensors, path, signature)
    width = text_width(tensors)
    dtypes: Counter[str] = Counter()
    for tensor in tensors.values():
        dtypes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    own = metadata.get("format", "").startswith(OWN_FORMATS)
    report = WeightsReport(
        path=path,
        kind=signature.kind,
        title=signature.title,
        method=signature.method or (metadata.get("method") if own else None) or None,
        family=FAMILIES.get(width or 0) or (metadata.get("base") if own else None),
        tensors=len(tensors),
        parameters=sum(dtypes.values()),
        dtypes=dict(dtypes),
        bytes=sum(file.stat().st_size for file in checkpoint.weights_files(path)),
        sha256=checkpoint.sha256(path),
        metadata=metadata,
        licence=signature.licence or None,
        notes=tuple(_notes(signature, tensors, path, metadata, given=name is not None)),
    )
    return report, tensors


def _from_onnx(path: Path) -> dict[str, torch.Tensor]:
    from idgen.faces.onnx_import import iresnet_from_onnx

    tensors = checkpoint.load_weights(path)  # an ONNX file that is damaged is refused here
    try:
        return iresnet_from_onnx(path).state_dict()
    except IdgenError:
        return tensors


def _signature(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> Signature:
    if metadata.get("format") == IDENTITY_FORMAT:
        return IDENTITY
    if metadata.get("format", "").startswith(OWN_FORMATS):
        said = next((entry for entry in SIGNATURES if entry.kind == metadata.get("kind")), UNKNOWN)
        if said.fits(tensors):
            return said
    found = recognise(tensors, path)
    return ONNX if found is UNKNOWN and path.suffix in checkpoint.ONNX_SUFFIXES else found


def _named(name: str, tensors: Mapping[str, torch.Tensor], path: Path, found: Signature) -> Signature:
    """The entry of that name which fits; the one that was found, if it is among them."""
    if name not in NAMES:
        raise IdgenError(f"unknown method {name!r}: use one of {', '.join(NAMES)}")
    fitting = [entry for entry in SIGNATURES if name in (entry.kind, entry.method) and entry.fits(tensors)]
    if not fitting:
        raise IdgenError(f"{path} is not {name}: by its keys it is {found.title}")
    return found if found in fitting else fitting[0]


def _notes(
    signature: Signature, tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str], *, given: bool
) -> list[str]:
    notes = []
    own = metadata.get("format", "").startswith(OWN_FORMATS)
    others = [] if given or own else twins(signature, tensors)
    if others:
        names = " or ".join(entry.kind for entry in others)
        notes.append(f"told by its name and folder alone: its keys would fit {names} as well (--method says which)")
    if own and signature is not IDENTITY:
        notes.append(f"written by idgen ({metadata['format']})")
    if signature is not IDENTITY and metadata.get("format") in MEANINGS:
        notes.append(MEANINGS[metadata["format"]])
    width = text_width(tensors)
    if width is not None and width not in FAMILIES:
        notes.append(f"made for {family_name(width)}, which is none of {', '.join(FAMILIES.values())}")
    if signature.kind in ("unet", "arc2face-unet") and tensors["conv_in.weight"].shape[1] == 9:
        notes.append("takes 9 channels: an inpainting model")
    if signature.kind == "iresnet":
        depth = [
            len({key.split(".")[1] for key in tensors if key.startswith(f"layer{stage}.")}) for stage in range(1, 5)
        ]
        notes.append(f"blocks per stage: {', '.join(map(str, depth))}")
    shard = checkpoint.SHARD.search(path.name)
    if shard:
        notes.append(f"one of {int(shard['count'])} shards: their index (*.index.json) stands for all of them")
    if checkpoint.INDEX.search(path.name):
        notes.append(f"{len(checkpoint.weights_files(path))} shards")
    if path.suffix in checkpoint.ONNX_SUFFIXES and signature is not ONNX:
        notes.append("exported as ONNX; tensors are named as arcface_torch names them")
    architecture = _config_beside(path)
    if architecture:
        notes.append(f"config.json beside it says {architecture}")
    return notes


def _config_beside(path: Path) -> str | None:
    """The network that a model folder's config.json names, in diffusers', transformers' or idgen's own way."""
    try:
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        names = [config.get("_class_name"), config.get("architecture"), *config.get("architectures", [])]
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return next((name for name in names if isinstance(name, str)), None)
