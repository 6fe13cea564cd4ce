"""Whether pictures are taken for the people they were made of, from embeddings of the judge: for any number of pictures each.

`idgen.metrics.identity` has the same figures for rectangular sets (so many images of everybody); here each person may have
another number. A zero vector says that no face was found: a generated picture without one is a failure in every figure, a
photo without one tells nothing and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from idgen.metrics.bootstrap import Interval, bootstrap_means
from idgen.metrics.identity import found, unit
from idgen.metrics.verification import TarAtFar, tar_curve

# Pairs of which a table of cosines is made at most: beyond, a drawn part of the photos stands for all as impostors.
MOST_PAIRS = 20_000_000
BLOCK = 1024


@dataclass(frozen=True, repr=False)
class FaceSet:
    """Embeddings (n, dim), raw or unit, and whose each is (n,) of so many people."""

    vectors: Tensor
    person: Tensor
    people: int

    def __repr__(self) -> str:  # embeddings are biometric data: they have no place in logs
        return f"FaceSet({len(self)} pictures, {self.people} people)"

    def __len__(self) -> int:
        return len(self.person)

    def seen(self) -> FaceSet:
        """Without the zero vectors."""
        return self.only(found(self.vectors))

    def only(self, chosen: Tensor) -> FaceSet:
        """Some of the pictures."""
        return replace(self, vectors=self.vectors[chosen], person=self.person[chosen])

    def counts(self) -> Tensor:
        """(people,): pictures of each."""
        return torch.bincount(self.person, minlength=self.people)

    def places(self) -> Tensor:
        """(n,): the how-manieth of its person each picture is, from 0."""
        order = self.person.argsort(stable=True)
        counts = self.counts()
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[self.person[order]]
        return places

    def sums(self) -> Tensor:
        """(people, dim) float64: each person's unit vectors added up."""
        values = unit(self.vectors).double()
        return torch.zeros(self.people, values.shape[1], dtype=torch.float64).index_add_(0, self.person, values)

    def means(self) -> Tensor:
        """(people, dim): each person's mean unit vector; a product of two of them is the mean cosine over all pairs."""
        return self.sums() / self.counts().clamp_min(1)[:, None]


@dataclass(frozen=True)
class Scale:
    """What the recogniser says of real photos, per person: the two ends of the id_score scale.

    Attributes:
        same, different: (people,) mean cosine of two different photos of the person, and to everybody else's.
        valid: (people,) whether the person has two photos with a face.
    """

    same: Tensor
    different: Tensor
    valid: Tensor

    @classmethod
    def of(cls, photos: FaceSet) -> Scale:
        """Measure real photos; at least two people, one of whom has two photos.

        Raises:
            ValueError: with fewer.
        """
        photos = photos.seen()
        counts, sums, means = photos.counts(), photos.sums(), photos.means()
        present, pairs = counts > 0, counts * (counts - 1)
        if present.sum() < 2 or not (pairs > 0).any():
            raise ValueError("needs photos with a face of at least 2 people, and 2 of one of them")
        same = (sums.square().sum(1) - counts) / pairs.clamp_min(1)
        different = (means @ means.sum(0) - means.square().sum(1)) / (present.sum() - 1)
        return cls(same, different, pairs > 0)

    @property
    def ends(self) -> tuple[float, float]:
        """Means over people: same, different."""
        return float(self.same[self.valid].mean()), float(self.different[self.valid].mean())

    def score(self, cosine: Tensor) -> Tensor:
        """Cosines -> id_score: 0 at `different`, 1 at `same`."""
        same, different = self.ends
        return (cosine - different) / (same - different)

    def interval(self, cosines: Tensor, chosen: Tensor, seed: int = 0) -> Interval:
        """The id_score of per-person cosines (people,), with its ends resampled along with it."""
        chosen = chosen & self.valid
        if not chosen.any():
            raise ValueError("nobody has two photos with a face besides")
        parts = torch.stack([cosines, self.same, self.different], 1)[chosen]
        return bootstrap_means(parts, lambda m: (m[..., 0] - m[..., 2]) / (m[..., 1] - m[..., 2]), seed=seed)


