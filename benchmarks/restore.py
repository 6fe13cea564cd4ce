"""Restoration from references, on held-out people, by the judge.

    python -m benchmarks.restore --people 100 --json restore.json

Of each person shot 0 is damaged (ReF-LDM's severe and moderate presets, at 128 px) and restored, shots 1 to 8 are references,
9 to 14 the other photos that it is compared with. Faces are aligned by the undamaged photo's true landmarks in every row, so
that no row wins or loses by a detector. `benchmarks/restore_speed.py` has what it costs.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.report import Report, parser, run, timed
from idgen.adapters.cachekv import ReferenceCache
from idgen.console import progress, say
from idgen.data.degradation import PRESETS, degrade, draw_damage
from idgen.devices import resolve_device, resolve_dtype
from idgen.evaluation.rendered import TEST, VALIDATION, Photos, take_photos
from idgen.faces import FaceEncoder
from idgen.files import atomic_write
from idgen.metrics import Interval, PhotoStatistics, bootstrap_means, psnr, sharpness_ratio, ssim
from idgen.metrics.embedding import embed_at
from idgen.metrics.identity import similarity_to
from idgen.metrics.optional import MissingExtra, load_lpips
from idgen.pipelines import ReferenceRestorePipeline
from idgen.sheet import SheetRow, contact_sheet

REFERENCES, OTHERS = 8, 6
COUNTS = (1, 3, 5, 8)  # ReF-LDM's table 5
WITH = 5  # references of the rows that the bars compare


@dataclass(frozen=True)
class Scores:
    """What the judge and the pictures say of one row."""

    identity: Interval
    figures: dict[str, float]


class Scale:
    """The photos that every row of a preset is compared with."""

    def __init__(self, judge: FaceEncoder, photos: Photos, distance: Any, seed: int) -> None:
        self.judge, self.photos, self.distance, self.seed = judge, photos, distance, seed
        shape = photos.images.shape[:2]
        vectors = embed_at(judge, photos.flat, photos.landmarks.flatten(0, 1)).unflatten(0, shape)
        self.statistics = PhotoStatistics.of(vectors)
        self.others = vectors[:, 1 + REFERENCES :]

    def score(self, pictures: Tensor) -> Scores:
        """Pictures (people, size, size, 3) uint8."""
        judged = embed_at(self.judge, pictures, self.photos.landmarks[:, 0])[:, None]
        originals = self.photos.images[:, 0]
        cosines = similarity_to(judged, self.others)
        wrong = similarity_to(judged, self.others.roll(-1, 0))
        scaled: Any = self.statistics.score
        return Scores(
            bootstrap_means(scaled(cosines), seed=self.seed),
            {
                "towards the next person": float(scaled(wrong).mean()),
                "psnr": float(psnr(pictures, originals).mean()),
                "ssim": float(ssim(pictures, originals).mean()),
                "distance": float(self.distance(pictures, originals)),
                "sharpness": sharpness_ratio(pictures, originals),
            },
        )


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    first = {"test": TEST, "validation": VALIDATION}[args.split]
    people = range(first, first + args.people)
    with timed("photos"):
        photos = take_photos(people, range(1 + REFERENCES + OTHERS), cache=args.cache, workers=args.workers)
    pipe = ReferenceRestorePipeline.from_pretrained(args.model, torch_dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    name, distance = _distance(pipe, device)
    report = Report(
        f"Restoration, {args.people} {args.split} people, {args.steps} steps, guidance {args.guidance:g}; distance: {name}"
    )
    report.numbers |= {key: getattr(args, key) for key in ("split", "people", "steps", "guidance", "seed")}
    scale = Scale(FaceEncoder.from_pretrained("judge", device=device), photos, distance, args.seed)
    with timed("references"):
        caches = _caches(pipe, photos, max(args.counts))
    for preset in args.presets:
        with timed(preset):
            bad = damage(photos.images[:, 0], preset, args.seed)
            rows = restore_rows(pipe, bad, caches, args)
            scores = {row: scale.score(pictures) for row, pictures in rows.items()}
            add_rows(report, preset, scores)
            if args.sheet:
                _save_sheet(args.sheet.with_stem(f"{args.sheet.stem}-{preset}"), photos, rows)
    report.publish(args.json)


def damage(images: Tensor, preset: str, seed: int) -> Tensor:
    """Each picture (people, size, size, 3) uint8 with a damage of its own."""
    size = images.shape[1]
    damaged = []
    for index, image in enumerate(images):
        generators = random.Random(f"{seed}-{index}"), np.random.RandomState((seed * 100_003 + index) % 2**32)
        damaged.append(degrade(image.numpy(), draw_damage(PRESETS[preset], size, size, generators=generators)))
    return torch.from_numpy(np.stack(damaged))


def restore_rows(
    pipe: ReferenceRestorePipeline, bad: Tensor, caches: dict[int, list[ReferenceCache]], args: argparse.Namespace
) -> dict[str, Tensor]:
    """Every way of restoring the same photos from the same noise: pictures (people, size, size, 3) uint8 by row."""
    nobody: list[ReferenceCache | None] = [None] * len(bad)
    shown = {"0 references": nobody} | {f"{count} references": list(each) for count, each in caches.items()}
    most = max(count for count in caches if count <= WITH)
    shown["the next person's references"] = [*caches[most][1:], caches[most][0]]
    rows = {"damaged photo": bad}
    for name, people in shown.items():
        rows[name] = _restored(pipe, bad, people, args)
    return rows


def add_rows(report: Report, preset: str, scores: dict[str, Scores]) -> None:
    """One line per row, and the two bars."""
    for name, one in scores.items():
        figures = ", ".join(f"{key} {value:.3f}" for key, value in one.figures.items())
        report.add(f"{preset}: {name}", f"id_score {one.identity}, {figures}")
    report.numbers[preset] = {name: {"id_score": one.identity.as_dict(), **one.figures} for name, one in scores.items()}
    with_references, without = scores.get(f"{WITH} references"), scores["0 references"]
    if with_references is not None:
        score = with_references.identity.value
        gain = score - without.identity.value
        severe = preset == "severe"
        report.add(f"{preset}: id_score with {WITH} references", f"{score:.3f}", "0.75" if severe else "")
        report.add(f"{preset}: over that with none", f"{gain:+.3f}", "+0.25" if severe else "")
        for name, better in (("psnr", 1), ("distance", -1)):
            change = better * (with_references.figures[name] - without.figures[name])
            report.add(f"{preset}: {name} better than with none by", f"{change:+.3f}", "0")


@torch.no_grad()
def _restored(
    pipe: ReferenceRestorePipeline, bad: Tensor, people: Sequence[ReferenceCache | None], args: argparse.Namespace
) -> Tensor:
    made = []
    starts = range(0, len(bad), args.batch)
    for start in progress(starts, len(starts), "restoring"):
        part = slice(start, start + args.batch)
        images = pipe(
            [Image.fromarray(picture.numpy()) for picture in bad[part]],
            cache=list(people[part]),
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            generator=[torch.Generator().manual_seed(args.seed * 1_000_003 + i) for i in range(len(bad))[part]],
            output_type="np",
        ).images
        made.append((torch.from_numpy(images) * 255).round().clamp(0, 255).byte())
    return torch.cat(made)


def _caches(pipe: ReferenceRestorePipeline, photos: Photos, most: int) -> dict[int, list[ReferenceCache]]:
    """Each person's cache for every number of references."""
    caches: dict[int, list[ReferenceCache]] = {count: [] for count in COUNTS if count <= most}
    for person in photos.images:
        pictures = [Image.fromarray(picture.numpy()) for picture in person[1 : 1 + most]]
        for count, each in caches.items():
            each.append(pipe.cache(pictures[:count]))
    return caches


