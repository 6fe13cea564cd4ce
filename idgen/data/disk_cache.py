"""What was computed once, on disk under the hash of its content: it survives a kill, and any number of workers may share it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from idgen.checkpoint import load_metadata, load_weights, save_weights
from idgen.console import say
from idgen.errors import IdgenError


class DiskCache:
    """Small sets of tensors by key.

    Args:
        folder: may be shared by trainings with different settings.
        made_by: all that the content depends on beside the key: weights, sizes, versions. Another value is another cache.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, Any]) -> None:
        self.folder = folder / digest(json.dumps(made_by, sort_keys=True).encode())[:16]
        self.made, self.found = 0, 0

    def get(
        self, key: str, make: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, str]]]
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors and the notes of a key, made now if they are not there, or are damaged.

        Two workers that miss the same key both make it; each writes a file of its own and renames it, and both are right.
        """
        file = self.path(key)
        if file.exists():
            try:
                tensors, notes = load_weights(file, allow_empty=True), load_metadata(file)
                self.found += 1
                return tensors, notes
            except IdgenError as error:
                say(f"{error}; made anew")
        made, told = make()
        save_weights(file, made, dict(told))
        self.made += 1
        return dict(made), dict(told)

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self.folder / key[:2] / f"{key}.safetensors"


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
