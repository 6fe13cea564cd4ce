"""How often references of one person raise a doubt, and how often those of two people do.

    python -m benchmarks.disagreement --people 100

On validation people, photos drawn at random, by the mini recogniser: what every command says that takes photos of one person.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.faces import Faces
from benchmarks.report import Report, parser, percent, run, timed
from idgen.agreement import disagreement
from idgen.devices import resolve_device
from idgen.evaluation.rendered import VALIDATION, take_photos
from idgen.identity import Identity

PHOTOS = 15
# Photos of the first and of the second person.
MIXTURES = ((2, 0), (3, 0), (5, 0), (8, 0), (1, 1), (2, 1), (4, 1), (7, 1), (2, 2), (3, 2), (4, 4))


def main(argv: Sequence[str] | None = None) -> None:
    flags = parser(__doc__, people=100)
    flags.add_argument("--draws", type=int, default=2000, help="sets of references for each row (default: 2000)")
    flags.set_defaults(cache=Path("runs/photos"))
    args = flags.parse_args(argv)
    people = range(VALIDATION, VALIDATION + args.people)
    photos = take_photos(people, range(PHOTOS), cache=args.cache, workers=args.workers)
    vectors = Faces(resolve_device(args.device), args.cache).embed(photos.images, keep=True).mini
    report = Report(f"Doubts about references: {args.people} validation people, {args.draws} draws")
    chance = random.Random(args.seed)
    for mixture in MIXTURES:
        with timed(str(mixture)):
            share = doubted(vectors, mixture, args.draws, chance)
        whose = " and ".join(map(str, filter(None, mixture)))
        kind = "two people" if mixture[1] else "one person"
        report.add(f"{kind}, {whose} photos", percent(share))
        report.numbers[f"{mixture[0]}+{mixture[1]}"] = share
    report.publish(args.json)


def doubted(vectors: torch.Tensor, mixture: tuple[int, int], draws: int, chance: random.Random) -> float:
    """The share of sets of references that raise a doubt.

    Args:
        vectors: (people, photos, d) embeddings; a photo without a face is all zeros, and is not drawn.
        mixture: photos of the one and of the other person.
    """
    doubts = 0
    for _ in range(draws):
        drawn = []
        for person, count in zip(chance.sample(range(len(vectors)), 2), mixture, strict=True):
            seen = vectors[person].any(-1).nonzero().flatten().tolist()
            drawn.append(vectors[person][chance.sample(seen, count)])
        doubts += disagreement(Identity(torch.cat(drawn), "mini")) is not None
    return doubts / draws


if __name__ == "__main__":
    run(main)
