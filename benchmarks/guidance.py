"""Choose the guidance of the ID generator: identity against diversity and sharpness, on validation people only.

python -m benchmarks.guidance --people 40 --guidance 1 1.5 2 3
python -m benchmarks.guidance --people 40 --guidance 2 --identity-guidance 0 0.005 0.01 --held-out runs/mini/held_out/weights
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from benchmarks.bars_identity import pooled
from benchmarks.faces import Faces
from benchmarks.generation import generate_faces, load_arc2face
from benchmarks.report import Report, parser, run, timed
from idgen.devices import resolve_device, resolve_dtype
from idgen.evaluation.rendered import VALIDATION, take_photos
from idgen.metrics import PhotoStatistics, id_score, pixel_spread, rank_one, sharpness_ratio
from idgen.metrics.embedding import embed_at, embed_faces
from idgen.metrics.identity import found, similarity_to, unit
from idgen.rewards.identity import load_encoder

OTHERS = 6


def main(argv: Sequence[str] | None = None) -> None:
    flags = parser(__doc__, people=40)
    flags.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0])
    flags.add_argument("--identity-guidance", type=float, nargs="+", default=[0.0], help="by the mini recogniser")
    flags.add_argument("--references", type=int, default=1, help="photos shown of each person (default: 1)")
    flags.add_argument(
        "--held-out", type=Path, metavar="DIR", help="weights of a third recogniser, for its mean cosine"
    )
    flags.add_argument("--steps", type=int, default=20)
    flags.add_argument("--images", type=int, default=3, help="generated per person")
    flags.set_defaults(cache=Path("runs/photos"))
    args = flags.parse_args(argv)
    device = resolve_device(args.device)
    people = range(VALIDATION, VALIDATION + args.people)
    photos = take_photos(people, range(args.references + OTHERS), cache=args.cache, workers=args.workers)
    faces = Faces(device, args.cache)
    real = faces.embed(photos.images, keep=True)
    others = real.judge[:, args.references :]
    statistics = PhotoStatistics.of(real.judge)
    held_out = load_encoder(args.held_out, device) if args.held_out else None
    if held_out is not None:
        third = embed_at(
            held_out,
            photos.images[:, args.references :].flatten(0, 1),
            photos.landmarks[:, args.references :].flatten(0, 1),
        )
        third = third.unflatten(0, (args.people, OTHERS))
    same_count = photos.images[:, args.references : args.references + args.images]
    pipe = load_arc2face(device, resolve_dtype(args.dtype, device))
    report = Report(
        f"Guidance on {args.people} validation people x {args.images} images, {args.steps} steps, one reference"
    )
    conditioning = pooled(real.mini[:, : args.references])
    for guidance, strength in product(args.guidance, args.identity_guidance):
        name = f"guidance {guidance:g}" + f", by the recogniser {strength:g}" * (strength > 0)
        with timed(name):
            start = time.perf_counter()
            images = generate_faces(
                pipe,
                conditioning,
                args.images,
                steps=args.steps,
                guidance=guidance,
                seed=args.seed,
                encoder=faces.mini,
                identity_guidance=strength,
            )
            seconds = (time.perf_counter() - start) / images.shape[:2].numel()
            made = faces.embed(images)
        figures = {
            "id_score": id_score(made.judge, others, statistics),
            "rank_one": float(rank_one(made.judge, others).mean()),
            "pixel_diversity": float(pixel_spread(images).mean() / pixel_spread(same_count).mean()),
            "sharpness": sharpness_ratio(images.flatten(0, 1), photos.flat),
            "faces_found": float(found(made.judge).double().mean()),
            "cosine_by_the_recogniser": float((unit(made.mini) * unit(conditioning)[:, None]).sum(-1).mean()),
            "seconds": seconds,
        }
        if held_out is not None:
            seen = embed_faces(held_out, images.flatten(0, 1)).unflatten(0, images.shape[:2])
            figures["cosine_by_a_third_recogniser"] = float(similarity_to(seen, third).mean())
        text = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())
        report.add(name, text)
        report.numbers[name] = figures
    report.publish(args.json)


if __name__ == "__main__":
    run(main)
