"""Whether two networks are the same, told by their weights and not by their names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from idgen.faces import FaceEncoder


def module_fingerprint(module: torch.nn.Module) -> str:
    """SHA-256 over the names, shapes and float32 values of a module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def recogniser_fingerprint(encoder: FaceEncoder) -> str:
    """Of the recogniser alone: equal for two encoders whose embeddings are the same, whatever they are called."""
    return _fingerprint(encoder._network)


def encoder_fingerprint(encoder: FaceEncoder) -> str:
    """Of recogniser and detector: equal when all that is read off a picture is the same."""
    return hashlib.sha256(f"{recogniser_fingerprint(encoder)}{_fingerprint(encoder._detector)}".encode()).hexdigest()


def folder_fingerprint(folder: Path) -> str:
    """Of names, sizes and times of the files below a folder: changes when weights in it are written anew."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def weights_fingerprint(path: Path) -> str:
    """Of a folder with weights, or of a file by its content."""
    from idgen.checkpoint import sha256

    return folder_fingerprint(path) if path.is_dir() else sha256(path)


def short(value: str | torch.nn.Module) -> str:
    """Sixteen digits of a fingerprint, for names of files."""
    return (module_fingerprint(value) if isinstance(value, torch.nn.Module) else value)[:16]


def _fingerprint(part: Any) -> str:
    from idgen.checkpoint import sha256

    module = part if isinstance(part, torch.nn.Module) else getattr(part, "module", None)
    if isinstance(module, torch.nn.Module):
        return module_fingerprint(module)
    path = getattr(part, "path", None) or getattr(getattr(part, "model", None), "model_file", None)
    if path is not None:
        return sha256(Path(path))
    # A recogniser of the user's own: known by its class and its plain attributes.
    state = {name: repr(value) for name, value in sorted(vars(part).items())} if hasattr(part, "__dict__") else {}
    return hashlib.sha256(f"{type(part).__qualname__}{getattr(part, '__qualname__', '')}{state}".encode()).hexdigest()
