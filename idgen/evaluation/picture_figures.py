"""The figures about the pictures themselves: diversity, sharpness, landmarks, distances to targets and to real photos."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from idgen.errors import IdgenError
from idgen.evaluation.evidence import Evidence, Sheet
from idgen.evaluation.identity import FaceSet, per_person
from idgen.evaluation.material import Photo
from idgen.evaluation.prompts import TRACKED, obeyed
from idgen.evaluation.readers import VERSION, FaceReader, FaceTable, InceptionReader, VisionReader
from idgen.evaluation.results import Figure, NotRun
from idgen.metrics import (
    bootstrap_means,
    frechet_distance,
    head_pose,
    kernel_distance,
    landmark_distance,
    psnr,
    ssim,
)
from idgen.metrics.optional import load_clip_score, load_lpips, load_rating

SUBSETS = 50  # of the kernel distance
NO_TARGETS = "there is no original that each picture should equal: for restoration and inpainting only"
NO_PROMPTS = "the pictures were made without prompts, or metadata.jsonl does not tell them"
NO_CLIP = "no CLIP weights given: --clip FOLDER (such as openai/clip-vit-base-patch32)"
NO_CAPTIONS = "only of the mini family, whose text-to-face base knows the words that its probe reads"
NO_PROBE = "features: probe needs `probe: true` and synthetic people"


def diversity(evidence: Evidence, sheet: Sheet) -> None:
    """Spread of pose, expression, light and pixels among the pictures of a person, over that of real photos."""
    view = evidence.judge
    seen = [side.set.only(side.table.found) for side in (view.made, view.real)]
    faces = [side.table[side.table.found] for side in (view.made, view.real)]
    whole = [view.made.set, view.real.set]
    light = [table.light for table in faces]
    readings: dict[str, tuple[list[Tensor], list[FaceSet]]] = {"light": (light, seen)}
    readings["pixels"] = ([view.made.table.picture, view.real.table.picture], whole)
    if evidence.probe is not None:
        reader, *rows = evidence.probe
        parts = [reader.split(part) for part in rows]
        readings["pose"] = ([part[0] for part in parts], whole)
        readings["expression"] = ([part[1] for part in parts], whole)
        sheet.columns |= {name: parts[0][0][:, i].tolist() for i, name in enumerate(("yaw", "pitch", "roll"))}
    else:
        readings["pose"] = ([head_pose(table.landmarks) for table in faces], seen)
        sheet.skip("diversity_expression", "nothing reads expressions here: only the mini family has a probe for that")
    ratios = []
    for name in ("pose", "expression", "light", "pixels"):
        if name not in readings:
            continue
        made, real = (_spread(values, where) for values, where in zip(*readings[name], strict=True))
        both = ~(made.isnan() | real.isnan())
        if not both.any():
            sheet.skip(f"diversity_{name}", "needs two pictures and two photos of a person with a face")
            continue
        parts_of = torch.stack([made, real], 1)[both]
        interval = bootstrap_means(parts_of, lambda m: m[..., 0] / m[..., 1].clamp_min(1e-9), seed=evidence.seed)
        ratios.append(interval.value)
        beside = {"spread of real photos": float(real[both].mean())}
        title = f"diversity: spread of {name} over that of real photos"
        sheet.add(Figure.of(f"diversity_{name}", title, interval, beside))
    if ratios:
        sheet.add(Figure("diversity", f"diversity: mean of the {len(ratios)} ratios", sum(ratios) / len(ratios)))


def sharpness(evidence: Evidence, sheet: Sheet) -> None:
    """Laplacian energy over that of real photos, of the picture and of the aligned face; recognisers forgive blur."""
    made, real = evidence.judge.made, evidence.judge.real
    sheet.columns["sharpness_picture"] = made.table.sharpness[:, 0].tolist()
    sheet.columns["sharpness_face"] = made.table.sharpness[:, 1].tolist()
    for column, name, title in (
        (0, "sharpness_picture", "sharpness of the pictures over that of real photos"),
        (1, "sharpness_face", "sharpness of the aligned faces over that of real photos"),
    ):
        chosen = made.table.found if column else torch.ones(len(made.table), dtype=torch.bool)
        wanted = real.table.found if column else torch.ones(len(real.table), dtype=torch.bool)
        truth = float(real.table.sharpness[wanted, column].mean())
        if not chosen.any():
            sheet.skip(name, "no picture shows a face")
            continue
        kept = made.set.only(chosen)
        values = per_person(made.table.sharpness[chosen, column], kept) / truth
        sheet.add(Figure.of(name, title, bootstrap_means(values[~values.isnan()], seed=evidence.seed)))


def landmarks(evidence: Evidence, sheet: Sheet) -> None:
    """How far the five landmarks lie from the original's, in units of the distance between the eyes."""
    targets = _targets(evidence)
    made = evidence.judge.made
    rows = evidence.cache.rows(FaceReader(evidence.who.encoder), targets, batch=evidence.batch, what="judge: originals")
    original = FaceTable.of_rows(rows)
    both = made.table.found & original.found
    if not both.any():
        raise NotRun("no picture whose original shows a face shows one too")
    # Pictures and originals may be of two sizes: landmarks are compared in the original's pixels.
    scale = (original.size / made.table.size.clamp_min(1))[:, None]
    distance = landmark_distance(made.table.landmarks[both] * scale[both], original.landmarks[both])
    values = per_person(distance, made.set.only(both))
    interval = bootstrap_means(values[~values.isnan()], seed=evidence.seed)
    note = "" if bool(both.all()) else f"over {int(both.sum())} of {len(both)} pictures: the others show no face"
    title = "landmark distance to the original (1 = the distance between the eyes)"
    sheet.add(Figure.of("landmark_distance", title, interval, note=note))
    column = torch.full((len(both),), torch.nan, dtype=torch.float64)
    column[both] = distance
    sheet.columns["landmark_distance"] = column.tolist()


