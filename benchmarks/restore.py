"""Restoration from references, on held-out people, by the judge.

    python -m benchmarks.restore --people 100 --json restore.json --sheet restore.png
    python -m benchmarks.restore --also runs/mini/restore-channel/weights runs/mini/restore-spatial/weights

Of each person shot 0 is damaged (ReF-LDM's severe and moderate presets, at 128 px) and restored, shots 1 to 8 are references,
9 to 14 the other photos that it is compared with. Faces are aligned by the undamaged photo's true landmarks in every row, so
that no row wins or loses by a detector. `--also` adds the rows of ReF-LDM's table 2, with what each costs; at the published size
`benchmarks/restore_speed.py` has that.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.guides import add_identity_guidance
from benchmarks.memory import peak_memory
from benchmarks.repaired import (
    Scale,
    Scores,
    add_rows,
    as_bytes,
    as_pictures,
    generators,
    perceptual_distance,
    save_sheet,
)
from benchmarks.report import Report, add_split, chosen_people, parser, run, timed
from idgen.adapters.cachekv import ReferenceCache
from idgen.console import progress
from idgen.data.degradation import PRESETS, degrade, draw_damage
from idgen.data.real_world import degrade_photo, draw_real_world
from idgen.devices import resolve_device, resolve_dtype
from idgen.evaluation.rendered import Photos, take_photos
from idgen.faces import FaceEncoder
from idgen.identity import Identity
from idgen.metrics.embedding import embed_at
from idgen.pipelines import ReferenceRestorePipeline
from idgen.rewards.ascent import guide_identity

REFERENCES, OTHERS = 8, 6
COUNTS = (1, 3, 5, 8)  # ReF-LDM's table 5
REAL_WORLD = "real_world"  # not one of ReF-LDM's presets
WITH = 5  # references of the rows that the bars compare
GUIDED = ", guided by the recogniser"

Guide = Callable[[slice], ReferenceRestorePipeline]  # what restores so many of the people


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    people = chosen_people(args)
    with timed("photos"):
        photos = take_photos(people, range(1 + REFERENCES + OTHERS), cache=args.cache, workers=args.workers)
    pipe = _load(args.model, device, dtype)
    also = [(folder, _load(folder, device, dtype)) for folder in args.also]
    others = {f"{WITH} references, {other.config.conditioning} ({folder})": other for folder, other in also}
    name, distance = perceptual_distance(device)
    report = Report(
        f"Restoration, {args.people} {args.split} people, {args.steps} steps, guidance {args.guidance:g}; distance: {name}"
    )
    report.numbers |= {key: getattr(args, key) for key in ("split", "people", "steps", "guidance", "seed")}
    scale = Scale(FaceEncoder.from_pretrained("judge", device=device), photos, REFERENCES, args.seed, distance)
    with timed("references"):
        caches = _caches(pipe, photos, max(args.counts))
        guide = _guide(pipe, photos, args) if args.identity_guidance else None
    for preset in args.presets:
        with timed(preset):
            bad = damage(photos.images[:, 0], preset, args.seed)
            rows = restore_rows(pipe, bad, caches, args, guide)
            for row, other in others.items():
                shown = [as_pictures(person[1 : 1 + WITH]) for person in photos.images]
                rows[row] = _restored(other, bad, args, references=shown)
            scores = {row: scale.score(made) for row, made in rows.items()}
            add_rows(report, preset, scores)
            for row in (f"{WITH} references", f"{WITH} references{GUIDED}"):
                add_bars(report, preset, row, scores, scale)
            if args.sheet:
                pictures = {"original": photos.images[:, 0], "a reference": photos.images[:, 1], **rows}
                save_sheet(args.sheet.with_stem(f"{args.sheet.stem}-{preset}"), pictures)
    with timed("costs"):
        _add_costs(report, dict(zip(others, args.also, strict=True)), args)
    report.publish(args.json)


def damage(images: Tensor, preset: str, seed: int) -> Tensor:
    """Each picture (people, size, size, 3) uint8 with a damage of its own."""
    size = images.shape[1]
    damaged = []
    for index, image in enumerate(images):
        chance = random.Random(f"{seed}-{index}"), np.random.RandomState((seed * 100_003 + index) % 2**32)
        if preset == REAL_WORLD:
            damaged.append(degrade_photo(image.numpy(), draw_real_world(size, size, chance[1])))
        else:
            damaged.append(degrade(image.numpy(), draw_damage(PRESETS[preset], size, size, generators=chance)))
    return torch.from_numpy(np.stack(damaged))


def restore_rows(
    pipe: ReferenceRestorePipeline,
    bad: Tensor,
    caches: dict[int, list[ReferenceCache]],
    args: argparse.Namespace,
    guide: Guide | None = None,
) -> dict[str, Tensor]:
    """Every way of restoring the same photos from the same noise: pictures (people, size, size, 3) uint8 by row."""
    nobody: list[ReferenceCache | None] = [None] * len(bad)
    shown = {"0 references": nobody} | {f"{count} references": list(each) for count, each in caches.items()}
    most = max(count for count in caches if count <= WITH)
    shown["the next person's references"] = [*caches[most][1:], caches[most][0]]
    rows = {"damaged photo": bad}
    for name, people in shown.items():
        rows[name] = _restored(pipe, bad, args, cache=people)
    if guide is not None:
        rows[f"{most} references{GUIDED}"] = _restored(pipe, bad, args, guide, cache=caches[most])
    return rows


def add_bars(report: Report, preset: str, row: str, scores: dict[str, Scores], scale: Scale) -> None:
    """What references have to bring, in one of the rows."""
    with_references, without = scores.get(row), scores["0 references"]
    if with_references is None:
        return
    severe = preset == "severe"
    report.add(f"{preset}, {row}: id_score", str(with_references.identity), "0.75" if severe else "")
    gain = scale.gain(with_references, without)
    report.add(f"{preset}, {row}: id_score over that with none", str(gain), "+0.25" if severe else "")
    for name, better in (("psnr", 1), ("distance", -1)):
        change = better * (with_references.figures[name] - without.figures[name])
        report.add(f"{preset}, {row}: {name} better than with none by", f"{change:+.3f}", "0")


def _guide(pipe: ReferenceRestorePipeline, photos: Photos, args: argparse.Namespace) -> Guide:
    """By what the mini recogniser sees in the references that the bars are about."""
    encoder = FaceEncoder.from_pretrained("mini", device=pipe.device)
    shown = slice(1, 1 + WITH)
    people = [
        Identity(embed_at(encoder, images[shown], landmarks[shown]), encoder.recogniser)
        for images, landmarks in zip(photos.images, photos.landmarks, strict=True)
    ]
    return lambda part: guide_identity(encoder, pipe.vq, people[part], args.identity_guidance).guided(pipe)


def _restored(
    pipe: ReferenceRestorePipeline,
    bad: Tensor,
    args: argparse.Namespace,
    guide: Guide | None = None,
    **people: Sequence[Any],
) -> Tensor:
    """Args: people: `cache` or `references`, one entry a photo."""
    made = []
    starts = range(0, len(bad), args.batch)
    for start in progress(starts, len(starts), "restoring"):
        part = slice(start, start + args.batch)
        used = pipe if guide is None else guide(part)
        images = used(
            as_pictures(bad[part]),
            **{name: list(each[part]) for name, each in people.items()},
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            generator=generators(args.seed, range(len(bad))[part]),
            output_type="np",
        ).images
        made.append(as_bytes(images))
    return torch.cat(made)


def _load(model: str, device: torch.device, dtype: torch.dtype) -> ReferenceRestorePipeline:
    pipe = ReferenceRestorePipeline.from_pretrained(model, torch_dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _caches(pipe: ReferenceRestorePipeline, photos: Photos, most: int) -> dict[int, list[ReferenceCache]]:
    """Each person's cache for every number of references."""
    caches: dict[int, list[ReferenceCache]] = {count: [] for count in COUNTS if count <= most}
    for person in photos.images:
        pictures = as_pictures(person[1 : 1 + most])
        for count, each in caches.items():
            each.append(pipe.cache(pictures[:count]))
    return caches


