"""One person from five photos: what LoRA, OFT and the others gain over the zero-shot adapter, and what they forget.

    python -m benchmarks.personalise --people 100 --kinds lora oft --json personalise.json

Each held-out person is learned from shots 0 to 4 by `train/lora.py` with configs/mini/personalise.yaml, and drawn again; the
judge compares the pictures with shots 5 to 10, which nothing saw. The zero-shot row is Arc2Face with the same five photos. With
`--condition text` the text-to-face base is personalised instead, with captions beside the photos, and words added to the prompt
tell how much of it is still obeyed: at every strength asked for (`--strengths 0.5 0.75 1`), and from these at the id_score that
the least able kind reaches.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.bars_identity import pooled
from benchmarks.faces import Faces
from benchmarks.generation import generate_faces, generate_from_text, load_arc2face, load_base
from benchmarks.personal_prompts import SUBJECT, adherence, edits, write_captions
from benchmarks.report import Report, add_split, chosen_people, parser, run, timed
from idgen.console import say
from idgen.devices import resolve_device, resolve_dtype
from idgen.errors import IdgenError
from idgen.evaluation.rendered import Photos, take_photos
from idgen.files import atomic_write
from idgen.finetune import load_adapter, remove_adapter, set_strength
from idgen.metrics import bootstrap_means, pixel_spread, rank_one, sharpness_ratio
from idgen.metrics.identity import found, photo_cosines, similarity_to
from idgen.models.probe import load_probe
from idgen.sheet import SheetRow, contact_sheet
from idgen.train.checkpoints import changed
from idgen.train.config import parse_config
from idgen.train.loop import fit
from idgen.train.lora import FILE, LoraConfig, LoraStage

SHOWN, OTHERS = 5, 6  # photos that are learned, and photos that the result is compared with
RECIPE = Path(__file__).parents[1] / "configs" / "mini" / "personalise.yaml"
SECONDS = "seconds.txt"  # beside a finished training: how long it took
ZERO_SHOT = "Arc2Face, zero-shot"
BAR_GAIN, BAR_MINUTES = 0.05, 5.0


@dataclass
class Row:
    """What one way of drawing the people made.

    Attributes:
        pictures: (people, images, height, width, 3) uint8.
        edited: (people, edits, height, width, 3) uint8 by prompts with other words, or None.
        seconds: of each person's training, from reading the photos to the file.
    """

    pictures: Tensor
    edited: Tensor | None = None
    seconds: list[float] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    people = chosen_people(args)
    with timed("photos"):
        photos = take_photos(people, range(SHOWN + OTHERS + args.images), cache=args.cache, workers=args.workers)
    for index, person in enumerate(people):
        _write_photos(args.out / str(person) / "photos", photos.images[index, :SHOWN], person)
    faces = Faces(device, args.cache)
    real = faces.embed(photos.images, keep=True)
    conditioning = pooled(real.mini[:, :SHOWN])
    rows = {ZERO_SHOT: Row(_draw_zero_shot(args, conditioning, device, dtype))}
    text = args.condition == "text"
    pipe: Any = load_base(device, dtype) if text else load_arc2face(device, dtype)
    if text:
        rows["text-to-face base"] = _draw_base(args, pipe)
    trained = {kind: [_learn(args, kind, person) for person in people] for kind in args.kinds}
    for kind in args.kinds:
        for strength in args.strengths:
            name = kind if strength == 1 else f"{kind} at {strength:g}"
            with timed(f"drawing, {name}"):
                rows[name] = _draw(args, pipe, people, kind, strength, conditioning)
            rows[name].seconds = trained[kind] if strength == 1 else []
    report = Report(
        f"Personalisation from {SHOWN} photos, {args.people} {args.split} people x {args.images} images, {args.condition} base"
    )
    report.numbers |= {
        name: getattr(args, name) for name in ("split", "people", "images", "steps", "guidance", "seed", "condition")
    }
    report.numbers |= {"threads": torch.get_num_threads(), "dtype": str(dtype), "device": str(device), "set": args.set}
    _measure(report, rows, faces, real.judge, photos, args.seed)
    if text:
        _measure_prompts(report, rows, args.seed)
    if args.sheet:
        _save_sheet(args.sheet, photos, rows)
    report.publish(args.json)


def _learn(args: argparse.Namespace, kind: str, person: int) -> float:
    """Seconds that the training took; a finished one is not trained again, one that was broken off begins anew.

    Raises:
        IdgenError: the finished one had other settings.
    """
    folder = args.out / str(person) / f"{args.condition}-{kind}"
    settings = [
        f"data.photos={args.out / str(person) / 'photos'}",
        f"adapter.kind={kind}",
        f"condition={args.condition}",
    ]
    if args.condition == "text":
        settings.append(f'data.caption="{SUBJECT}, {{}}"')
    settings += [f"output_dir={folder}", f"prior.folder={args.out / 'prior'}", f"seed={args.seed}", *args.set]
    flags = [word for setting in settings for word in ("--set", setting)]
    config = parse_config(LoraConfig, ["--config", str(args.config), *flags])
    clock = folder / SECONDS
    if clock.is_file():
        _require_same(folder, config)
        return float(clock.read_text())
    if folder.exists():
        shutil.rmtree(folder)
    start = time.perf_counter()
    fit(LoraStage, config)
    seconds = time.perf_counter() - start
    with atomic_write(clock) as temporary:
        temporary.write_text(f"{seconds:.2f}")
    say(f"{person}, {kind}: {seconds:.0f} s")
    return seconds


def _require_same(folder: Path, config: LoraConfig) -> None:
    """Hold the settings of a finished training, which it left in its folder, against those asked for."""
    before = parse_config(LoraConfig, ["--config", str(folder / "config.yaml")])
    # All of them, also what a training that goes on may change: steps decide what was learned, threads what the clock says.
    # Only where the files lie says nothing.
    places: Any = {"output_dir": True, "data": {"photos"}, "prior": {"folder"}}
    old, new = (one.model_dump(mode="json", exclude=places) for one in (before, config))
    if changes := changed(old, new, "training."):
        raise IdgenError(f"{folder} was made with other settings: {'; '.join(changes)}; use those, or another --out")


def _draw_zero_shot(args: argparse.Namespace, conditioning: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    settings = {"steps": args.steps, "guidance": args.guidance, "seed": args.seed}
    return generate_faces(load_arc2face(device, dtype), conditioning, args.images, **settings)


def _draw_base(args: argparse.Namespace, pipe: Any) -> Row:
    """The base without any adapter does not know the people: one set of pictures stands for all of them."""
    made, changed = _draw_words(args, pipe, args.people)
    return Row(made.unflatten(0, (args.people, -1)), changed.unflatten(0, (args.people, -1)))


def _draw(args: argparse.Namespace, pipe: Any, people: range, kind: str, strength: float, conditioning: Tensor) -> Row:
    pictures, edited = [], []
    for index, person in enumerate(people):
        load_adapter(args.out / str(person) / f"{args.condition}-{kind}" / "weights" / FILE, pipe, "person")
        set_strength(pipe, "person", strength)
        if args.condition == "text":
            made, changed = _draw_words(args, pipe, 1)
            pictures.append(made)
            edited.append(changed)
        else:
            settings = {"steps": args.steps, "guidance": args.guidance, "seed": args.seed}
            pictures.append(generate_faces(pipe, conditioning[index : index + 1], args.images, **settings)[0])
        remove_adapter(pipe, "person")
    return Row(torch.stack(pictures), torch.stack(edited) if edited else None)


def _draw_words(args: argparse.Namespace, pipe: Any, times: int) -> tuple[Tensor, Tensor]:
    settings = {"steps": args.steps, "guidance": args.text_guidance, "seed": args.seed}
    plain = generate_from_text(pipe, [f"a photo of a {SUBJECT}"] * (args.images * times), **settings)
    return plain, generate_from_text(pipe, [edit.text for edit in edits()] * times, **settings)


def _measure(report: Report, rows: dict[str, Row], faces: Faces, judged: Tensor, photos: Photos, seed: int) -> None:
    """The identity figures of every row, and what each gains over the zero-shot one."""
    references, others = judged[:, :SHOWN], judged[:, SHOWN : SHOWN + OTHERS]
    standins = photos.images[:, SHOWN + OTHERS :]
    same, different = photo_cosines(judged)
    cosines = {}
    for name, row in rows.items():
        probes = faces.embed(row.pictures).judge
        cosines[name] = similarity_to(probes, others)
        score = _score(cosines[name], same, different, seed)
        figures = {
            "id_score": score,
            "cosine_to_the_photos_learned": float(similarity_to(probes, references).mean()),
            "rank_one": float(rank_one(probes, others).mean()),
            "pixel_diversity": float(pixel_spread(row.pictures).mean() / pixel_spread(standins).mean()),
            "sharpness": sharpness_ratio(row.pictures.flatten(0, 1), photos.flat),
            "faces_found": float(found(probes).double().mean()),
        }
        text = f"id_score {_shown(score)}, " + ", ".join(
            f"{key.replace('_', ' ')} {value:.3f}" for key, value in figures.items() if key != "id_score"
        )
        report.add(name, text)
        if name != ZERO_SHOT:
            figures["gain"] = _score(cosines[name], same, different, seed, cosines[ZERO_SHOT])
            report.add(f"{name}: id_score over zero-shot", _shown(figures["gain"]), f"+{BAR_GAIN}", f"+{BAR_GAIN}")
        if row.seconds:
            minutes = torch.tensor(row.seconds) / 60
            figures["minutes"] = {"mean": float(minutes.mean()), "most": float(minutes.max())}
            shown = f"{minutes.mean():.2f} min, at most {minutes.max():.2f}"
            report.add(
                f"{name}: training, {torch.get_num_threads()} threads",
                shown,
                f"{BAR_MINUTES:g} min",
                f"{BAR_MINUTES:g} min",
            )
        report.numbers[name] = figures


def _measure_prompts(report: Report, rows: dict[str, Row], seed: int) -> None:
    """How many of the added words the pictures show, and that at equal id_score."""
    probe = load_probe()
    for name, row in rows.items():
        if row.edited is None:
            continue
        shares = adherence(probe.read(row.edited.flatten(0, 1)), len(row.edited))
        report.numbers[name]["prompt"] = bootstrap_means(shares, seed=seed).as_dict()
        report.add(f"{name}: added words obeyed", _shown(report.numbers[name]["prompt"]))
    curves = {}
    for name in rows:
        kind = name.split(" at ")[0]
        if rows[name].edited is not None and kind != "text-to-face base":
            numbers = report.numbers[name]
            curves.setdefault(kind, []).append((numbers["id_score"]["value"], numbers["prompt"]["value"]))
    if len(curves) > 1 and min(len(points) for points in curves.values()) > 1:
        level = min(max(score for score, _ in points) for points in curves.values())
        at_level = {kind: interpolate(points, level) for kind, points in curves.items()}
        report.numbers["words_obeyed_at_equal_id_score"] = {"id_score": level, **at_level}
        text = ", ".join(f"{kind} {value:.3f}" for kind, value in at_level.items())
        report.add(f"added words obeyed at id_score {level:.3f}", text)


def interpolate(points: list[tuple[float, float]], level: float) -> float:
    """The second value where the first reaches `level`, between the two points around it; (first, second) in any order."""
    ordered = sorted(points)
    for (low, a), (high, b) in pairwise(ordered):
        if low <= level <= high:
            return a + (b - a) * (level - low) / max(high - low, 1e-9)
    return ordered[-1][1] if level > ordered[-1][0] else ordered[0][1]


def _score(cosine: Tensor, same: Tensor, different: Tensor, seed: int, minus: Tensor | None = None) -> dict[str, float]:
    """id_score of (people,) cosines, or the difference of two, over resampled people."""
    parts = torch.stack([cosine, different if minus is None else minus, same, different], 1)
    return bootstrap_means(parts, lambda m: (m[..., 0] - m[..., 1]) / (m[..., 2] - m[..., 3]), seed=seed).as_dict()


def _write_photos(folder: Path, images: Tensor, person: int) -> None:
    for index, image in enumerate(images):
        with atomic_write(folder / f"{index}.png") as temporary:
            Image.fromarray(image.numpy()).save(temporary)
    write_captions(folder, person, len(images))


def _save_sheet(file: Path, photos: Photos, rows: dict[str, Row], people: int = 8, each: int = 3) -> None:
    """Each row: a photo that was learned, one that was not, then what every way of drawing made."""
    lines = []
    for person in range(min(people, len(photos.images))):
        pictures, labels = [photos.images[person, 0], photos.images[person, SHOWN]], ["learned", "other"]
        for name, row in rows.items():
            drawn = list(row.pictures[person, :each])
            pictures += drawn
            labels += [name] * len(drawn)
        lines.append(SheetRow([Image.fromarray(picture.numpy()) for picture in pictures], labels))
    with atomic_write(file) as temporary:
        contact_sheet(lines, cell=128).save(temporary)
    say(f"sheet: {file}")


def _shown(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    flags = parser(__doc__, people=100)
    flags.add_argument("--kinds", nargs="+", default=["lora", "oft"], help="of adapters (default: lora oft)")
    flags.add_argument(
        "--condition", choices=("identity", "text"), default="identity", help="which base is personalised"
    )
    flags.add_argument(
        "--strengths", type=float, nargs="+", default=[1.0], help="at which the adapters draw (default: 1)"
    )
    flags.add_argument("--images", type=int, default=4, help="generated per person (default: 4)")
    add_split(flags)
    flags.add_argument("--steps", type=int, default=20)
    flags.add_argument("--guidance", type=float, default=2.0, help="of Arc2Face (default: 2)")
    flags.add_argument("--text-guidance", type=float, default=3.0, help="of the text-to-face base (default: 3)")
    flags.add_argument("--config", type=Path, default=RECIPE, help="recipe of the trainings")
    flags.add_argument("--set", action="append", default=[], metavar="a.b=c", help="a setting of the trainings")
    flags.add_argument("--out", type=Path, default=Path("runs/personalise"), help="where the trainings go")
    flags.add_argument("--sheet", type=Path, metavar="PNG", help="also save a contact sheet of eight people")
    flags.set_defaults(cache=Path("runs/photos"))
    args = flags.parse_args(argv)
    if args.people < 2 or args.images < 2:
        flags.error("the figures need at least 2 people and 2 images each")
    return args


if __name__ == "__main__":
    run(main)
