"""Identity: everything known of one person, one row per reference photo."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from idgen.checkpoint import load_weights, save_weights
from idgen.errors import IdgenError
from idgen.headers import IDENTITY, require_format

# What may be known of each reference beside its embedding: shape of a row (None: any) and dtype.
FIELDS: dict[str, tuple[tuple[int | None, ...], torch.dtype]] = {
    "crops": ((None, None, 3), torch.uint8),
    "landmarks": ((5, 2), torch.float32),
    "scores": ((), torch.float32),
    "rivals": ((), torch.float32),
}

# insightface's recognisers by their files: everywhere else they have the name of the pack from which FaceEncoder loads them.
RECOGNISERS = {"w600k_r50": "buffalo_l", "w600k_mbf": "buffalo_s", "glintr100": "antelopev2", "arcface": "arc2face"}


def recogniser_name(name: str) -> str:
    """A recogniser's one name, as FaceEncoder has it: insightface's may also be called after their file (`"w600k_r50"`)."""
    return RECOGNISERS.get(name, name)


@dataclass(frozen=True, eq=False, repr=False)
class Identity:
    """One person as a recogniser sees them; rows are references, all tensors live on the CPU.

    Embeddings are biometric data: they are in no repr, log or error message.

    Attributes:
        raw: (n, d) float32, the recogniser's output as it comes, d = 512 for all ArcFace-like recognisers. Its length
            carries meaning for some adapters (InstantID, PuLID, PhotoMaker, PVA) and must be removed for others
            (Arc2Face, IP-Adapter-FaceID), which ask for `unit()`.
        recogniser: who made `raw` (`"mini"`, `"buffalo_l"`), see `recogniser_name`: vectors of two have nothing in common.
        crops: (n, 112, 112, 3) uint8 RGB, aligned faces, or None when only vectors are known.
        landmarks: (n, 5, 2) float32 pixels (x, y) in the photo: left eye as seen, right eye, nose, mouth corners; or None.
        scores: (n,) float32 in [0, 1], the detector's certainty; or None.
        rivals: (n,) float32, the area of the next face in the photo as a share of the one that was taken, where nobody said
            which is meant; 0 elsewhere; or None.

    Raises:
        IdgenError: shapes that do not fit, no references, or an embedding that is NaN, infinite or zero.
    """

    raw: torch.Tensor
    recogniser: str
    crops: torch.Tensor | None = None
    landmarks: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    rivals: torch.Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "recogniser", recogniser_name(self.recogniser))
        raw = self.raw.detach().to("cpu", torch.float32)
        if raw.ndim != 2 or 0 in raw.shape:
            raise IdgenError(f"an identity needs embeddings of shape (references, d), got {list(raw.shape)}")
        bad = (~torch.isfinite(raw).all(1) | (raw == 0).all(1)).nonzero().flatten().tolist()
        if bad:
            raise IdgenError(
                f"the embedding of reference {bad[0]} is NaN, infinite or zero: embed that photo again with {self.recogniser!r}"
            )
        object.__setattr__(self, "raw", raw)
        for name, (shape, dtype) in FIELDS.items():
            value = getattr(self, name)
            if value is None:
                continue
            fits = value.ndim == len(shape) + 1 and all(
                want in (None, got) for want, got in zip((len(raw), *shape), value.shape, strict=True)
            )
            if not fits:
                raise IdgenError(f"{name} of shape {list(value.shape)} do not fit an identity of {len(raw)} references")
            object.__setattr__(self, name, value.detach().to("cpu", dtype))

    def __len__(self) -> int:
        return len(self.raw)

    def __repr__(self) -> str:
        return f"Identity({len(self)} reference{'s' * (len(self) != 1)}, recogniser={self.recogniser!r})"

    def unit(self) -> torch.Tensor:
        """(n, d) float32 embeddings of length 1."""
        return torch.nn.functional.normalize(self.raw, dim=-1)

    def mean(self, *, unit: bool = False) -> torch.Tensor:
        """(d,) float32: the references pooled into one vector.

        The raw mean, in which a sharp frontal photo (a longer vector) counts for more; with `unit` the direction halfway
        between the references, each counting the same, of length 1.
        """
        if not unit:
            return self.raw.mean(0)
        return torch.nn.functional.normalize(self.unit().mean(0), dim=-1)

    def select(self, index: int | Sequence[int] | slice) -> Identity:
        """The identity seen in some of the references only."""
        rows: Sequence[int] | slice = [index] if isinstance(index, int) else index
        try:
            return Identity(
                self.raw[rows], self.recogniser, **{name: part[rows] for name, part in self._known().items()}
            )
        except IndexError:
            raise IdgenError(
                f"reference {index} asked for, but this identity has {len(self)}, counted from 0"
            ) from None

    def similarity(self, other: Identity) -> torch.Tensor:
        """(n, m) cosines in [-1, 1] between the references of two identities of one recogniser."""
        require_same_recogniser([self, other])
        return self.unit() @ other.unit().T

    @staticmethod
    def concat(identities: Sequence[Identity]) -> Identity:
        """All references of several identities (of one person) in one; a field that one of them lacks is dropped."""
        recogniser = require_same_recogniser(identities)
        known = [identity._known() for identity in identities]
        return Identity(
            torch.cat([identity.raw for identity in identities]),
            recogniser,
            **{name: torch.cat([parts[name] for parts in known]) for name in set.intersection(*map(set, known))},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a `.safetensors` file, whole or not at all. Treat the file as you would the photos: it identifies a person."""
        save_weights(path, {"raw": self.raw, **self._known()}, {"format": IDENTITY, "recogniser": self.recogniser})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Identity:
        """Read what `save` wrote.

        Raises:
            IdgenError: the file is missing, damaged, not an identity, or holds NaN.
        """
        advice = f"{path} is not an identity file: `idgen embed photo.jpg -o person.safetensors` makes one"
        metadata = require_format(path, IDENTITY, advice)
        if "recogniser" not in metadata:
            raise IdgenError(advice)
        tensors = load_weights(path)
        if "raw" not in tensors:
            raise IdgenError(f"{path} holds no embeddings: make it again with `idgen embed`")
        try:
            return cls(recogniser=metadata["recogniser"], **tensors)
        except TypeError:
            unknown = sorted(set(tensors) - {"raw", *FIELDS})
            raise IdgenError(f"{path} holds unknown tensors: {', '.join(unknown)}") from None

    def _known(self) -> dict[str, torch.Tensor]:
        return {name: part for name in FIELDS if (part := getattr(self, name)) is not None}


def require_same_recogniser(identities: Sequence[Identity]) -> str:
    """The one recogniser that made all of them.

    Raises:
        IdgenError: an empty list, or two recognisers (or two embedding sizes).
    """
    if not identities:
        raise IdgenError("no identity given: embed at least one photo")
    names = sorted({identity.recogniser for identity in identities})
    if len(names) > 1:
        raise IdgenError(
            f"embeddings of different recognisers can not be mixed: {', '.join(names)}; embed all photos with one"
        )
    sizes = sorted({identity.raw.shape[1] for identity in identities})
    if len(sizes) > 1:
        raise IdgenError(f"embeddings of different sizes can not be mixed: {', '.join(map(str, sizes))}")
    return names[0]
