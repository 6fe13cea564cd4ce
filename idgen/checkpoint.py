"""The only place that opens a weights file: safetensors, pickles and ONNX in, safetensors out.

A pickle can run any code when it is opened, so pickles pass through torch's restricted unpickler only, which knows
tensors and plain containers and, where weights are read, the options (`argparse.Namespace`) that some authors saved
beside them, and nothing else. Whatever comes out is finite: a NaN in the weights turns up here,
with the tensor's name, and not as a black picture an hour later.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import pickle
import pickletools
import struct
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from idgen.errors import IdgenError
from idgen.files import atomic_write

SAFETENSORS_SUFFIXES = (".safetensors",)
PICKLE_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt")
ONNX_SUFFIXES = (".onnx",)

# Under these keys training code puts the weights when it saves other things (epoch, optimiser) beside them.
CONTAINERS = ("state_dict", "model_state_dict", "model", "params_ema", "params")

# pSp and e4e save the options of their training, a Namespace of plain values, beside the weights.
HARMLESS = (argparse.Namespace,)
# torch's allow-list belongs to the process: two threads that change it at once would leave it changed.
_ALLOWING = threading.Lock()

# Weights files nest their dicts two or three deep.
DEEPEST = 32


def load_weights(path: str | os.PathLike[str], *, allow_non_finite: bool = False) -> dict[str, torch.Tensor]:
    """Every tensor of a weights file by name, on the CPU, in the dtype it was stored in.

    Nested dicts become dotted names (`{"image_proj": {"w": t}}` -> `image_proj.w`); a container such as
    `{"state_dict": ..., "epoch": 3}` is unwrapped, and a tensor beside it (e4e's `latent_avg`) keeps its name.
    For `.onnx` the initialisers are returned (`load_onnx` has the graph).

    Args:
        path: a `.safetensors`, `.bin`, `.pth`, `.pt`, `.ckpt` or `.onnx` file.
        allow_non_finite: for formats in which an infinity is meant (a stored attention mask).

    Raises:
        IdgenError: the file is missing, truncated, not what its name says, would run code when opened, or holds a
            value that is not finite.
    """
    path = _existing_file(path)
    if path.suffix in SAFETENSORS_SUFFIXES:
        tensors = _load_safetensors(path)
    elif path.suffix in PICKLE_SUFFIXES:
        tensors = _tensors_of(_load_pickle(path, allowed=HARMLESS), path)
    elif path.suffix in ONNX_SUFFIXES:
        tensors = load_onnx(path).tensors
    else:
        known = ", ".join(SAFETENSORS_SUFFIXES + PICKLE_SUFFIXES + ONNX_SUFFIXES)
        raise IdgenError(f"{path}: unknown kind of weights file {path.suffix!r}: use one of {known}")
    if not allow_non_finite:
        _refuse_non_finite(tensors, path)
    return tensors


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The header metadata of a safetensors file (empty when it has none), without reading its tensors."""
    path = _existing_file(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _broken(path, "safetensors", error) from error


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
    from safetensors.torch import save_file

    header = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    # Tied or sliced tensors share storage, which safetensors refuses: each gets its own.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(own, temporary, metadata=header)


def load_strict(module: torch.nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Load `state` into `module`; every key must be there, be known and have the right shape.

    Args:
        what: names the weights in the error, for example `"IResNet-50 from backbone.pth"`.

    Raises:
        IdgenError: lists the first ten missing, unexpected and misshapen keys, and how many there are.
    """
    own = module.state_dict()
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
    """Write a training's state (nested dicts and lists of tensors and numbers), whole or not at all."""
    with atomic_write(path) as temporary:
        torch.save(dict(state), temporary)


def load_training_state(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read what `save_training_state` wrote, through torch's restricted unpickler.

    Raises:
        IdgenError: the file is missing, damaged, or holds more than tensors and plain containers.
    """
    return _load_pickle(_existing_file(path), device)


def sha256(path: str | os.PathLike[str]) -> str:
    """The file's SHA-256 as 64 hexadecimal characters."""
    digest = hashlib.sha256()
    with open(_existing_file(path), "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class OnnxNode:
    """One operation of an ONNX graph: what it is, the names it reads and writes, its numeric attributes."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OnnxGraph:
    """An ONNX file as data: operations in execution order, constants as tensors, names of inputs and outputs."""

    nodes: tuple[OnnxNode, ...]
    tensors: dict[str, torch.Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def load_onnx(path: str | os.PathLike[str]) -> OnnxGraph:
    """Read an ONNX file's graph and constants; nothing in it is executed.

    Raises:
        IdgenError: the file is missing, truncated or not ONNX.
    """
    path = _existing_file(path)
    import onnx
    from onnx import numpy_helper

    def tensor(proto: Any) -> torch.Tensor:
        return torch.from_numpy(numpy_helper.to_array(proto).copy())

    try:
        graph = onnx.load(str(path)).graph
        tensors = {item.name: tensor(item) for item in graph.initializer}
        nodes = []
        for node in graph.node:
            values = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            if node.op_type == "Constant" and "value" in values:
                tensors[node.output[0]] = tensor(values["value"])
            else:
                nodes.append(OnnxNode(node.op_type, tuple(node.input), tuple(node.output), values))
    except Exception as error:  # protobuf, onnx's checker and numpy each raise their own kinds
        raise _broken(path, "ONNX", error) from error
    if not nodes:
        raise IdgenError(f"{path} is not an ONNX model, or is damaged: its graph is empty; fetch it again")
    names = tuple(item.name for item in graph.input if item.name not in tensors)
    return OnnxGraph(tuple(nodes), tensors, names, tuple(item.name for item in graph.output))


def _existing_file(path: str | os.PathLike[str]) -> Path:
    path = Path(path).expanduser()
    if path.is_dir():
        raise IdgenError(f"{path} is a folder: name the weights file in it")
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise IdgenError(f"no such weights file: {path}") from None
    except OSError as error:
        raise IdgenError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise IdgenError(f"{path} is empty (0 bytes): fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise IdgenError(f"{path} is a git-lfs pointer, not the weights: fetch them with `git lfs pull`")
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise IdgenError(f"{path} is a web page, not weights: the download went wrong; fetch it again")
    return path


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _broken(path, "safetensors", error) from error


def _load_pickle(path: Path, device: str | torch.device = "cpu", allowed: Sequence[type] = ()) -> Any:
    """What torch's restricted unpickler makes of a file; `allowed` are classes it may meet besides its own."""
    try:
        with _ALLOWING, torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # unusual pickle protocols: what matters is an error anyway
            return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        if _names_code(path, str(error)):
            raise IdgenError(
                f"{path} holds more than tensors and opening it would run code: idgen never does that;"
                " ask its author for a safetensors file"
            ) from error
        raise _broken(path, "PyTorch", error) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _broken(path, "PyTorch", error) from error
    except (zipfile.BadZipFile, struct.error, UnicodeDecodeError) as error:
        raise _broken(path, "PyTorch", error) from error


def _names_code(path: Path, refusal: str) -> bool:
    """Whether torch's restricted unpickler refused a file because it names functions or classes, not because it is broken."""
    if "Unsupported global" in refusal or "Unsupported class" in refusal or "Trying to" in refusal:
        return True
    # Newer pickle protocols name functions in a way that torch rejects unread: look without running anything.
    with open(path, "rb") as file, contextlib.suppress(Exception):
        if file.read(1) == pickle.PROTO:
            file.seek(0)
            return any(opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST") for opcode, _, _ in pickletools.genops(file))
    return False


def _tensors_of(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """The weights in what a pickle held, by dotted name; its numbers, texts and options (an epoch, a Namespace) are left out."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in _walk(content, path):
        if name in tensors:
            raise IdgenError(f"{path} holds two tensors of the name {name!r}: ask its author for a safetensors file")
        if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
            raise IdgenError(f"{path}: tensor {name!r} is not a plain tensor: ask its author for a safetensors file")
        # One stored number can pose as any number of them (stride 0), and would fill the memory when it is first used.
        if tensor.nbytes > path.stat().st_size:
            raise IdgenError(f"{path}: tensor {name!r} claims to be larger than the file: these weights are broken")
        tensors[name] = tensor.detach()
    if not tensors:
        raise IdgenError(f"{path} holds no tensors: is it a weights file?")
    return tensors


def _walk(content: Any, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of nested dicts. A container's own name goes, and with it the dicts beside it (an optimiser)."""
    todo: list[tuple[tuple[str, ...], Any, bool]] = [((), content, True)]
    met: set[int] = set()
    while todo:
        name, item, unwrap = todo.pop()
        if isinstance(item, torch.Tensor):
            yield ".".join(name), item
        if not isinstance(item, Mapping):
            continue
        # A hostile file nests a dict in itself, twice in each of thirty others, or thousands deep.
        if id(item) in met or len(name) > DEEPEST:
            raise IdgenError(f"{path} nests its dicts in themselves or too deep: these are no weights")
        met.add(id(item))
        container = next((key for key in CONTAINERS if isinstance(item.get(key), Mapping)), None) if unwrap else None
        for key, value in reversed(list(item.items())):
            if container is None:
                todo.append(((*name, str(key)), value, False))
            elif key == container:
                todo.append((name, value, True))
            elif isinstance(value, torch.Tensor):
                todo.append(((*name, str(key)), value, False))


def _refuse_non_finite(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        # float8 has no isfinite kernel
        values = tensor.float() if tensor.element_size() == 1 else tensor
        if not torch.isfinite(values).all():
            raise IdgenError(f"{path}: tensor {name!r} holds NaN or infinity: these weights are broken")


def _broken(path: Path, kind: str, error: Exception) -> IdgenError:
    reason = " ".join(str(error).split())[:120]
    return IdgenError(f"{path} is truncated, damaged or not a {kind} file ({reason}): fetch it again")