def _distance(pipe: ReferenceRestorePipeline, device: torch.device) -> tuple[str, Any]:
    """LPIPS where it is installed; else how far apart the autoencoder's latents lie, which no recogniser made."""
    with suppress(MissingExtra):
        lpips = load_lpips(device)
        return "LPIPS (VGG)", lambda *both: lpips(*(one.permute(0, 3, 1, 2) / 255 for one in both)).mean()

    @torch.no_grad()
    def latents(pictures: Tensor) -> Tensor:
        pixels = pictures.permute(0, 3, 1, 2).to(device, pipe.vq.dtype) / 127.5 - 1
        return torch.cat([pipe.vq.encode(part).latents.float().cpu() for part in pixels.split(16)])

    def between(pictures: Tensor, originals: Tensor) -> Tensor:
        first, second = latents(pictures), latents(originals)
        return ((first - second) ** 2).mean() / second.var()

    return "of the autoencoder's latents, in shares of their variance", between


def _save_sheet(file: Path, photos: Photos, rows: dict[str, Tensor], people: int = 12) -> None:
    pictures = {"original": photos.images[:, 0], "a reference": photos.images[:, 1], **rows}
    sheet = [
        SheetRow([Image.fromarray(picture.numpy()) for picture in row[:people]], title=title)
        for title, row in pictures.items()
    ]
    with atomic_write(file) as temporary:
        contact_sheet(sheet, cell=128).save(temporary)
    say(f"sheet: {file}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    flags = parser(__doc__, people=100)
    flags.add_argument("--split", choices=("test", "validation"), default="test")
    flags.add_argument("--model", default="mini", help="of ReferenceRestorePipeline (default: mini)")
    flags.add_argument("--presets", nargs="+", choices=tuple(PRESETS), default=("severe", "moderate"))
    flags.add_argument("--counts", nargs="+", type=int, choices=COUNTS, default=COUNTS, help="references")
    flags.add_argument("--steps", type=int, default=20)
    flags.add_argument("--guidance", type=float, default=1.5)
    flags.add_argument("--batch", type=int, default=10)
    flags.add_argument("--sheet", type=Path, metavar="PNG", help="also save contact sheets, one a preset")
    flags.set_defaults(cache=Path("runs/photos"))
    args = flags.parse_args(argv)
    if args.people < 2:
        flags.error("a person needs a next one: at least 2 people")
    return args


if __name__ == "__main__":
    run(main)
