"""Whether generated faces are taken for the person, by embeddings of a recogniser that made none of them.

Shapes: `generated` is (people, images, dim), `others` (people, photos, dim): photos of the same people that
were not among the references. Embeddings may be raw; they are brought to unit length here. A zero vector
says that no face was found: its cosine to everything is 0, and it is never identified.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PhotoStatistics:
    """What the judge says about real photos: the two ends of the id_score scale.

    Attributes:
        same: mean cosine of two different photos of one person.
        different: mean cosine of photos of two different people.
    """

    same: float
    different: float

    @classmethod
    def of(cls, photos: Tensor) -> PhotoStatistics:
        """Measure real photos (people, photos, dim); at least two people and two photos each.

        Raises:
            ValueError: with fewer.
        """
        same, different = photo_cosines(photos)
        return cls(float(same.mean()), float(different.mean()))

    def score(self, cosine: Tensor | float) -> Tensor | float:
        """Cosine -> id_score: 0 at `different`, 1 at `same`."""
        return (cosine - self.different) / (self.same - self.different)


def photo_cosines(photos: Tensor) -> tuple[Tensor, Tensor]:
    """Two (people,): each person's mean cosine over pairs of different own photos, and to everybody else's photos.

    Raises:
        ValueError: with fewer than two people or two photos each.
    """
    people, count = photos.shape[:2]
    if people < 2 or count < 2:
        raise ValueError(f"needs at least 2 people with 2 photos each, got {people} with {count}")
    within, across = per_person_cosines(photos, photos)
    # The diagonal of a person's own block is each photo with itself: cosine 1, or 0 when undetected.
    themselves = (unit(photos) ** 2).sum(-1).sum(1)  # (people,)
    return (within * count * count - themselves) / (count * (count - 1)), across


def id_score(generated: Tensor, others: Tensor, statistics: PhotoStatistics) -> float:
    """(mean cos(generated, the person's other photos) - different) / (same - different).

    0 = a stranger, 1 = as like as another photo of the same person. Weighs people equally.
    """
    return float(statistics.score(similarity_to(generated, others).mean()))


def similarity_to(generated: Tensor, photos: Tensor) -> Tensor:
    """(people,): each person's mean cosine between generated images and that person's photos."""
    return torch.einsum("pgd,pod->p", unit(generated), unit(photos)) / (generated.shape[1] * photos.shape[1])


def per_person_cosines(probes: Tensor, photos: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine of each person's probes to the own photos and to everybody else's: two (people,)."""
    table = torch.einsum("pgd,qod->pq", unit(probes), unit(photos)) / (probes.shape[1] * photos.shape[1])
    own = table.diagonal()
    return own, (table.sum(1) - own) / (len(table) - 1)


def pair_scores(probes: Tensor, photos: Tensor) -> tuple[Tensor, Tensor]:
    """Every cosine of probes to photos, split into genuine (people, probes, photos) and impostor (pairs,).

    A probe without a face scores -1 against the own person, so that no threshold accepts it, and gives
    no impostor pair, which it would only make easier. Photos without a face give no impostor pair either.
    """
    table = torch.einsum("pgd,qod->pgqo", unit(probes), unit(photos))
    people = torch.arange(len(probes))
    genuine = table[people, :, people]  # (people, probes, photos)
    seen, enrolled = found(probes), found(photos)
    genuine = torch.where(seen[:, :, None] & enrolled[:, None, :], genuine, torch.full_like(genuine, -1.0))
    different = ~torch.eye(len(probes), dtype=torch.bool)[:, None, :, None]
    usable = different & seen[:, :, None, None] & enrolled[None, None]
    return genuine, table[usable]


def rank_one(probes: Tensor, gallery: Tensor) -> Tensor:
    """(people,): the share of a person's probes whose nearest person in the gallery is the right one.

    Args:
        probes: (people, probes, dim).
        gallery: (people, photos, dim). Every photo column is one gallery (one photo per person), and the
            result is the mean over the columns; pass `template(photos)` for one gallery of pooled photos.
    """
    table = torch.einsum("pgd,qod->pgoq", unit(probes), unit(gallery))  # (people, probes, photos, people)
    right = table.argmax(-1) == torch.arange(len(probes))[:, None, None]
    return (right & found(probes)[:, :, None]).double().mean((1, 2))


def template(photos: Tensor) -> Tensor:
    """(people, 1, dim): the photos of a person pooled into one enrolled vector (mean of unit vectors)."""
    return unit(photos).mean(1, keepdim=True)


def pick_among_lookalikes(generated: Tensor, candidates: Tensor) -> Tensor:
    """(people,): the share of images whose most similar candidate is the right one.

    Args:
        generated: (people, images, dim).
        candidates: (people, candidates, photos, dim): people who share skin, hair, brows and eyes;
            candidate 0 is the right one. Cosines are averaged over a candidate's photos.
    """
    cosines = torch.einsum("pgd,pcod->pgc", unit(generated), unit(candidates))
    # A tie (a zero vector ties with everything) is not a right answer: the rival is looked at first.
    right = cosines[..., 0] > cosines[..., 1:].amax(-1)
    return (right & found(generated)).double().mean(1)


def nearest_people(queries: Tensor, population: Tensor) -> Tensor:
    """(queries,) int: for each query vector (queries, dim), the nearest person of (people, photos, dim).

    Distance is to the person's pooled photos (`template`), which is what a lookup table would store.
    """
    pooled = unit(template(population)[:, 0])
    return (unit(queries) @ pooled.T).argmax(1)


def unit(embeddings: Tensor) -> Tensor:
    """Unit length along the last axis in float32; zero vectors stay zero."""
    values = embeddings.float()
    return values / values.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def found(embeddings: Tensor) -> Tensor:
    """Whether a face was found: true where the vector is not all zeros."""
    return embeddings.abs().sum(-1) > 0
