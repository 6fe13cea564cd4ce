"""Measure the ends of the id_score scale and write statistics.json beside the judge's weights (`idgen demo` reads it).

    python -m benchmarks.judge_statistics --people 100

On validation people: nobody whom a recogniser was trained on, nor anybody of the test.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.faces import Faces
from benchmarks.report import Report, parser, run, timed
from idgen.devices import resolve_device
from idgen.evaluation.rendered import VALIDATION, take_photos, training_photos
from idgen.metrics import PhotoStatistics, id_score, nearest_people
from idgen.metrics.statistics import JudgeStatistics
from idgen.weights import find_mini

PHOTOS = 6


def main(argv: Sequence[str] | None = None) -> None:
    flags = parser(__doc__, people=100)
    flags.add_argument("--training-people", type=int, default=1800, help="among whom the nearest is sought")
    flags.add_argument("--training-data", type=Path, metavar="DIR", help="their photos, to save rendering them again")
    flags.set_defaults(cache=Path("runs/photos"))
    args = flags.parse_args(argv)
    people = range(VALIDATION, VALIDATION + args.people)
    kept = {"cache": args.cache, "workers": args.workers}
    with timed("photos"):
        photos = take_photos(people, range(PHOTOS), **kept)
        lookalikes = take_photos(people, range(1, 4), variant=0, **kept)
        population = training_photos(args.training_people, args.training_data, **kept)
    with timed("embeddings"):
        faces = Faces(resolve_device(args.device), args.cache)
        own, others = (faces.embed(taken.images, keep=True) for taken in (photos, lookalikes))
        training = faces.embed(population, keep=True)
    scale = PhotoStatistics.of(own.judge)
    nearest = training.judge[nearest_people(own.mini[:, 0], training.mini)]
    statistics = JudgeStatistics(
        same=scale.same,
        different=scale.different,
        nearest_training_person=id_score(nearest, own.judge[:, 1:], scale),
        same_appearance=id_score(others.judge, own.judge[:, 1:], scale),
        people=args.people,
        photos=PHOTOS,
        source=f"python -m benchmarks.judge_statistics --people {args.people} --training-people {args.training_people}",
    )
    statistics.save(find_mini("judge"))
    report = Report(f"The judge on photos of {args.people} validation people", numbers=vars(statistics))
    report.add("mean cosine, same person / different people", f"{scale.same:.3f} / {scale.different:.3f}")
    report.add(
        f"id_score of the nearest of {args.training_people} training people",
        f"{statistics.nearest_training_person:.3f}",
    )
    report.add("id_score of somebody of the same appearance", f"{statistics.same_appearance:.3f}")
    report.publish(args.json)


if __name__ == "__main__":
    run(main)
