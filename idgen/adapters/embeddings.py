"""What a user may pass as identity -> (references, dim) rows per person, raw or unit as the method asks.

Published adapters differ in whether they read a recogniser's output as it comes (raw: InstantID, PuLID, PhotoMaker, PVA) or at
length 1 (unit: IP-Adapter-FaceID). The wrong one costs identity without an error, so bare tensors are refused: the type says
which they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from idgen.errors import IdgenError
from idgen.identity import Identity, recogniser_name

MAX_REFERENCES = 64  # more do not help any published method, and cost memory at every layer
UNIT_TOLERANCE = 0.01

Norm = Literal["raw", "unit"]


@dataclass(frozen=True, eq=False, repr=False)
class Embeddings:
    """One person's embeddings (references, dim) of known norm; use `RawEmbeddings` or `UnitEmbeddings`.

    Attributes:
        recogniser: who made them, as in `Identity`.

    Raises:
        IdgenError: another shape, no references, or a value that is NaN, infinite or a zero vector.
    """

    norm: ClassVar[Norm]
    vectors: Tensor
    recogniser: str

    def __post_init__(self) -> None:
        vectors = self.vectors.detach().float()
        vectors = vectors[None] if vectors.ndim == 1 else vectors
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise IdgenError(f"a person's embeddings have the shape (references, dim), not {list(self.vectors.shape)}")
        if not torch.isfinite(vectors).all() or (vectors == 0).all(1).any():
            raise IdgenError("an embedding is NaN, infinite or zero: make it again with `idgen embed`")
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "recogniser", recogniser_name(self.recogniser))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.vectors)} references, recogniser={self.recogniser!r})"


class RawEmbeddings(Embeddings):
    """As the recogniser gives them: their length carries meaning."""

    norm = "raw"


class UnitEmbeddings(Embeddings):
    """Of length 1.

    Raises:
        IdgenError: also, a vector of another length.
    """

    norm = "unit"

    def __post_init__(self) -> None:
        super().__post_init__()
        if ((self.vectors.norm(dim=-1) - 1).abs() > UNIT_TOLERANCE).any():
            raise IdgenError(
                "these embeddings are not of length 1: pass them as RawEmbeddings, or divide by their length"
            )


Person = Identity | Embeddings
People = Person | Sequence[Person]


def references(people: People, *, norm: Norm, recogniser: str, dim: int) -> list[Tensor]:
    """Each person's references: a list of (references, dim) float32, raw or unit.

    Args:
        people: one person or a list of them. An `Identity` knows both norms; `RawEmbeddings` serve a method that wants unit
            ones too, as the length can be taken away, but not the other way round.
    Raises:
        IdgenError: nobody, no or too many references, another recogniser or length, unit vectors where raw are wanted.
    """
    given: list[Any] = list(people) if isinstance(people, (list, tuple)) else [people]
    if not given:
        raise IdgenError("no identity given: pass an Identity, or a list of them")
    return [_rows(person, norm, recogniser, dim) for person in given]


def stacked(people: People, *, norm: Norm, recogniser: str, dim: int) -> Tensor:
    """(people, references, dim), for methods whose tokens grow with the references.

    Raises:
        IdgenError: as `references`; also when people of one batch have different numbers of references.
    """
    rows = references(people, norm=norm, recogniser=recogniser, dim=dim)
    counts = sorted({len(row) for row in rows})
    if len(counts) > 1:
        raise IdgenError(
            f"people of one batch need the same number of references here, got {counts[0]} to {counts[-1]}:"
            " identity.select(range(n)) takes the first n"
        )
    return torch.stack(rows)


def pooled(people: People, *, norm: Norm, recogniser: str, dim: int) -> Tensor:
    """(people, dim), the mean over each person's references; a unit mean is made of unit rows and has length 1.

    Raises:
        IdgenError: as `references`.
    """
    means = torch.stack([rows.mean(0) for rows in references(people, norm=norm, recogniser=recogniser, dim=dim)])
    return torch.nn.functional.normalize(means, dim=-1) if norm == "unit" else means


def require_recogniser(person: Person, recogniser: str) -> None:
    """
    Args:
        recogniser: the one that weights were trained with; files written by earlier versions name insightface's after its file.
    Raises:
        IdgenError: the embeddings are another's.
    """
    wanted = recogniser_name(recogniser)
    if person.recogniser == wanted:
        return
    from idgen.faces.insightface_backend import PACKS
    from idgen.faces.torch_backend import FAMILY

    encoder = f"FaceEncoder.from_pretrained({wanted!r})" if wanted in (*FAMILY, *PACKS) else "that one"
    raise IdgenError(
        f"this identity was made by the recogniser {person.recogniser!r}, these weights were trained with {wanted!r}:"
        f" embed the photos again with {encoder}"
    )


def _rows(person: Any, norm: Norm, recogniser: str, dim: int) -> Tensor:
    if isinstance(person, Tensor):
        raise IdgenError(
            "a bare tensor does not say whether its vectors are raw or of length 1: wrap it in RawEmbeddings or UnitEmbeddings"
        )
    if not isinstance(person, (Identity, Embeddings)):
        raise IdgenError(f"an identity is an Identity, RawEmbeddings or UnitEmbeddings, not {type(person).__name__}")
    require_recogniser(person, recogniser)
    if isinstance(person, Identity):
        rows = person.unit() if norm == "unit" else person.raw
    elif norm == "raw" and person.norm == "unit":
        raise IdgenError(
            "this method needs raw embeddings, as the recogniser gives them, and these have length 1: what they lost can not"
            " be restored, embed the photos again with `idgen embed`"
        )
    else:
        rows = torch.nn.functional.normalize(person.vectors, dim=-1) if norm == "unit" else person.vectors
    if rows.shape[1] != dim:
        raise IdgenError(f"embeddings of {rows.shape[1]} numbers given, {recogniser!r} makes {dim}")
    if len(rows) > MAX_REFERENCES:
        raise IdgenError(
            f"{len(rows)} references given, at most {MAX_REFERENCES} make sense: identity.select(...) picks some"
        )
    return rows
