"""What idgen knows of a method beside its code; docs/methods.md is made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from idgen.adapters.base import Adapter


@dataclass(frozen=True)
class Method:
    """One method, as its folder's `METHOD`.

    Attributes:
        name: as registered.
        title: as people call it.
        bases: Stable Diffusion families with published weights.
        recogniser: whose embeddings, or what else it takes.
        norm: raw or unit embeddings, or None where it takes something else.
        injections: the ways into the UNet.
        files: published files.
        verified: what is compared with the original.
        licence: of the weights, and where that was read.
        adapter: the class behind the contract; None where the method is a whole model (Arc2Face).
        paper: where it was published.
    """

    name: str
    title: str
    bases: tuple[str, ...]
    recogniser: str
    norm: Literal["raw", "unit"] | None
    injections: tuple[str, ...]
    files: str
    verified: str
    licence: str
    adapter: type[Adapter] | None
    paper: str
