"""Edits of a face in StyleGAN2's W+: older, smiling, other hair, the same person.

Three kinds of published files, as github.com/csxmli2016/w-plus-adapter uses them:
* InterFaceGAN (Shen et al., arXiv 2005.09635), `age.pt`, `smile.pt`: one vector (1, 512) for all levels of a code.
* latent directions, `eyes_open.npy`, `emotion_happy.npy`: a vector for each level (18, 512), applied to the first eight.
* GANSpace (Harkonen et al., arXiv 2004.02546), `ffhq_pca.pt` with `ganspace_configs.csv`: a principal component of W, which is
  not added but set: at strength s the face is s standard deviations from the average along it, wherever it was before.

    smile = load_interfacegan("smile.pt")
    w = smile.apply(w, 2.0)

Strengths of about -4 to 4 make sense for the first two kinds, tens of either sign for GANSpace.
"""

from __future__ import annotations

import csv
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from idgen.checkpoint import load_weights
from idgen.errors import IdgenError
from idgen.models.published import State, shape

LATENT_DIRECTION_LEVELS = (0, 8)  # the later levels hold colours, which these directions would change too

Levels = tuple[int, int]


class EditDirection(ABC):
    """A way to move codes of W+."""

    @abstractmethod
    def delta(self, w: Tensor, strength: float) -> Tensor:
        """What an edit adds to codes (batch, levels, dim): a tensor like `w`.

        Raises:
            IdgenError: the direction belongs to codes of another shape, or moves levels that these do not have.
        """

    def apply(self, w: Tensor, strength: float) -> Tensor:
        """Codes (batch, levels, dim), edited; see `delta`."""
        return w + self.delta(w, strength)


@dataclass(frozen=True, eq=False)
class LinearDirection(EditDirection):
    """Adds `strength` times a vector.

    Attributes:
        vector: (1, dim) for all levels alike, or (levels, dim).
        levels: first and behind the last of the levels that it moves; all without.
    """

    vector: Tensor
    levels: Levels | None = None

    def __post_init__(self) -> None:
        if self.vector.ndim != 2 or 0 in self.vector.shape:
            raise IdgenError(f"a direction has the shape (1 or levels, dim), not {list(self.vector.shape)}")

    def delta(self, w: Tensor, strength: float) -> Tensor:
        rows, dim = self.vector.shape
        if w.ndim != 3 or w.shape[2] != dim or rows not in (1, w.shape[1]):
            fitting = f"(batch, {'levels' if rows == 1 else rows}, {dim})"
            raise IdgenError(f"this direction edits codes of the shape {fitting}, not {list(w.shape)}")
        return _on_levels(w, strength * self.vector.to(w), self.levels or (0, w.shape[1]))


@dataclass(frozen=True, eq=False)
class ComponentDirection(EditDirection):
    """Sets how far a face is from the average along a component of W, in standard deviations.

    The distance is measured at the first level of the code; the same step is taken on all `levels`.

    Attributes:
        mean: the average code of W, (dim,).
        component: a vector of length 1, (dim,).
        deviation: the standard deviation along it, a scalar.
        levels: first and behind the last of the levels that it moves.
    """

    mean: Tensor
    component: Tensor
    deviation: Tensor
    levels: Levels

    def delta(self, w: Tensor, strength: float) -> Tensor:
        if w.ndim != 3 or w.shape[2] != len(self.component):
            fitting = f"(batch, levels, {len(self.component)})"
            raise IdgenError(f"this direction edits codes of the shape {fitting}, not {list(w.shape)}")
        mean, component, deviation = (tensor.to(w.device) for tensor in (self.mean, self.component, self.deviation))
        distance = ((w[:, 0].float() - mean) @ component) / deviation  # (batch,)
        step = (strength - distance)[:, None] * component * deviation  # (batch, dim)
        return _on_levels(w, step[:, None].to(w.dtype), self.levels)


@dataclass(frozen=True)
class GanspaceEdit:
    """A named edit: which component, on which levels, and the strength that its author found."""

    component: int
    levels: Levels
    strength: float


