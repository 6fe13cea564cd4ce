"""Reading the files in which weights come: checks on the file itself, safetensors, pickles, ONNX.

Only `idgen.checkpoint` calls this. Whatever a file holds, reading it ends in its content or in an IdgenError: nothing in
it is executed, and an error half-way through leaves nothing behind.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import pickletools
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from idgen.errors import IdgenError

# Under these keys training code puts the weights when it saves other things (epoch, optimiser) beside them.
CONTAINERS = ("state_dict", "model_state_dict", "model", "params_ema", "params")

# pSp and e4e save the options of their training, a Namespace of plain values, beside the weights.
HARMLESS = (argparse.Namespace,)
# torch's allow-list belongs to the process: two threads that change it at once would leave it changed.
_ALLOWING = threading.Lock()

# Weights files nest their dicts two or three deep.
DEEPEST = 32


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


def check_file(path: Path) -> None:
    """Refuse what is no weights file at all: missing, a folder, empty, or what a download that went wrong leaves."""
    if path.is_dir():
        raise IdgenError(f"{path} is a folder: name the weights file in it")
    if path.exists() and not path.is_file():
        raise IdgenError(f"{path} is a device or a pipe: name a weights file")
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


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. The format's own library checks header, offsets and length."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise broken(path, "safetensors", error) from error


def read_pickle(path: Path, device: str | torch.device = "cpu", allowed: Sequence[type] = ()) -> Any:
    """What torch's restricted unpickler makes of a file; `allowed` are classes it may meet besides its own."""
    try:
        with _ALLOWING, torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # unusual pickle protocols: what matters is an error anyway
            return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged file makes an unpickler fail in any way at all
        if _names_code(path, error):
            raise IdgenError(
                f"{path} holds more than tensors and opening it would run code: idgen never does that;"
                " ask its author for a safetensors file"
            ) from error
        raise broken(path, "PyTorch", error) from error


def pickled_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a pickle by dotted name; its numbers, texts and options (an epoch, a Namespace) are left out."""
    tensors: dict[str, torch.Tensor] = {}
    size = path.stat().st_size
    for name, tensor in _walk(read_pickle(path, allowed=HARMLESS), path):
        if name in tensors:
            raise IdgenError(f"{path} holds two tensors of the name {name!r}: ask its author for a safetensors file")
        if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
            raise IdgenError(f"{path}: tensor {name!r} is not a plain tensor: ask its author for a safetensors file")
        # One stored number can pose as any number of them (stride 0), and would fill the memory when it is first used.
        if tensor.nbytes > size:
            raise IdgenError(f"{path}: tensor {name!r} claims to be larger than the file: these weights are broken")
        tensors[name] = tensor.detach()
    return tensors


def read_onnx(path: Path) -> OnnxGraph:
    """An ONNX file's graph and constants; nothing in it is executed."""
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
        raise broken(path, "ONNX", error) from error
    if not nodes:
        raise IdgenError(f"{path} is not an ONNX model, or is damaged: its graph is empty; fetch it again")
    names = tuple(item.name for item in graph.input if item.name not in tensors)
    return OnnxGraph(tuple(nodes), tensors, names, tuple(item.name for item in graph.output))


def broken(path: Path, kind: str, error: Exception) -> IdgenError:
    """The error that a damaged file is reported by."""
    said = str(error).rpartition("WeightsUnpickler error:")[2]  # torch puts advice for programmers around it
    said = said.partition("Check the documentation")[0]
    reason = " ".join(said.split())[:120] or type(error).__name__
    return IdgenError(f"{path} is truncated, damaged or not a {kind} file ({reason}): fetch it again")


def _names_code(path: Path, error: Exception) -> bool:
    """Whether torch's restricted unpickler refused a file because it names functions or classes, not because it is broken."""
    refusal = str(error)
    if "Cannot use ``weights_only=True``" in refusal:  # TorchScript, and the tar files of torch 0.1
        return True
    if not isinstance(error, pickle.UnpicklingError):
        return False
    if any(words in refusal for words in ("Unsupported global", "Unsupported class", "Trying to")):
        return True
    # Newer pickle protocols name functions in a way that torch rejects unread: look without running anything.
    with contextlib.suppress(Exception), _pickle_in(path) as file:
        opcodes = {opcode.name for opcode, _, _ in pickletools.genops(file)}
        return not opcodes.isdisjoint(("GLOBAL", "STACK_GLOBAL", "INST"))
    return False


def _pickle_in(path: Path) -> IO[bytes]:
    """The pickle that a file is, or that lies in its zip archive."""
    if not zipfile.is_zipfile(path):
        return path.open("rb")
    with zipfile.ZipFile(path) as archive:
        return io.BytesIO(archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl"))))


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
