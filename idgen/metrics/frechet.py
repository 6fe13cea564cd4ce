"""How far apart two sets of pictures lie as clouds of features: Fréchet distance (FID) and kernel distance (KID).

Any feature network will do: these take the features. Sums over pictures run in float64: with 2048 features the trace of a
matrix root in float32 is off in the first decimal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation over subsets of the squared maximum mean discrepancy."""

    mean: float
    std: float


def smallest_sample(dim: int) -> int:
    """Pictures on each side that a Fréchet distance over `dim` features needs: fewer leave the covariance without full rank."""
    return dim + 1


def check_sample(dim: int, count: int, others: int) -> None:
    """ValueError where so many pictures on the two sides are too few for a Fréchet distance over `dim` features."""
    least = smallest_sample(dim)
    if min(count, others) < least:
        raise ValueError(
            f"the Fréchet distance over {dim} features needs at least {least} images on each side,"
            f" got {count} and {others}"
        )


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two sets (n, dim) and (m, dim); FID when an Inception-v3 made them.

    Heusel et al. 2017 (arXiv 1706.08500); covariances are the unbiased ones, as in the authors' code.

    Raises:
        ValueError: sets of other shapes, or fewer rows than `smallest_sample(dim)`.
    """
    _check(features, others)
    check_sample(features.shape[1], len(features), len(others))
    return frechet_of_moments(*_moments(features), *_moments(others))


def frechet_of_moments(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """The Fréchet distance of two normal distributions: means (dim,), covariances (dim, dim)."""
    mean, covariance, other_mean, other_covariance = (
        part.double() for part in (mean, covariance, other_mean, other_covariance)
    )
    # tr (C1 C2)^(1/2) = tr (C1^(1/2) C2 C1^(1/2))^(1/2), and the latter is symmetric: its eigenvalues are real.
    root = _symmetric_root(covariance)
    mixed = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp_min(0).sqrt().sum()
    shift = (mean - other_mean).square().sum()
    return max(0.0, float(shift + covariance.trace() + other_covariance.trace() - 2 * mixed))


def kernel_distance(
    features: Tensor, others: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Unbiased squared MMD with the kernel (x . y / dim + 1)^3, over random subsets (KID, arXiv 1801.01401).

    Args:
        features, others: (n, dim) and (m, dim).
        subsets: how many pairs of subsets are drawn.
        subset_size: rows of each; never more than there are.

    Raises:
        ValueError: sets of other shapes, or fewer than 2 rows on a side.
    """
    _check(features, others)
    if min(len(features), len(others)) < 2:
        raise ValueError(
            f"the kernel distance needs at least 2 images on each side, got {len(features)}, {len(others)}"
        )
    dtype = torch.promote_types(features.dtype, torch.float32)
    x, y = features.to(dtype), others.to(dtype)
    size = min(subset_size, len(x), len(y))
    generator = torch.Generator().manual_seed(seed)

    def drawn(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:size]]

    values = torch.stack([_squared_mmd(drawn(x), drawn(y)) for _ in range(subsets)])
    return KernelDistance(float(values.mean()), float(values.std(correction=0)))


def _squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    size, dim = x.shape

    def total(a: Tensor, b: Tensor) -> Tensor:
        # Products in the features' own precision, twice as fast in float32; their errors average out over size^2 pairs.
        kernel = ((a / dim) @ b.T).double().add_(1).flatten()
        return torch.dot(kernel.square(), kernel)

    def own(rows: Tensor) -> Tensor:
        return (rows.double().square().sum(1) / dim + 1).pow(3).sum()

    pairs = size * (size - 1)  # a row is not paired with itself
    same = (total(x, x) - own(x) + total(y, y) - own(y)) / pairs
    return same - 2 * total(x, y) / size**2


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    rows = features.double()
    mean = rows.mean(0)
    centred = rows - mean
    return mean, centred.T @ centred / (len(rows) - 1)


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _check(features: Tensor, others: Tensor) -> None:
    if features.ndim != 2 or others.ndim != 2 or features.shape[1] != others.shape[1]:
        raise ValueError(f"needs features (n, dim) and (m, dim), got {tuple(features.shape)} and {tuple(others.shape)}")