def load_interfacegan(path: str | os.PathLike[str]) -> LinearDirection:
    """The direction in an InterFaceGAN file, a single tensor (1, 512), (18, 512) or (1, 18, 512).

    Raises:
        IdgenError: the file is missing or damaged, or holds something else.
    """
    tensors = list(load_weights(path).values())
    if len(tensors) != 1:
        raise IdgenError(f"{path} holds {len(tensors)} tensors, an InterFaceGAN direction is a single one")
    return LinearDirection(_rows(tensors[0], path))


def load_latent_direction(path: str | os.PathLike[str]) -> LinearDirection:
    """The direction in a `.npy` file (18, 512); it moves the first eight levels.

    Raises:
        IdgenError: the file is missing or damaged, would run code when opened, or holds something else.
    """
    return LinearDirection(_rows(_load_array(Path(path)), path), LATENT_DIRECTION_LEVELS)


def load_ganspace(path: str | os.PathLike[str], component: int, levels: Levels) -> ComponentDirection:
    """One component of a GANSpace file (`comp` (n, 1, 512), `mean` (1, 512), `std` (n,)).

    Args:
        component: its number, from 0.
        levels: first and behind the last of the levels that the edit moves.

    Raises:
        IdgenError: the file is missing or damaged, or does not hold that component.
    """
    state = load_weights(path)
    count, _, dim = shape(state, "comp", 3, str(path))
    if not 0 <= component < count:
        raise IdgenError(f"{path} has the components 0 to {count - 1}, not {component}")
    mean, deviation = _pca(state, count, dim, str(path))
    return ComponentDirection(mean, state["comp"][component, 0].float(), deviation[component], levels)


def read_ganspace_edits(path: str | os.PathLike[str]) -> dict[str, GanspaceEdit]:
    """The named edits of a `ganspace_configs.csv`: name, component, first level, level behind the last, strength; by tabs.

    Raises:
        IdgenError: the file can not be read, or a line is something else.
    """
    edits = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.reader(file, delimiter="\t"):
                if row:
                    name, component, start, end, strength = row
                    edits[name] = GanspaceEdit(int(component), (int(start), int(end)), float(strength))
    except OSError as error:
        raise IdgenError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise IdgenError(
            f"{path} is not a list of GANSpace edits (name, component, start, end, strength): {error}"
        ) from error
    return edits


def _on_levels(w: Tensor, step: Tensor, levels: Levels) -> Tensor:
    """`step` (batch or nothing, 1 or levels, dim) on some levels, zeros on the others: a tensor like `w`."""
    start, end = levels
    if not 0 <= start < end <= w.shape[1]:
        raise IdgenError(f"this direction moves the levels [{start}, {end}), these codes have 0 to {w.shape[1] - 1}")
    delta = torch.zeros_like(w)
    delta[:, start:end] = step.expand_as(w)[:, start:end]
    return delta


def _rows(tensor: Tensor, path: str | os.PathLike[str]) -> Tensor:
    if tensor.ndim == 3 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise IdgenError(f"{path} holds the shape {list(tensor.shape)}, a direction has (1 or levels, dim)")
    return tensor.float()


def _pca(state: State, count: int, dim: int, what: str) -> tuple[Tensor, Tensor]:
    mean, deviation = (state.get(name, torch.empty(0)) for name in ("mean", "std"))
    if mean.numel() != dim or deviation.numel() != count:
        raise IdgenError(f"{what}: the average or the deviations do not fit {count} components of {dim} values")
    return mean.float().flatten(), deviation.float().flatten()


def _load_array(path: Path) -> Tensor:
    try:
        # Mapped, so that a header can not claim more values than the file has; a pickle inside is refused either way.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise IdgenError(f"no such file: {path}") from None
    except (OSError, ValueError, EOFError) as error:
        raise IdgenError(f"{path} is damaged or not a .npy file of numbers: fetch it again") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise IdgenError(f"{path} does not hold an array of finite numbers: fetch it again")
    return torch.from_numpy(np.array(array, dtype=np.float32))
