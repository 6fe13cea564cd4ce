"""The only place that opens a weights file: safetensors, pickles and ONNX in, safetensors out.

A pickle can run any code when it is opened, so pickles pass through torch's restricted unpickler only, which knows
tensors and plain containers and, where weights are read, the options (`argparse.Namespace`) that some authors saved
beside them, and nothing else. Whatever comes out is finite: a NaN in the weights turns up here,
with the tensor's name, and not as a black picture an hour later.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from idgen._formats import (
    OnnxGraph,
    OnnxNode,
    broken,
    check_file,
    pickled_tensors,
    read_onnx,
    read_pickle,
    read_safetensors,
)
from idgen.errors import IdgenError
from idgen.families import require_family, text_width
from idgen.files import atomic_write

__all__ = [
    "OnnxGraph",
    "OnnxNode",
    "load_metadata",
    "load_onnx",
    "load_strict",
    "load_training_state",
    "load_weights",
    "save_training_state",
    "save_weights",
    "sha256",
    "weights_files",
]

SAFETENSORS_SUFFIXES = (".safetensors",)
PICKLE_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt")
ONNX_SUFFIXES = (".onnx",)
INDEX = re.compile(r"\.(safetensors|bin)\.index(\.[\w-]+)?\.json$")
SHARD = re.compile(r"-\d{5}-of-(?P<count>\d{5})\.(safetensors|bin)$")


def load_weights(
    path: str | os.PathLike[str], *, allow_non_finite: bool = False, allow_empty: bool = False
) -> dict[str, torch.Tensor]:
    """Every tensor of a weights file by name, on the CPU, in the dtype it was stored in.

    Nested dicts become dotted names (`{"image_proj": {"w": t}}` -> `image_proj.w`); a container such as
    `{"state_dict": ..., "epoch": 3}` is unwrapped, and a tensor beside it (e4e's `latent_avg`) keeps its name.
    For `.onnx` the initialisers are returned (`load_onnx` has the graph); for the index of a model in shards, all of theirs.

    Args:
        path: a `.safetensors`, `.bin`, `.pth`, `.pt`, `.ckpt`, `.onnx` or `.safetensors.index.json` file.
        allow_non_finite: for formats in which an infinity is meant (a stored attention mask).
        allow_empty: for a file whose header says all.

    Raises:
        IdgenError: the file is missing, empty, truncated, not what its name says, would run code when opened, or holds a
            value that is not finite; an index and its shards do not agree.
    """
    path = _existing_file(path)
    if INDEX.search(path.name):
        return _load_shards(path, allow_non_finite)
    if path.suffix in SAFETENSORS_SUFFIXES:
        tensors = read_safetensors(path)
    elif path.suffix in PICKLE_SUFFIXES:
        tensors = pickled_tensors(path)
    elif path.suffix in ONNX_SUFFIXES:
        tensors = read_onnx(path).tensors
    else:
        known = ", ".join(SAFETENSORS_SUFFIXES + PICKLE_SUFFIXES + ONNX_SUFFIXES + (".safetensors.index.json",))
        raise IdgenError(f"{path}: unknown kind of weights file {path.suffix!r}: use one of {known}")
    if not tensors and not allow_empty:
        raise IdgenError(f"{path} holds no tensors: is it a weights file?")
    if not allow_non_finite:
        _refuse_non_finite(tensors, path)
    return tensors


def weights_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that hold the tensors: the file itself, or the shards that an index names, which lie beside it.

    Raises:
        IdgenError: the file is missing, or an index that names no files, or files elsewhere.
    """
    path = _existing_file(path)
    if not INDEX.search(path.name):
        return [path]
    names = set(_weight_map(path).values())
    elsewhere = sorted(name for name in names if Path(name).name != name)
    if elsewhere:
        raise IdgenError(f"{path} names {elsewhere[0]!r}, a file outside its own folder")
    return [path.with_name(name) for name in sorted(names)]


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The header metadata of a safetensors file (empty when it has none), without reading its tensors."""
    path = _existing_file(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise broken(path, "safetensors", error) from error


def save_weights(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write `tensors` as safetensors, whole or not at all.

    Args:
        path: ends in `.safetensors`; an existing file is replaced.
        metadata: goes into the header; values that are not strings are written as JSON.

    Raises:
        IdgenError: another suffix, a folder that can not be written to, or a value that is not finite.
    """
    path = Path(path)
    if path.suffix not in SAFETENSORS_SUFFIXES:
        raise IdgenError(f"{path}: weights are written as safetensors: let the name end in .safetensors")
    _refuse_non_finite(tensors, path)
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    header = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    # Tied or sliced tensors share storage, which safetensors refuses: each gets its own.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        try:
            save_file(own, temporary, metadata=header)
        except SafetensorError as error:  # a full disk
            raise OSError(str(error)) from error


def load_strict(module: torch.nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Load `state` into `module`; every key must be there, be known and have the right shape.

    Args:
        what: names the weights in the error, for example `"IResNet-50 from backbone.pth"`.

    Raises:
        IdgenError: they were made for another base model; or lists the first ten missing, unexpected and misshapen keys,
            and how many there are.
    """
    own = module.state_dict()
    width = text_width(own)
    if width is not None:
        require_family(state, width, what)
    # A step counter that BatchNorm keeps for training: older files and ONNX exports lack it, and no output depends on it.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    misshapen = [
        f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} {kind}: {', '.join(keys[:10])}{', ...' if len(keys) > 10 else ''}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if keys
    ]
    if problems:
        raise IdgenError(f"{what}: these weights do not fit the model; {'; '.join(problems)}")
    module.load_state_dict(dict(state), strict=False)


def save_training_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a training's state (nested dicts and lists of tensors and numbers), whole or not at all.

    Raises:
        IdgenError: the folder can not be written to, or the disk is full.
    """
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:
            # torch reports a write that failed as a position that is not what it should be.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def load_training_state(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read what `save_training_state` wrote, through torch's restricted unpickler.

    Raises:
        IdgenError: the file is missing, damaged, or holds more than tensors and plain containers.
    """
    return read_pickle(_existing_file(path), device)


def sha256(path: str | os.PathLike[str]) -> str:
    """The file's SHA-256 as 64 hexadecimal characters; of an index, that of its shards one after the other."""
    digest = hashlib.sha256()
    for one in weights_files(path):
        with open(_existing_file(one), "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def load_onnx(path: str | os.PathLike[str]) -> OnnxGraph:
    """Read an ONNX file's graph and constants; nothing in it is executed.

    Raises:
        IdgenError: the file is missing, truncated or not ONNX.
    """
    return read_onnx(_existing_file(path))


def _existing_file(path: str | os.PathLike[str]) -> Path:
    path = Path(path).expanduser()
    check_file(path)
    return path


def _weight_map(index: Path) -> dict[str, str]:
    """By tensor, the shard that it lies in."""
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IdgenError(f"{index} is not an index of weight files: it has no weight_map; fetch it again") from error
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) and name for name in named.values()):
        raise IdgenError(f"{index} is not an index of weight files: its weight_map names none; fetch it again")
    return named


def _load_shards(index: Path, allow_non_finite: bool) -> dict[str, torch.Tensor]:
    """All or nothing: every tensor of the index is in the shard that it names, and nothing else is in any."""
    named = _weight_map(index)
    state: dict[str, torch.Tensor] = {}
    shards = [_existing_file(shard) for shard in weights_files(index)]  # before any is read
    for shard in shards:
        if INDEX.search(shard.name):
            raise IdgenError(f"{index} names {shard.name!r}, which is no file of weights")
        tensors = load_weights(shard, allow_non_finite=allow_non_finite)
        expected = {key for key, name in named.items() if name == shard.name}
        odd = sorted(expected ^ tensors.keys())
        if odd:
            what = "lacks" if odd[0] in expected else "also holds"
            raise IdgenError(f"{shard} {what} {odd[0]!r}, against its index ({len(odd)} such): fetch the files again")
        state.update(tensors)
    return state


def _refuse_non_finite(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        try:
            # float8 has no isfinite kernel
            values = tensor.float() if tensor.element_size() == 1 else tensor
        except NotImplementedError:  # packed 4-bit floats
            kind = str(tensor.dtype).removeprefix("torch.")
            raise IdgenError(
                f"{path}: tensor {name!r} is {kind}, which can not be checked: use float8 or wider"
            ) from None
        if not torch.isfinite(values).all():
            raise IdgenError(f"{path}: tensor {name!r} holds NaN or infinity: these weights are broken")