def psnr_to_target(evidence: Evidence, sheet: Sheet) -> None:
    """Peak signal-to-noise ratio to the originals, in dB."""
    _compare(evidence, sheet, "psnr", "PSNR to the original, dB", lambda a, b: psnr(_last(a), _last(b)))


def ssim_to_target(evidence: Evidence, sheet: Sheet) -> None:
    """Structural similarity to the originals."""
    _compare(evidence, sheet, "ssim", "SSIM to the original", lambda a, b: ssim(_last(a), _last(b)))


def lpips(evidence: Evidence, sheet: Sheet) -> None:
    """To the originals; where there are none, between pictures of a person (a measure of diversity: higher differs more)."""
    compare = load_lpips(evidence.device)
    if evidence.material.generated[0].target is not None:
        _compare(evidence, sheet, "lpips", "LPIPS (VGG) to the original", compare)
        return
    pairs = []
    by_person: dict[int, list[Photo]] = {}
    for photo in evidence.material.generated:
        by_person.setdefault(photo.person, []).append(photo)
    for photos in by_person.values():
        pairs += [_Pair(first, second) for first, second in pairwise(photos)]
    if not pairs:
        raise NotRun("needs two pictures of a person")
    rows = evidence.cache.rows(_PairReader("lpips-vgg", compare), pairs, batch=8, what="lpips")[:, 0]
    people = FaceSet(torch.zeros(len(pairs), 1), torch.tensor([pair.first.person for pair in pairs]), evidence.people)
    values = per_person(rows, people)
    interval = bootstrap_means(values[~values.isnan()], seed=evidence.seed)
    sheet.add(Figure.of("lpips_between_images", "LPIPS (VGG) between pictures of a person (diversity)", interval))


def niqe(evidence: Evidence, sheet: Sheet) -> None:
    """Naturalness without a reference (lower is better), by pyiqa."""
    _rate(evidence, sheet, "niqe", "NIQE (lower is better)")


def musiq(evidence: Evidence, sheet: Sheet) -> None:
    """Quality without a reference (higher is better), by pyiqa."""
    _rate(evidence, sheet, "musiq", "MUSIQ (higher is better)")


def fid(evidence: Evidence, sheet: Sheet) -> None:
    """Fréchet distance between generated pictures and real photos of the same people."""
    made, real, network = _features(evidence)
    try:
        value = frechet_distance(made, real)
    except ValueError as error:
        raise NotRun(str(error)) from None
    sheet.add(Figure("fid", f"Fréchet distance over {network}", value, note=f"{len(made)} to {len(real)} pictures"))


