"""How identities reach a diffusion model: one folder per method, over a few shared injections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idgen.adapters.loading import load_adapter

__all__ = ["load_adapter"]


def __getattr__(name: str) -> Any:
    if name == "load_adapter":
        from idgen.adapters.loading import load_adapter

        return load_adapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