def cost(model: str, references: int, args: argparse.Namespace, repeats: int = 3) -> tuple[float, int]:
    """Seconds of a restoration from photos to a photo, and the most memory of the first, beyond the model's own."""
    device = resolve_device(args.device)
    pipe = _load(model, device, resolve_dtype(args.dtype, device))
    noise = torch.randint(0, 256, (1 + references, pipe.config.size, pipe.config.size, 3), dtype=torch.uint8)
    bad, *others = as_pictures(noise)

    def once() -> None:
        pipe(bad, others or None, num_inference_steps=args.steps, guidance_scale=args.guidance)

    with peak_memory(device) as peak:
        once()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        once()
        times.append(time.perf_counter() - start)
    return statistics.median(times), peak.bytes


def _add_costs(report: Report, others: dict[str, str], args: argparse.Namespace) -> None:
    ways = {"0 references": (args.model, 0), f"{WITH} references": (args.model, WITH)}
    ways |= {name: (folder, WITH) for name, folder in others.items()}
    report.numbers["costs"] = {}
    for name, (model, references) in ways.items():
        # A process of its own: memory that was once taken is not given back.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            seconds, size = process.submit(cost, model, references, args).result()
        report.add(f"{name}: a restoration", f"{seconds:.2f} s, {size / 1e6:.0f} MB beyond the model's own")
        report.numbers["costs"][name] = {"seconds": seconds, "bytes": size}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    flags = parser(__doc__, people=100)
    add_split(flags)
    flags.add_argument("--model", default="mini", help="of ReferenceRestorePipeline (default: mini)")
    flags.add_argument("--presets", nargs="+", choices=(*PRESETS, REAL_WORLD), default=("severe", "moderate"))
    flags.add_argument("--counts", nargs="+", type=int, choices=COUNTS, default=COUNTS, help="references")
    flags.add_argument("--steps", type=int, default=20)
    flags.add_argument("--guidance", type=float, default=1.5)
    add_identity_guidance(flags, "in a row of its own")
    flags.add_argument("--batch", type=int, default=10)
    flags.add_argument(
        "--also",
        nargs="+",
        default=(),
        metavar="DIR",
        help="weights of train/restore.py that read references otherwise (--conditioning): rows of ReF-LDM's table 2",
    )
    flags.add_argument("--sheet", type=Path, metavar="PNG", help="also save contact sheets, one a preset")
    flags.set_defaults(cache=Path("runs/photos"))
    args = flags.parse_args(argv)
    if args.people < 2:
        flags.error("a person needs a next one: at least 2 people")
    return args


if __name__ == "__main__":
    run(main)
