"""What a user may pass as identity -> the rows that an adapter takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from idgen.adapters.embeddings import require_recogniser
from idgen.errors import IdgenError
from idgen.identity import Identity, require_same_recogniser

IdentityLike = Identity | torch.Tensor | Sequence[Identity]


def unit_embeddings(identity: IdentityLike, *, recogniser: str, dim: int) -> torch.Tensor:
    """One unit-length row per person: (people, dim) float32.

    Args:
        identity: one person as `Identity` (its references are pooled), several people as a list of them, or
            embeddings (people, dim), raw or unit, made by `recogniser`.
        recogniser: the recogniser that the weights were trained with; others have unrelated embedding spaces.
        dim: length of its embeddings.
    Raises:
        IdgenError: another recogniser, another length, a value that is not finite, a zero vector, nobody at all.
    """
    if isinstance(identity, torch.Tensor):
        rows = identity.detach().float()
        rows = rows[None] if rows.ndim == 1 else rows
    else:
        people: list[Any] = list(identity) if isinstance(identity, (list, tuple)) else [identity]
        if not people:
            raise IdgenError("no identity given: pass an Identity, a list of them, or embeddings (people, dim)")
        pooled = [_pool(person, recogniser) for person in people]
        require_same_recogniser(people)
        rows = torch.stack(pooled)
    if rows.ndim != 2 or rows.shape[-1] != dim or not len(rows):
        raise IdgenError(
            f"embeddings have the shape {tuple(rows.shape)}, expected (people, {dim}) as made by {recogniser!r}"
        )
    if not rows.isfinite().all():
        raise IdgenError("an embedding holds NaN or infinity: make the identity again with `idgen embed`")
    length = rows.norm(dim=-1, keepdim=True)
    if (length == 0).any():
        raise IdgenError("an embedding is all zeros: make the identity again with `idgen embed`")
    return rows / length


def _pool(person: Any, recogniser: str) -> torch.Tensor:
    """(dim,): the direction between the references, each counting the same: a sharp photo does not outweigh the others."""
    if not isinstance(person, Identity):
        raise IdgenError(f"an identity is an Identity or embeddings as a tensor, not {type(person).__name__}")
    require_recogniser(person, recogniser)
    return person.mean(unit=True)
