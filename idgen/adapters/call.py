"""Everything that one call knows of identities: it travels with the call, and is stored on no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from idgen.adapters.injections.parts import Part
from idgen.adapters.masks import check_aspect
from idgen.adapters.schedule import StepScales
from idgen.errors import IdgenError

if TYPE_CHECKING:
    from idgen.adapters.base import Adapter

KEY = "idgen"  # in cross_attention_kwargs


@dataclass(frozen=True, repr=False)
class Entry:
    """One adapter's share of a call.

    Attributes:
        adapter: whose it is.
        parts: by layer name (attention parts) or block name (gated parts).
        scales: by the same names.
        schedule: factors on the scales over the steps, or None for 1 throughout.
        mask: (rows or 1, 1, height, width) in [0, 1], where in the picture the adapter acts, or None for everywhere.
    """

    adapter: Adapter
    parts: Mapping[str, Sequence[Part]]
    scales: Mapping[str, float]
    schedule: StepScales | None = None
    mask: Tensor | None = None

    def take(self, rows: Tensor) -> Entry:
        """The entry for some rows of the batch, in their order."""
        mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[rows]
        parts = {name: [part.take(rows) for part in parts] for name, parts in self.parts.items()}
        return replace(self, parts=parts, mask=mask)


@dataclass(frozen=True, repr=False)
class Active:
    """A part at the moment it acts. `mask` is (rows or 1, picture tokens, 1)."""

    part: Part
    scale: float | Tensor
    mask: Tensor | None


@dataclass(frozen=True, repr=False)
class Conditioning:
    """Identities made ready for a UNet: `unet(..., cross_attention_kwargs=conditioning.kwargs)`, or the same in a pipeline.

    Made by `Adapter.condition`; conditionings of several adapters, or of several people with a mask each, add up with
    `+`. What acts at one layer is summed in that order. The same object serves any number of calls with as many rows.

    Attributes:
        entries: one per adapter and person.
        rows: the UNet's batch: with guidance first the rows without identity, then those with it.
        guided: whether there are rows without identity.
    """

    entries: tuple[Entry, ...]
    rows: int
    guided: bool
    _masks: dict[tuple, Tensor] = field(default_factory=dict, init=False, compare=False)
    _halves: dict[int, Conditioning] = field(default_factory=dict, init=False, compare=False)

    @property
    def kwargs(self) -> dict[str, Any]:
        """For `cross_attention_kwargs`."""
        return {KEY: self}

    def __repr__(self) -> str:
        methods = ", ".join(entry.adapter.method for entry in self.entries)
        return f"Conditioning({methods}; {self.rows} rows)"

    def __add__(self, other: Conditioning) -> Conditioning:
        if not isinstance(other, Conditioning):
            return NotImplemented
        if (self.rows, self.guided) != (other.rows, other.guided):
            raise IdgenError(
                f"conditionings of {self.rows} and {other.rows} rows can not be joined: make both for as many people,"
                " images and with the same guidance"
            )
        return Conditioning(self.entries + other.entries, self.rows, self.guided)

    def mask(self, index: int, size: tuple[int, int], hidden: Tensor) -> Tensor | None:
        """(rows or 1, picture tokens, 1) the mask of an entry at a layer, made once per resolution, device and dtype.

        Args:
            size: (height, width) of the latents.
            hidden: (rows, picture tokens, hidden) at the layer.
        """
        mask = self.entries[index].mask
        if mask is None:
            return None
        tokens = hidden.shape[1]
        key = (index, *size, tokens, hidden.device, hidden.dtype)
        if key not in self._masks:
            height, width = size
            while height * width > tokens:  # as the UNet halves
                height, width = -(-height // 2), -(-width // 2)
            shrunk = F.interpolate(mask.float(), (height, width), mode="area")
            self._masks[key] = shrunk.flatten(2).transpose(1, 2).to(hidden)
        return self._masks[key]

    def negative(self) -> Conditioning:
        """The rows without identity alone, for guidance in two passes."""
        return self._half(0)

    def positive(self) -> Conditioning:
        """The rows with identity alone."""
        return self._half(1)

    def _half(self, which: int) -> Conditioning:
        if not self.guided:
            raise IdgenError("this conditioning was made without guidance: it has no second half")
        if which not in self._halves:  # once, not at every step after guidance has ended
            half = self.rows // 2
            rows = torch.arange(which * half, (which + 1) * half)
            self._halves[which] = Conditioning(tuple(entry.take(rows) for entry in self.entries), half, False)
        return self._halves[which]


@dataclass(repr=False)
class Step:
    """A conditioning at one denoising step, as the UNet's layers see it.

    Attributes:
        size: (height, width) of the latents.
        factors: per entry, what its schedule says at this timestep.
        norms: pictures that gated parts have normed for the attention that comes next, by layer, each with its mask.
    """

    conditioning: Conditioning
    size: tuple[int, int]
    factors: list[float | Tensor]
    norms: dict[str, list[tuple[Tensor, Tensor | None]]] = field(default_factory=dict)

    @classmethod
    def at(cls, conditioning: Conditioning, sample: Tensor, timestep: Tensor | float | int) -> Step:
        """
        Raises:
            IdgenError: the UNet's batch is not the conditioning's.
        """
        if len(sample) != conditioning.rows:
            raise IdgenError(
                f"the UNet was called with {len(sample)} rows, the identities were made ready for {conditioning.rows}:"
                " pass images= and guidance= to condition() as the pipeline uses them"
            )
        size = (sample.shape[-2], sample.shape[-1])
        factors: list[float | Tensor] = []
        for entry in conditioning.entries:
            check_aspect(entry.mask, size)
            factor: float | Tensor = 1.0
            if entry.schedule is not None:
                factor = entry.schedule.at(timestep)
                if not torch.compiler.is_compiling() and factor.ndim == 0:
                    factor = float(factor)  # a step at rest then costs nothing
                else:
                    factor = factor.to(sample)  # a wider dtype would spread to what it multiplies
            factors.append(factor)
        return cls(conditioning, size, factors)

    def active(self, name: str, hidden: Tensor) -> list[list[Active]]:
        """What acts at a layer or block on hidden (rows, picture tokens, hidden): one list per entry that does, in order."""
        acting = []
        for index, (entry, factor) in enumerate(zip(self.conditioning.entries, self.factors, strict=True)):
            parts = entry.parts.get(name)
            scale = entry.scales.get(name, 0.0)
            if not parts or scale == 0 or (isinstance(factor, float) and factor == 0):
                continue
            now = scale * factor if isinstance(factor, float) else (scale * factor).reshape(-1, 1, 1)
            mask = self.conditioning.mask(index, self.size, hidden)
            acting.append([Active(part, now, mask) for part in parts])
        return acting
