"""Words for Arc2Face, which reads none: `python -m benchmarks.words --people 100`.

Two pictures of each person from four references: of one an expression is asked for, of the other something else (glasses, hair,
where the head looks). A row without the words, one led by the text-to-face base (`idgen.adapters.arc2face.words`), and one that
the reader of words guides besides, all guided by the recogniser as `idgen generate` is. The attribute probe reads what is shown,
the judge says how like the person it is.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bars_identity import pooled
from benchmarks.expressions import ask_people
from benchmarks.faces import Faces
from benchmarks.generation import load_arc2face
from benchmarks.repaired import as_bytes, generators, save_sheet
from benchmarks.report import Report, add_split, chosen_people, parser, percent, run, timed
from idgen.adapters.arc2face.words import READER_START, READER_STRENGTH, SCALE, lead_by_words, load_text_base
from idgen.devices import resolve_device, resolve_dtype
from idgen.evaluation.prompts import asked_for
from idgen.evaluation.rendered import take_photos
from idgen.identity import Identity
from idgen.metrics import PhotoStatistics, bootstrap_means
from idgen.metrics.identity import found, similarity_to
from idgen.models.probe import AttributeProbe, load_probe
from idgen.models.recogniser_reader import load_reader
from idgen.rewards.ascent import STRENGTH, guide_identity, guide_words

REFERENCES, OTHERS, BATCH = 4, 6, 8
BESIDES = (
    "wearing glasses",
    "wearing sunglasses",
    "with blond hair",
    "with black hair",
    "looking left",
    "looking right",
)


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    people = chosen_people(args)
    photos = take_photos(people, range(REFERENCES + OTHERS), cache=args.cache, workers=args.workers)
    faces = Faces(device, args.cache)
    real = faces.embed(photos.images, keep=True)
    statistics, known = PhotoStatistics.of(real.judge), pooled(real.mini[:, :REFERENCES])
    pipe = load_arc2face(device, dtype)
    base = load_text_base(dtype=dtype, vae=pipe.vae).to(device)
    reader, probe = load_reader(device=device), load_probe()
    prompts = []  # two of each person
    for index, (expression,) in enumerate(ask_people(people, 1, args.seed)):
        noun = "woman" if "woman" in expression.text else "man"
        prompts += [expression.text, f"a photo of a {noun} {BESIDES[index % len(BESIDES)]}"]
    rows_of = known.repeat_interleave(2, 0)

    def draw(led: bool, read: bool) -> Tensor:
        made = []
        for start in range(0, len(prompts), BATCH):
            rows, texts = rows_of[start : start + BATCH], prompts[start : start + BATCH]
            guided: Any = lead_by_words(pipe, base, texts, args.text_guidance) if led else pipe
            if read:
                guided = guide_words(reader, pipe.vae, texts, args.words_guidance, args.words_start).guided(guided)
            shown = [Identity(row[None], faces.mini.recogniser) for row in rows]
            guided = guide_identity(faces.mini, pipe.vae, shown, STRENGTH).guided(guided)
            noise = generators(args.seed, range(start, start + len(rows)))
            options = {"num_inference_steps": args.steps, "guidance_scale": args.guidance, "output_type": "np"}
            made.append(as_bytes(guided(rows, generator=noise, **options).images))
        return torch.cat(made).unflatten(0, (-1, 2))

    report = Report(
        f"Words for Arc2Face, {args.people} {args.split} people, {len(prompts)} pictures, {args.steps} steps"
    )
    sheet = {}
    for name, led, read in (
        ("without the words", False, False),
        ("led by the base", True, False),
        ("led by the base, guided by the reader", True, True),
    ):
        with timed(name):
            made = draw(led, read)
        judged = faces.embed(made).judge
        interval = bootstrap_means(statistics.score(similarity_to(judged, real.judge[:, REFERENCES:])), seed=args.seed)
        shares = shown_shares(probe, made.flatten(0, 1), prompts)
        detail = ", ".join(f"{attribute} {percent(share)}" for attribute, share in shares.items())
        seen = float(found(judged).double().mean())
        report.add(name, f"id_score {interval}; shown: {detail}; faces found {seen:.3f}")
        report.numbers[name] = {"id_score": interval.as_dict(), "shown": shares, "found": seen}
        sheet[name] = made.flatten(0, 1)
    if args.sheet is not None:
        save_sheet(args.sheet, sheet, 16)
    report.publish(args.json)


def shown_shares(probe: AttributeProbe, pictures: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """By attribute, in how many of the pictures (n, size, size, 3) whose prompt names it the probe reads what was asked."""
    reading = probe.read(pictures)
    hits = defaultdict(list)
    for index, prompt in enumerate(prompts):
        for name, values in asked_for(prompt).items():
            hits[name].append(reading.values(name)[index] in values)
    return {name: sum(shown) / len(shown) for name, shown in sorted(hits.items())}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    flags = parser(__doc__, people=100)
    add_split(flags)
    flags.add_argument("--steps", type=int, default=20)
    flags.add_argument(
        "--guidance", type=float, default=1.1, help="over nobody, as `idgen generate` has it (default: 1.1)"
    )
    flags.add_argument("--text-guidance", type=float, default=SCALE, help=f"over plain words (default: {SCALE:g})")
    flags.add_argument("--words-guidance", type=float, default=READER_STRENGTH, help=f"default: {READER_STRENGTH}")
    flags.add_argument("--words-start", type=float, default=READER_START, help=f"default: {READER_START}")
    flags.add_argument("--sheet", type=Path, metavar="PNG", help="also save the first pictures")
    flags.set_defaults(cache=Path("runs/photos"))
    return flags.parse_args(argv)


if __name__ == "__main__":
    run(main)
