"""Photos of held-out people that something was missing from, and what was made of them: row by row, by the judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.report import Report
from idgen.console import say
from idgen.evaluation.rendered import Photos
from idgen.faces import FaceEncoder
from idgen.files import atomic_write
from idgen.losses.perceptual import feature_distance
from idgen.metrics import Interval, PhotoStatistics, bootstrap_means, psnr, sharpness_ratio, ssim
from idgen.metrics.embedding import embed_at
from idgen.metrics.identity import similarity_to
from idgen.metrics.optional import MissingExtra, load_lpips
from idgen.models.probe import load_probe, to_network
from idgen.sheet import SheetRow, contact_sheet

Distance = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class Scores:
    """What the judge and the pictures say of one row.

    Attributes:
        each: (people,) id_scores.
        identity: their mean.
        figures: others, by name.
    """

    each: Tensor
    identity: Interval
    figures: dict[str, float]


class Scale:
    """The photos that every row is compared with: shot 0 is what is repaired, the last ones are the person's others.

    Args:
        references: how many shots after the first may be shown to a model.
        distance: of pictures from their originals, reported beside the others.
    """

    def __init__(
        self, judge: FaceEncoder, photos: Photos, references: int, seed: int, distance: Distance | None = None
    ) -> None:
        self.judge, self.photos, self.distance, self.seed = judge, photos, distance, seed
        shape = photos.images.shape[:2]
        vectors = embed_at(judge, photos.flat, photos.landmarks.flatten(0, 1)).unflatten(0, shape)
        self.statistics = PhotoStatistics.of(vectors)
        self.others = vectors[:, 1 + references :]

    def score(self, pictures: Tensor) -> Scores:
        """Pictures (people, size, size, 3) uint8, aligned by the true landmarks of shot 0."""
        judged = embed_at(self.judge, pictures, self.photos.landmarks[:, 0])[:, None]
        originals = self.photos.images[:, 0]
        scaled: Any = self.statistics.score
        each = scaled(similarity_to(judged, self.others))
        figures = {
            "towards the next person": float(scaled(similarity_to(judged, self.others.roll(-1, 0))).mean()),
            "psnr": float(psnr(pictures, originals).mean()),
            "ssim": float(ssim(pictures, originals).mean()),
            "sharpness": sharpness_ratio(pictures, originals),
        }
        if self.distance is not None:
            figures["distance"] = float(self.distance(pictures, originals))
        return Scores(each, bootstrap_means(each, seed=self.seed), figures)

    def gain(self, scores: Scores, over: Scores) -> Interval:
        """By how much one row's id_score is higher, person by person."""
        return bootstrap_means(scores.each - over.each, seed=self.seed)


def add_rows(report: Report, title: str, scores: dict[str, Scores]) -> None:
    """One line per row of pictures."""
    for name, one in scores.items():
        figures = ", ".join(f"{key} {value:.3f}" for key, value in one.figures.items())
        report.add(f"{title}: {name}", f"id_score {one.identity}, {figures}")
    report.numbers[title] = {name: {"id_score": one.identity.as_dict(), **one.figures} for name, one in scores.items()}


def perceptual_distance(device: torch.device) -> tuple[str, Distance]:
    """LPIPS where it is installed; else its formula over the layers of the attribute probe, which no recogniser made."""
    with suppress(MissingExtra):
        lpips = load_lpips(device)
        return "LPIPS (VGG)", lambda *both: lpips(*(one.permute(0, 3, 1, 2) / 255 for one in both)).mean()
    probe = load_probe(device=device)

    @torch.no_grad()
    def between(pictures: Tensor, originals: Tensor) -> Tensor:
        parts = zip(pictures.split(32), originals.split(32), strict=True)
        far = [feature_distance(*(probe.maps(to_network(one.to(device))) for one in both)).cpu() for both in parts]
        return torch.cat(far).mean()

    return "as LPIPS, of the attribute probe's layers", between


def as_pictures(images: Tensor) -> list[Image.Image]:
    """(n, size, size, 3) uint8 -> PIL."""
    return [Image.fromarray(picture.numpy()) for picture in images]


def as_bytes(images: Any) -> Tensor:
    """What a pipeline gives as "np" -> uint8."""
    return (torch.as_tensor(images).float() * 255).round().clamp(0, 255).byte()


def generators(seed: int, people: Sequence[int]) -> list[torch.Generator]:
    """One a person, the same in every row."""
    return [torch.Generator().manual_seed(seed * 1_000_003 + index) for index in people]


def save_sheet(file: Path, rows: dict[str, Tensor], people: int = 12) -> None:
    """The first people's pictures, a row a way."""
    sheet = [SheetRow(as_pictures(row[:people]), title=title) for title, row in rows.items()]
    with atomic_write(file) as temporary:
        contact_sheet(sheet, columns=people, cell=128).save(temporary)
    say(f"sheet: {file}")