def kid(evidence: Evidence, sheet: Sheet) -> None:
    """Kernel distance between the same."""
    made, real, network = _features(evidence)
    size = kernel_subset(len(made), len(real))
    found = kernel_distance(made, real, subsets=SUBSETS, subset_size=size, seed=evidence.seed)
    note = f"standard deviation over {SUBSETS} subsets of {size}: {found.std:.3g}"
    sheet.add(Figure("kid", f"kernel distance over {network}", found.mean, note=note))


def kernel_subset(made: int, real: int) -> int:
    """Pictures of each subset that a kernel distance is taken over; NotRun where there are too few."""
    size = min(1000, made // 2, real // 2)
    if size < 2:
        raise NotRun(f"needs at least 4 images on each side, got {made} and {real}")
    return size


def clip_t(evidence: Evidence, sheet: Sheet) -> None:
    """Cosine between picture and prompt by CLIP, in hundredths."""
    photos = evidence.material.generated
    if not all(photo.prompt for photo in photos):
        raise NotRun(NO_PROMPTS)
    if evidence.clip is None:
        raise NotRun(NO_CLIP)
    score = load_clip_score(evidence.clip, evidence.device)
    values = []
    for start in range(0, len(photos), evidence.batch):
        part = photos[start : start + evidence.batch]
        values.append(score([photo.pixels() for photo in part], [photo.prompt for photo in part]))
    column = torch.cat(values)
    sheet.columns["clip_t"] = column.tolist()
    interval = bootstrap_means(per_person(column, evidence.judge.made.set), seed=evidence.seed)
    sheet.add(Figure.of("clip_t", f"CLIP-T by {Path(evidence.clip).name}", interval))


def prompt_words(evidence: Evidence, sheet: Sheet) -> None:
    """Words of the prompt that the picture shows, read by the mini family's probe from its text-to-face base."""
    captions = evidence.captions
    if captions is None or evidence.probe is None:
        raise NotRun(NO_CAPTIONS)
    probe = evidence.probe[0].probe

    def shares(photos: Sequence[Photo], shift: int = 0) -> dict[str, float]:
        prompts = [*captions.prompts[shift:], *captions.prompts[:shift]]
        return obeyed(prompts, probe.read(torch.from_numpy(np.stack([photo.pixels() for photo in photos]))))

    made, real, guessing = shares(captions.made), shares(captions.real), shares(captions.made, 1)
    for name in ("all", *TRACKED):
        figure = "prompt_words" if name == "all" else f"prompt_words_{name}"
        title = f"prompt words obeyed by the text-to-face base{'' if name == 'all' else f': {name}'}"
        beside = {"real renders": real[name], "swapped prompts": guessing[name]}
        sheet.add(Figure(figure, title, made[name], beside=beside, note=f"{len(captions.prompts)} prompts"))


@dataclass(frozen=True, eq=False)
class _Pair:
    """A picture and another of its size, side by side in the channels, for readers that compare."""

    first: Photo
    second: Photo

    def pixels(self) -> np.ndarray:
        first, second = self.first.pixels(), self.second.pixels()
        if first.shape != second.shape:
            raise IdgenError(
                f"{self.first.name} is {first.shape[1]} x {first.shape[0]} px and {self.second.name}"
                f" {second.shape[1]} x {second.shape[0]}: make them one size to compare them"
            )
        return np.concatenate([first, second], 2)  # (height, width, 6)

    def digest(self) -> bytes:
        return hashlib.sha256(self.first.digest() + self.second.digest()).digest()


class _PairReader:
    """A comparison of (n, 3, height, width) in 0..1 as a reader of pairs."""

    width = 1

    def __init__(self, name: str, compare: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.key, self.compare = f"{name}-{VERSION}", compare

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        rows = []
        for image in images:
            both = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
            rows.append(self.compare(both[:, :3], both[:, 3:]).float().reshape(1, 1))
        return torch.cat(rows)


class _RateReader:
    """A figure of one picture (n, 3, height, width) in 0..1 as a reader."""

    width = 1

    def __init__(self, name: str, rate: Callable[[Tensor], Tensor]) -> None:
        self.key, self.rate = f"{name}-{VERSION}", rate

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        pictures = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in images)
        return torch.cat([self.rate(picture).float().reshape(1, 1) for picture in pictures])


def _targets(evidence: Evidence) -> list[Photo]:
    targets = [photo.target for photo in evidence.material.generated]
    known = [target for target in targets if target is not None]
    if len(known) < len(targets):
        raise NotRun(NO_TARGETS)
    return known


def _compare(
    evidence: Evidence, sheet: Sheet, name: str, title: str, compare: Callable[[Tensor, Tensor], Tensor]
) -> None:
    pairs = [_Pair(a, b) for a, b in zip(evidence.material.generated, _targets(evidence), strict=True)]
    rows = evidence.cache.rows(_PairReader(name, compare), pairs, batch=8, what=name, processes=evidence.processes)[
        :, 0
    ]
    sheet.columns[name] = rows.tolist()
    interval = bootstrap_means(per_person(rows, evidence.judge.made.set), seed=evidence.seed)
    sheet.add(Figure.of(name, title, interval))


def _rate(evidence: Evidence, sheet: Sheet, name: str, title: str) -> None:
    reader = _RateReader(name, load_rating(name, evidence.device))
    kept = {"batch": 8, "what": name, "processes": evidence.processes}
    made = evidence.cache.rows(reader, evidence.material.generated, **kept)[:, 0]  # type: ignore[arg-type]
    real = evidence.cache.rows(reader, evidence.material.photos, **kept)[:, 0]  # type: ignore[arg-type]
    sheet.columns[name] = made.tolist()
    interval = bootstrap_means(per_person(made, evidence.judge.made.set), seed=evidence.seed)
    sheet.add(Figure.of(name, title, interval, {"real photos": float(real.mean())}))


def _features(evidence: Evidence) -> tuple[Tensor, Tensor, str]:
    """Features of generated pictures, of the photos that they are held against, and the network's name."""
    name = evidence.protocol.features
    made, real = evidence.material.generated, evidence.material.photos
    if made[0].target is not None:
        real = list(dict.fromkeys(_targets(evidence)))
    if name == "judge":
        if made[0].target is None:
            return evidence.judge.made.set.vectors, evidence.judge.real.set.vectors, "the judge's embeddings"
        reader: FaceReader | VisionReader | InceptionReader = FaceReader(evidence.who.encoder)
    elif name == "probe":
        if evidence.probe is None or made[0].target is not None:
            raise NotRun(NO_PROBE)
        probe, *rows = evidence.probe
        return probe.split(rows[0])[2], probe.split(rows[1])[2], "the probe's 256 features"
    elif name == "inception":
        reader = InceptionReader(evidence.device)
    else:
        reader = VisionReader(Path(name), evidence.device)
    kept = {"batch": evidence.batch, "what": f"features: {name}", "processes": evidence.processes}
    rows_of = [evidence.cache.rows(reader, part, **kept) for part in (made, real)]  # type: ignore[arg-type]
    if isinstance(reader, FaceReader):
        rows_of = [FaceTable.of_rows(part).vectors for part in rows_of]
    return (
        rows_of[0],
        rows_of[1],
        {"inception": "Inception-v3 (FID)", "judge": "the judge's embeddings"}.get(name, name),
    )


def _spread(values: Tensor, where: FaceSet) -> Tensor:
    """(people,): standard deviation of (n, k) values within a person, over all k; NaN with fewer than two."""
    rows, counts = values.double(), where.counts()
    sums = torch.zeros(where.people, rows.shape[1], dtype=torch.float64).index_add_(0, where.person, rows)
    means = sums / counts.clamp_min(1)[:, None]
    squares = (rows - means[where.person]).square().sum(1)
    total = torch.zeros(where.people, dtype=torch.float64).index_add_(0, where.person, squares)
    return torch.where(counts > 1, (total / (counts - 1).clamp_min(1)).sqrt(), torch.nan)


def _last(images: Tensor) -> Tensor:
    """(n, 3, height, width) -> (n, height, width, 3)."""
    return images.permute(0, 2, 3, 1)
