"""Choose the guidance of the ID generator: identity against diversity and sharpness, on validation people only.

python -m benchmarks.guidance --people 40 --guidance 1 1.5 2 3
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.bars_identity import pooled
from benchmarks.faces import Faces
from benchmarks.generation import generate_faces, load_arc2face
from benchmarks.report import Report, parser, run, timed
from idgen.devices import resolve_device, resolve_dtype
from idgen.evaluation.rendered import VALIDATION, take_photos
from idgen.metrics import PhotoStatistics, id_score, pixel_spread, rank_one, sharpness_ratio

REFERENCES, OTHERS = 1, 6


def main(argv: Sequence[str] | None = None) -> None:
    flags = parser(__doc__, people=40)
    flags.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0])
    flags.add_argument("--steps", type=int, default=20)
    flags.add_argument("--images", type=int, default=3, help="generated per person")
    flags.set_defaults(cache=Path("runs/photos"))
    args = flags.parse_args(argv)
    device = resolve_device(args.device)
    people = range(VALIDATION, VALIDATION + args.people)
    photos = take_photos(people, range(REFERENCES + OTHERS), cache=args.cache, workers=args.workers)
    faces = Faces(device, args.cache)
    real = faces.embed(photos.images, keep=True)
    others = real.judge[:, REFERENCES:]
    statistics = PhotoStatistics.of(real.judge)
    same_count = photos.images[:, REFERENCES : REFERENCES + args.images]
    pipe = load_arc2face(device, resolve_dtype(args.dtype, device))
    report = Report(
        f"Guidance on {args.people} validation people x {args.images} images, {args.steps} steps, one reference"
    )
    for guidance in args.guidance:
        with timed(f"guidance {guidance:g}"):
            conditioning = pooled(real.mini[:, :REFERENCES])
            images = generate_faces(
                pipe, conditioning, args.images, steps=args.steps, guidance=guidance, seed=args.seed
            )
            judged = faces.embed(images).judge
        figures = {
            "id_score": id_score(judged, others, statistics),
            "rank_one": float(rank_one(judged, others).mean()),
            "pixel_diversity": float(pixel_spread(images).mean() / pixel_spread(same_count).mean()),
            "sharpness": sharpness_ratio(images.flatten(0, 1), photos.flat),
        }
        text = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())
        report.add(f"guidance {guidance:g}", text)
        report.numbers[f"guidance_{guidance:g}"] = figures
    report.publish(args.json)


if __name__ == "__main__":
    run(main)
