"""Every method that idgen knows, by name.

A method registers by one line in `FOLDERS`; its folder's `__init__` holds a `METHOD` that says the rest. Nothing is
imported before it is asked for.
"""

from __future__ import annotations

import difflib
import importlib

from idgen.adapters.base import Adapter
from idgen.adapters.methods import Method
from idgen.errors import IdgenError

FOLDERS: dict[str, str] = {
    "arc2face": "idgen.adapters.arc2face",
    "arc2face_expression": "idgen.adapters.arc2face.expression",
    "arc2face_reference": "idgen.adapters.arc2face.reference",
    "cachekv": "idgen.adapters.cachekv",
    "fact": "idgen.adapters.fact",
    "instantid": "idgen.adapters.instantid",
    "ip_faceid": "idgen.adapters.ip_faceid",
    "pulid": "idgen.adapters.pulid",
    "pva": "idgen.adapters.pva",
    "wplus": "idgen.adapters.wplus",
}


def methods() -> list[str]:
    """The names of all methods."""
    return list(FOLDERS)


def method(name: str) -> Method:
    """A method by name.

    Raises:
        IdgenError: unknown; says the nearest name.
    """
    if name not in FOLDERS:
        near = difflib.get_close_matches(name, FOLDERS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(FOLDERS)}"
        raise IdgenError(f"no method {name!r}: {hint}")
    return importlib.import_module(FOLDERS[name]).METHOD


def adapter_class(name: str) -> type[Adapter]:
    """The adapter class of a method.

    Raises:
        IdgenError: unknown, or the method is a whole model and no adapter.
    """
    found = method(name).adapter
    if found is None:
        raise IdgenError(f"{name} is a model of its own and no adapter: use its pipeline")
    return found
