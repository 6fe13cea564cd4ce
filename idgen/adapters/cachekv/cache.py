"""What a UNet's self-attention reads of the references: their keys and values, computed once for any photo, seed and step."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from idgen.checkpoint import load_weights, save_weights
from idgen.errors import IdgenError
from idgen.headers import CACHE, require_format
from idgen.identity import Identity

SIGNATURE, IDENTITY, CROPS = "signature", "identity", "crops"  # the tensors' names in a file


@dataclass(frozen=True, repr=False)
class CachedLayer:
    """One self-attention layer's view of the references.

    Attributes:
        level: the latents' resolution over the layer's: 1, 2, 4, ...
        key, value: (rows, references * tokens, channels), as projected, heads side by side.
    """

    level: int
    key: Tensor
    value: Tensor


@dataclass(frozen=True, repr=False)
class ReferenceCache:
    """Keys and values of references, by attention layer. Made by `CacheKV.build` and `CacheKV.null`.

    It depends on the references and on the model's weights only. Rows are people, or one person's rows of a batch; a cache
    of one row serves any number of photos.

    Attributes:
        layers: by the layer's name in the UNet; layers that are not there do not see the references.
        references: how many references a row's tokens show.
        copies: as how many references each of them counts (log(copies) is added to its logits); 1 but for null references.
        signature: values of the weights that made it, by which a stored cache recognises its model.
        identity: who the references show, where a recogniser has seen them: it finds the person in a photo of several.
    """

    layers: Mapping[str, CachedLayer]
    references: int
    copies: int
    signature: Tensor
    identity: Identity | None = None

    @property
    def rows(self) -> int:
        """How many people's references it holds."""
        return next(iter(self.layers.values())).key.shape[0]

    @property
    def levels(self) -> tuple[int, ...]:
        """The resolutions at which it is read, as divisors of the latents'."""
        return tuple(sorted({layer.level for layer in self.layers.values()}))

    @property
    def nbytes(self) -> int:
        """Its size in memory, views counted as if they were copies."""
        return sum(layer.key.nbytes + layer.value.nbytes for layer in self.layers.values())

    def __repr__(self) -> str:
        return f"ReferenceCache({self.references} references, {self.rows} rows, levels {self.levels})"

    def select(self, levels: Iterable[int]) -> ReferenceCache:
        """The cache at some resolutions only.

        Raises:
            IdgenError: it does not hold one of them.
        """
        wanted = set(levels)
        if not wanted or not wanted <= set(self.levels):
            raise IdgenError(
                f"this cache holds the levels {self.levels}, not {tuple(sorted(wanted))}: choose among them"
            )
        return replace(self, layers={name: layer for name, layer in self.layers.items() if layer.level in wanted})

    def expand(self, rows: int) -> ReferenceCache:
        """One person's cache for a batch of so many rows; takes no memory.

        Raises:
            IdgenError: it holds several people.
        """
        if rows == self.rows:
            return self
        if self.rows != 1:
            raise IdgenError(f"a cache of {self.rows} rows can not become {rows}: only a cache of one row expands")
        return self._map(lambda tensor: tensor.expand(rows, -1, -1))

    def repeat(self, times: int) -> ReferenceCache:
        """The rows again and again: for a batch that has every person so many times."""
        return self if times == 1 else self._map(lambda tensor: tensor.repeat(times, 1, 1))

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> ReferenceCache:
        """The cache on a device or in a dtype."""
        return self._map(lambda tensor: tensor.to(device=device, dtype=dtype))

    def detach(self) -> ReferenceCache:
        """The cache without its history, so that nothing trains through it."""
        return self._map(Tensor.detach)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the cache as safetensors; `CacheKV.load` reads it. It shows a face as photos do: keep it as you keep them.

        Raises:
            IdgenError: the name does not end in .safetensors, or can not be written.
        """
        tensors = {f"{name}.key": layer.key for name, layer in self.layers.items()}
        tensors |= {f"{name}.value": layer.value for name, layer in self.layers.items()}
        levels = {name: layer.level for name, layer in self.layers.items()}
        header: dict[str, object] = {
            "format": CACHE,
            "references": self.references,
            "copies": self.copies,
            "levels": levels,
        }
        tensors[SIGNATURE] = self.signature
        if self.identity is not None:
            tensors[IDENTITY], header["recogniser"] = self.identity.raw, self.identity.recogniser
            if self.identity.crops is not None:
                tensors[CROPS] = self.identity.crops
        save_weights(path, tensors, header)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ReferenceCache:
        """What `save` wrote, whichever model it belongs to: `CacheKV.load` checks that.

        Raises:
            IdgenError: missing, damaged, or no reference cache.
        """
        header = require_format(
            path,
            CACHE,
            f"{path} is no reference cache: `idgen restore --ref ... --cache FILE` writes one, `CacheKV.build` makes one",
        )
        tensors = load_weights(path)
        try:
            levels = {str(name): int(level) for name, level in json.loads(header["levels"]).items()}
            layers = {
                name: CachedLayer(level, tensors[f"{name}.key"], tensors[f"{name}.value"])
                for name, level in levels.items()
            }
            identity = (
                Identity(tensors[IDENTITY], header["recogniser"], tensors.get(CROPS)) if IDENTITY in tensors else None
            )
            cache = cls(layers, int(header["references"]), int(header["copies"]), tensors[SIGNATURE], identity)
        except (KeyError, ValueError, AttributeError) as error:
            raise IdgenError(f"{path} is a damaged reference cache ({error}): build it again") from error
        if not layers or any(layer.key.shape != layer.value.shape or layer.key.ndim != 3 for layer in layers.values()):
            raise IdgenError(f"{path} is a damaged reference cache (keys and values do not match): build it again")
        return cache

    def _map(self, change: object) -> ReferenceCache:
        assert callable(change)
        layers = {
            name: CachedLayer(layer.level, change(layer.key), change(layer.value))
            for name, layer in self.layers.items()
        }
        return replace(self, layers=layers)


@dataclass(frozen=True, repr=False)
class MergedCache:
    """Caches for consecutive rows of one batch, such as the two halves of guidance; each may hold other numbers of references."""

    parts: tuple[ReferenceCache, ...]

    @property
    def rows(self) -> int:
        """The batch that it is for."""
        return sum(part.rows for part in self.parts)

    def __repr__(self) -> str:
        return f"MergedCache{self.parts}"


def gather(caches: Sequence[ReferenceCache]) -> ReferenceCache | MergedCache:
    """One batch whose first rows read the first cache, and so on; of one piece where all hold as many references.

    Raises:
        IdgenError: as `merge`.
    """
    merged = merge(*caches)
    first = caches[0]
    shapes = {
        (cache.references, cache.copies, *(layer.key.shape[1] for layer in cache.layers.values())) for cache in caches
    }
    if len(shapes) > 1:
        return merged
    layers = {
        name: CachedLayer(
            layer.level,
            torch.cat([cache.layers[name].key for cache in caches]),
            torch.cat([cache.layers[name].value for cache in caches]),
        )
        for name, layer in first.layers.items()
    }
    return first if len(caches) == 1 else replace(first, layers=layers, identity=None)


def merge(*caches: ReferenceCache) -> MergedCache:
    """One batch whose first rows read the first cache, and so on.

    Raises:
        IdgenError: they are for different layers.
    """
    if not caches or any(cache.layers.keys() != caches[0].layers.keys() for cache in caches):
        levels = ", ".join(str(cache.levels) for cache in caches)
        raise IdgenError(f"caches of the levels {levels} can not share a batch: select() the same levels of each")
    return MergedCache(caches)
