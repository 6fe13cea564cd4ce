"""Photos of a person in, new photos of that person out.

`from idgen import Identity, FaceEncoder`; the pipelines live in `idgen.pipelines`, the trainings in `idgen.train`. Importing
this package loads neither torch nor any weights: names are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from idgen.errors import IdgenError
from idgen.version import __version__

if TYPE_CHECKING:
    from idgen.faces import FaceEncoder
    from idgen.identity import Identity

__all__ = ["FaceEncoder", "Identity", "IdgenError", "__version__"]

_LAZY = {"Identity": "idgen.identity", "FaceEncoder": "idgen.faces"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'idgen' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