def cosine_to(pictures: FaceSet, photos: FaceSet) -> Tensor:
    """(n,): each picture's mean cosine to its person's photos; NaN where there is none, 0 where the picture has no face."""
    photos = photos.seen()
    own = (unit(pictures.vectors).double() * photos.means()[pictures.person]).sum(1)
    return torch.where(photos.counts()[pictures.person] > 0, own, torch.nan)


def nearest_cosine(pictures: FaceSet, photos: FaceSet) -> Tensor:
    """(n,): each picture's cosine to the most similar of its person's photos; NaN where there is none."""
    photos = photos.seen()
    probes, gallery = unit(pictures.vectors), unit(photos.vectors)
    best = torch.full((len(pictures),), torch.nan, dtype=torch.float64)
    for person in pictures.person.unique().tolist():
        mine, own = (pictures.person == person).nonzero()[:, 0], photos.person == person
        if own.any():
            best[mine] = (probes[mine] @ gallery[own].T).amax(1).double()
    return best


def per_person(values: Tensor, pictures: FaceSet) -> Tensor:
    """(people,): mean over each person's pictures of (n,) values; NaN for people without pictures."""
    sums = torch.zeros(pictures.people, dtype=torch.float64).index_add_(0, pictures.person, values.double())
    counts = pictures.counts()
    return torch.where(counts > 0, sums / counts, torch.nan)


@dataclass(frozen=True)
class Pairs:
    """Cosines of pictures and photos.

    Attributes:
        genuine: (pairs,) of one person; -1 where the picture has no face, so that no threshold accepts it.
        owner: (pairs,) whose.
        impostor: (pairs,) of a picture with a face and a photo of somebody else.
    """

    genuine: Tensor
    owner: Tensor
    impostor: Tensor

    def curve(self, fars: list[float]) -> list[TarAtFar]:
        """True accept rates at false accept rates; ValueError where the impostors are too few."""
        return tar_curve(self.genuine, self.impostor, fars)

    def accepted(self, threshold: float, people: int) -> tuple[Tensor, Tensor]:
        """(people,) share of each person's genuine pairs above a threshold, and (people,) whether there are any."""
        counts = torch.bincount(self.owner, minlength=people)
        hits = torch.bincount(self.owner, (self.genuine > threshold).double(), people)
        return hits / counts.clamp_min(1), counts > 0


def pair_scores(pictures: FaceSet, photos: FaceSet, *, seed: int = 0) -> Pairs:
    """Every cosine of pictures to photos, told apart by whether they show one person."""
    photos = photos.seen()
    probes, gallery = unit(pictures.vectors), unit(photos.vectors)
    seen = found(pictures.vectors)
    rivals = torch.arange(len(gallery))
    if len(probes) * len(gallery) > MOST_PAIRS:
        most = max(MOST_PAIRS // len(probes), 2 * pictures.people)
        rivals = torch.randperm(len(gallery), generator=torch.Generator().manual_seed(seed))[:most]
    order = photos.person.argsort(stable=True)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), photos.counts().cumsum(0)])
    genuine, owner, impostor = [], [], []
    for start in range(0, len(probes), BLOCK):
        rows = slice(start, start + BLOCK)
        table = probes[rows] @ gallery[rivals].T
        different = pictures.person[rows, None] != photos.person[rivals][None]
        impostor.append(table[different & seen[rows, None]])
    for index, person in enumerate(pictures.person.tolist()):
        own = order[starts[person] : starts[person + 1]]
        cosines = gallery[own] @ probes[index] if seen[index] else torch.full((len(own),), -1.0)
        genuine.append(cosines)
        owner.append(torch.full((len(own),), person))
    return Pairs(torch.cat(genuine), torch.cat(owner), torch.cat(impostor))


