"""Every row of the bars of the mini family, on held-out people, by the judge.

    python -m benchmarks.mini_bars --people 100 --images 4 --json bars.json

Shots of each person: 0 to 3 are the references (0 alone for "one reference"), 4 to 9 the other photos, the next ones real
photos that stand in for generated images in the baseline of real photos and in the diversity and sharpness ratios.
Guidance is chosen on `--split validation` (people 200000 and up) and then left alone on `--split test` (300000 and up).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks import bars_pictures
from benchmarks.bars_identity import Gallery, add_identity_rows, baseline_table, baselines, measure_identity, pooled
from benchmarks.faces import Faces
from benchmarks.generation import generate_faces, load_arc2face, load_base
from benchmarks.guides import add_identity_guidance, add_reader
from benchmarks.report import Report, add_split, attempted, chosen_people, parser, run, timed
from idgen.console import say
from idgen.devices import resolve_device, resolve_dtype
from idgen.evaluation.prompts import choose_prompts
from idgen.evaluation.rendered import Photos, take_photos, training_photos
from idgen.files import atomic_write
from idgen.models.probe import load_probe
from idgen.models.recogniser_reader import load_reader
from idgen.sheet import SheetRow, contact_sheet

REFERENCES, OTHERS = 4, 6  # photos of each person
LOOKALIKES, LOOKALIKE_SHOTS = 3, 4  # rivals in the four-way test, and photos of each
SECTIONS = ("identity", "diversity", "sharpness", "autoencoder", "prompts", "speed")


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    people = chosen_people(args)
    report = Report(
        f"Mini family, {args.people} {args.split} people x {args.images} images, {args.steps} steps, guidance {args.guidance:g}"
        f" and {args.identity_guidance:g} by the recogniser"
    )
    report.numbers |= {name: getattr(args, name) for name in ("split", "people", "images", "steps", "guidance", "seed")}
    report.numbers["identity_guidance"] = args.identity_guidance
    report.numbers |= {"training_people": args.training_people, "dtype": str(dtype), "device": str(device)}
    with timed("photos"):
        photos = take_photos(people, range(REFERENCES + OTHERS + args.images), cache=args.cache, workers=args.workers)
    standins = photos.shots(slice(REFERENCES + OTHERS, None))
    faces = Faces(device, args.cache)
    if args.prepare:
        make_gallery(faces, photos, people, args)
        bars_pictures.prompt_photos(choose_prompts(people[0], per_value=args.per_value), args.cache, args.workers)
        return
    pipe = load_arc2face(device, dtype)
    if {"identity", "diversity", "sharpness"} & set(args.sections):
        with timed("embeddings of real photos"):
            gallery = make_gallery(faces, photos, people, args)
        settings = {"steps": args.steps, "guidance": args.guidance}
        settings |= {"encoder": faces.mini, "identity_guidance": args.identity_guidance}
        with timed("generating, one reference"):
            one = generate_faces(pipe, pooled(gallery.conditioning[:, :1]), args.images, seed=args.seed, **settings)
        if "identity" in args.sections:
            with timed("generating, four references"):
                four = generate_faces(pipe, pooled(gallery.conditioning), args.images, seed=args.seed + 1, **settings)
            with timed("identity"):
                _identity(report, faces, gallery, one, four, args.seed)
        if args.sheet:
            _save_sheet(args.sheet, photos, one, gallery, faces.embed(one).judge)
        if "diversity" in args.sections:
            with attempted(report, "diversity over real renders"):
                bars_pictures.add_diversity(report, load_probe(device=device), one, standins.images, args.seed)
        if "sharpness" in args.sections:
            bars_pictures.add_sharpness(report, faces.mini, one, standins)
    if "autoencoder" in args.sections:
        with timed("autoencoder"):
            bars_pictures.add_autoencoder(report, pipe.vae, faces.judge, standins)
    if "prompts" in args.sections:
        with attempted(report, "prompt words obeyed"):
            base = load_base(device, dtype)
            prompt_settings = {"per_value": args.per_value, "steps": args.steps, "guidance": args.text_guidance}
            prompt_settings |= {"cache": args.cache, "workers": args.workers}
            prompt_settings["reader"] = load_reader(args.reader, device)
            bars_pictures.add_prompts(
                report, base, load_probe(device=device), people[0], seed=args.seed, **prompt_settings
            )
    if "speed" in args.sections:
        for strength in sorted({0.0, args.identity_guidance}):
            bars_pictures.add_speed(
                report, pipe, faces.mini, steps=args.steps, guidance=args.guidance, identity_guidance=strength
            )
    report.publish(args.json)
    if "baselines" in report.numbers:
        print("\n" + baseline_table(report.numbers["baselines"]))


def make_gallery(faces: Faces, photos: Photos, people: range, args: argparse.Namespace) -> Gallery:
    """Embeddings of everything real that generated images are compared with."""
    kept = {"cache": args.cache, "workers": args.workers}
    shots = range(REFERENCES, REFERENCES + LOOKALIKE_SHOTS)
    rivals = [take_photos(people, shots, variant=variant, **kept) for variant in range(LOOKALIKES)]
    population = training_photos(args.training_people, args.training_data, **kept)
    own = faces.embed(photos.images, keep=True)
    everybody_else = REFERENCES + OTHERS
    return Gallery(
        references=own.judge[:, :REFERENCES],
        others=own.judge[:, REFERENCES:everybody_else],
        standins=own.judge[:, everybody_else:],
        lookalikes=torch.stack([faces.embed(rival.images, keep=True).judge for rival in rivals], 1),
        training=faces.embed(population, keep=True),
        conditioning=own.mini[:, :REFERENCES],
    )


def _identity(report: Report, faces: Faces, gallery: Gallery, one: Tensor, four: Tensor, seed: int) -> None:
    scores = [
        measure_identity(faces.embed(images).judge, gallery, shown, seed)
        for images, shown in ((one, 1), (four, REFERENCES))
    ]
    add_identity_rows(report, *scores)
    report.numbers |= {"one_reference": scores[0], "four_references": scores[1], "baselines": baselines(gallery, seed)}


def _save_sheet(
    file: Path, photos: Photos, generated: Tensor, gallery: Gallery, judged: Tensor, people: int = 12
) -> None:
    """Each row: the reference, another photo, then the generated images with their cosine to the other photos."""
    from idgen.metrics.identity import unit

    cosines = torch.einsum("pgd,pod->pg", unit(judged), unit(gallery.others)) / gallery.others.shape[1]
    rows = []
    for person in range(min(people, len(generated))):
        pictures = [photos.images[person, 0], photos.images[person, REFERENCES], *generated[person]]
        labels = ["reference", "other", *(f"{value:.2f}" for value in cosines[person].tolist())]
        rows.append(SheetRow([Image.fromarray(picture.numpy()) for picture in pictures], labels))
    with atomic_write(file) as temporary:
        contact_sheet(rows, cell=128).save(temporary)
    say(f"sheet: {file}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    flags = parser(__doc__, people=100)
    flags.add_argument("--images", type=int, default=4, help="generated per person and setting (default: 4)")
    add_split(flags)
    flags.add_argument("--steps", type=int, default=20)
    flags.add_argument("--guidance", type=float, default=1.1, help="of the ID generator (default: 1.1)")
    add_identity_guidance(flags, "as `idgen generate` has it")
    flags.add_argument("--text-guidance", type=float, default=3.0, help="of the text-to-face base (default: 3)")
    add_reader(flags)
    flags.add_argument("--per-value", type=int, default=6, help="prompts that name each value of an attribute")
    flags.add_argument("--training-people", type=int, default=1800, help="among whom the nearest is sought")
    flags.add_argument("--training-data", type=Path, metavar="DIR", help="their photos, to save rendering them again")
    flags.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    flags.add_argument(
        "--prepare",
        action="store_true",
        help="only fill the cache with real photos and their embeddings; needs no generator",
    )
    flags.add_argument("--sheet", type=Path, metavar="PNG", help="also save a contact sheet of a dozen people")
    flags.set_defaults(cache=Path("runs/photos"))
    args = flags.parse_args(argv)
    if args.people < 10 or args.images < 2:
        flags.error("the rates need at least 10 people and 2 images each")
    return args


if __name__ == "__main__":
    run(main)
