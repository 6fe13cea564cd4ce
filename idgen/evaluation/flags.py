"""What makes figures suspect: pictures that cheat, or fail in a way that a mean hides.

Every flag is held against real photos of the same people: what happens among them is no cheat.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from idgen.evaluation.identity import FaceSet, Scale, nearest_cosine, per_person
from idgen.evaluation.readers import FaceTable
from idgen.evaluation.results import Flag

# Correlation of two small grey aligned faces above which one is a copy of the other: it survives a new background, compression,
# mild blur, brightness and mirroring. Other shots of a person stay below: pose, light and expression differ.
COPY = 0.98
# Root mean square difference of two small grey pictures, in 0..1, below which they are one picture.
REPEATED = 0.008
# Share of the real photos' median sharpness of the aligned face.
BLURRED = 0.25
# id_scores by the conditioning recogniser and by the judge between which only one of them takes it for the person.
CONVINCED, UNCONVINCED = 0.7, 0.3
# id_score by which the nearest reference may be nearer than the nearest other photo.
OVERFITTED = 0.25
# Share of the pictures from which on a flag is one of the whole set.
LIMIT = 0.05


@dataclass
class Findings:
    """Flags of each picture, and of the set.

    Attributes:
        per_image: for every picture the names of its flags.
        flags: of the set, the gravest first.
        copied_from: (n,) correlation with the most similar of the person's photos.
    """

    per_image: list[list[str]]
    flags: list[Flag] = field(default_factory=list)
    copied_from: Tensor = field(default_factory=lambda: torch.zeros(0))

    def mark(self, name: str, chosen: Tensor, text: str, usual: float = 0.0) -> None:
        """Give a flag to pictures; and to the set where they are more than a few and than usual among real photos.

        Args:
            chosen: (n,) bool.
            text: a sentence with {images} and {share} in it.
            usual: the share among real photos.
        """
        for index in chosen.nonzero()[:, 0].tolist():
            self.per_image[index].append(name)
        images, share = int(chosen.sum()), float(chosen.double().mean()) if len(chosen) else 0.0
        if share > max(LIMIT, 2 * usual):
            self.flags.append(Flag(name, text.format(images=images, share=f"{100 * share:.0f} %"), images))


def find_flags(
    made: FaceTable,
    made_set: FaceSet,
    real: FaceTable,
    real_set: FaceSet,
    *,
    originals: Tensor,
    nearest: Tensor | None,
    real_mistaken: float,
    judge_score: Tensor,
    conditioning_score: Tensor | None,
) -> Findings:
    """Look for planted and honest failures.

    Args:
        made, made_set: the generated pictures, as the judge reads them, and whose they are.
        real, real_set: the people's photos, references and others.
        originals: (n,) where in `real` the picture is that each one should have become, of which it can be no copy; -1 for none.
        nearest: (n,) person that each picture is taken for, -1 for none; None where nobody is enrolled.
        real_mistaken: share of real photos that are taken for somebody else.
        judge_score, conditioning_score: (n,) id_score of each picture by the judge, and by the recogniser that the generator was
            shown the person with; NaN where a person has no other photos.
    """
    findings = Findings([[] for _ in range(len(made))])
    findings.mark(
        "no face",
        ~made.found,
        "No face is found in {images} pictures ({share}): they count as failures.",
        _share(~real.found),
    )
    findings.copied_from = _nearest_photo(made, made_set, real, real_set, originals)
    findings.mark(
        "reference pasted in",
        findings.copied_from > COPY,
        "The face of {images} pictures ({share}) is a copy of a photo of the person: likeness to photos says nothing about them.",
        _share(_nearest_photo(real, real_set, real, real_set, torch.arange(len(real)), mirror=False) > COPY),
    )
    repeated = _repeated(made.picture)
    findings.mark(
        "same image repeated",
        repeated,
        "{images} pictures ({share}) repeat another one: they count as one piece of evidence, not as several.",
        _share(_repeated(real.picture)),
    )
    sharp = real.sharpness[real.found, 1]
    if len(sharp):
        dull = made.found & (made.sharpness[:, 1] < BLURRED * sharp.median())
        findings.mark(
            "blurred",
            dull,
            "The face of {images} pictures ({share}) is blurred (less than a quarter of the real photos' sharpness): recognisers"
            " forgive that, people do not.",
            _share(real.found & (real.sharpness[:, 1] < BLURRED * sharp.median())),
        )
    if nearest is not None:
        findings.mark(
            "wrong person",
            made.found & (nearest != made_set.person) & (judge_score < UNCONVINCED),
            "{images} pictures ({share}) are taken for somebody else, with an id_score below 0.3.",
            real_mistaken,
        )
    if conditioning_score is not None:
        fooled = (conditioning_score > CONVINCED) & (judge_score < UNCONVINCED)
        findings.mark(
            "adversarial",
            fooled,
            "{images} pictures ({share}) convince the recogniser that they were made with and not the judge: they are made for"
            " that recogniser, and not of the person.",
        )
    return findings


def reference_gap(made: FaceSet, references: FaceSet, others: FaceSet, scale: Scale) -> tuple[float, Flag | None]:
    """How much more like its nearest reference a picture is than like the nearest of as many other photos, in id_score.

    Of a new real photo it is 0 on average: the references are photos like any other.
    """
    references, others = references.seen(), others.seen()
    several = torch.minimum(references.counts(), others.counts())  # (people,): the more photos, the nearer the nearest
    same, different = scale.ends
    best = [
        nearest_cosine(made, photos.only(photos.places() < several[photos.person])) for photos in (references, others)
    ]
    by_person = per_person((best[0] - best[1]) / (same - different), made)
    gap = float(by_person[~by_person.isnan()].mean())
    if not gap > OVERFITTED:
        return gap, None
    text = f"The pictures are {gap:.2f} id_score more like their nearest reference than like other photos: they copy, or overfit."
    return gap, Flag("copies the references", text)


def _nearest_photo(
    made: FaceTable, made_set: FaceSet, real: FaceTable, real_set: FaceSet, left_out: Tensor, mirror: bool = True
) -> Tensor:
    """(n,): the highest correlation of each face with the faces in its person's photos, straight or mirrored; 0 without.

    Args:
        left_out: (n,) the photo that is not counted for each picture; -1 for none.
    """
    best = torch.zeros(len(made))
    side = round(real.face.shape[1] ** 0.5)
    mirrored = real.face.unflatten(1, (side, side)).flip(2).flatten(1)
    straight, mirrored, faces = _centred(real.face), _centred(mirrored), _centred(made.face)
    for person in made_set.person.unique().tolist():
        mine = ((made_set.person == person) & made.found).nonzero()[:, 0]
        photos = ((real_set.person == person) & real.found).nonzero()[:, 0]
        if not len(mine) or not len(photos):
            continue
        alike = faces[mine] @ straight[photos].T
        # Mirrored faces are only asked of made pictures: a frontal real photo is nearly its own mirror image.
        if mirror:
            alike = torch.maximum(alike, faces[mine] @ mirrored[photos].T)
        alike[left_out[mine][:, None] == photos[None]] = -1
        best[mine] = alike.amax(1).clamp_min(0)
    return best


def _repeated(pictures: Tensor, block: int = 1024) -> Tensor:
    """(n,) bool: whether another picture of the set is the same but for noise."""
    squares = pictures.square().sum(1)
    repeated = torch.zeros(len(pictures), dtype=torch.bool)
    limit = REPEATED**2 * pictures.shape[1]
    for start in range(0, len(pictures), block):
        rows = slice(start, min(start + block, len(pictures)))
        distance = (pictures[rows] @ pictures.T).mul_(-2).add_(squares[None]).add_(squares[rows, None])
        distance[torch.arange(rows.stop - start), torch.arange(start, rows.stop)] = float("inf")
        repeated[rows] = distance.amin(1) < limit
    return repeated


def _centred(faces: Tensor) -> Tensor:
    values = faces - faces.mean(1, keepdim=True)
    return values / values.norm(dim=1, keepdim=True).clamp_min(1e-6)


def _share(chosen: Tensor) -> float:
    return float(chosen.double().mean()) if len(chosen) else 0.0