def photo_pairs(photos: FaceSet) -> Pairs:
    """The same of real photos among themselves, each pair once."""
    photos = photos.seen()
    vectors = unit(photos.vectors)
    if len(vectors) ** 2 > MOST_PAIRS:
        # Everybody keeps some photos: the first ones of each person.
        kept = photos.places() < max(2, int(MOST_PAIRS**0.5) // photos.people)
        photos, vectors = photos.only(kept), vectors[kept]
    table = vectors @ vectors.T
    once = torch.ones_like(table, dtype=torch.bool).triu(1)
    same = photos.person[:, None] == photos.person[None]
    rows = (once & same).nonzero()[:, 0]
    return Pairs(table[once & same], photos.person[rows], table[once & ~same])


@dataclass(frozen=True)
class Retrieval:
    """Who each picture is taken for among the enrolled people.

    Attributes:
        right: (n,) 1 where it is the right person; for several galleries the mean over them.
        nearest: (n,) the most similar person; -1 where the picture has no face.
        cosine: (n,) to that person's template.
    """

    right: Tensor
    nearest: Tensor
    cosine: Tensor


def retrieve(pictures: FaceSet, gallery: FaceSet) -> Retrieval:
    """The nearest of the people's pooled photos (mean of unit vectors); people without a photo are not enrolled."""
    gallery = gallery.seen()
    templates = unit(gallery.means())
    cosines = unit(pictures.vectors) @ templates.T
    cosines[:, gallery.counts() == 0] = -2
    cosine, nearest = cosines.max(1)
    seen = found(pictures.vectors)
    right = (nearest == pictures.person) & seen
    return Retrieval(right.double(), torch.where(seen, nearest, -1), torch.where(seen, cosine, 0.0))


def retrieve_single(pictures: FaceSet, gallery: FaceSet) -> Tensor:
    """(n,): the share of galleries with one photo per person in which the right person is the nearest.

    There are as many galleries as the person with the fewest photos has photos.
    """
    gallery = gallery.seen()
    counts = gallery.counts()
    shares = []
    for place in range(int(counts[counts > 0].min())):
        shares.append(retrieve(pictures, gallery.only(gallery.places() == place)).right)
    return torch.stack(shares).mean(0)


def retrieve_photos(photos: FaceSet) -> Tensor:
    """(n,) for real photos: 1 where the nearest of the people's pooled photos, the photo itself left out, is the right one."""
    photos = photos.seen()
    vectors, sums, counts = unit(photos.vectors), photos.sums().float(), photos.counts()
    cosines = vectors @ unit(sums).T
    cosines[:, counts == 0] = -2
    rows = torch.arange(len(photos))
    without = unit(sums[photos.person] - vectors)
    cosines[rows, photos.person] = torch.where(counts[photos.person] > 1, (vectors * without).sum(1), -2.0)
    return (cosines.argmax(1) == photos.person).double()


def pick_right(pictures: FaceSet, photos: FaceSet, lookalikes: FaceSet, rival: Tensor) -> Tensor:
    """(n,): 1 where the person's own photos are more alike than those of every person of the same appearance.

    Args:
        lookalikes: photos, under the person whom they resemble.
        rival: (photos,) which of that person's lookalikes each is of.
    """
    photos, seen = photos.seen(), found(lookalikes.vectors)
    probes, own = unit(pictures.vectors).double(), cosine_to(pictures, photos)
    best = torch.full((len(pictures),), -2.0, dtype=torch.float64)
    for number in rival.unique().tolist():
        chosen = lookalikes.only(seen & (rival == number))
        there = chosen.counts()[pictures.person] > 0
        cosines = (probes * chosen.means()[pictures.person]).sum(1)
        best = torch.where(there, torch.maximum(best, cosines), best)
    # A tie (a zero vector ties with everything) is not a right answer.
    return ((own > best) & found(pictures.vectors)).double()


def nearest_training(queries: Tensor, training: FaceSet) -> Tensor:
    """(queries,): for each vector (queries, dim) the person of the training whose pooled photos are the nearest."""
    templates = unit(training.seen().means())
    return (unit(queries).to(templates.dtype) @ templates.T).argmax(1)
