"""What training by reward gains and costs: identity on held-out people by the judge, against plain training of equal length.

    python -m benchmarks.reward --people 100 --images 4 --seeds 0 1 2 --minutes 15 --json reward.json

Three arms from the same start, each as long by the clock: `plain` (the denoising loss alone), `reward` (the recipe), `unguarded`
(the recipe without anchor, plain loss and guards, for contrast). Pictures are conditioned on shot 0 of each person and compared
with shots 1 to 6; an identity adapter is also asked for by the captions of shots 7 and up. The bars: id_score and rank-1 each
0.03 above `plain`, and detection, diversity and prompt adherence each losing at most 2 % of what the start had.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from benchmarks.bars_identity import pooled
from benchmarks.faces import Faces
from benchmarks.report import Report, add_split, chosen_people, parser, run, timed
from idgen.console import progress, say
from idgen.devices import resolve_device, resolve_dtype
from idgen.evaluation.prompts import read_caption
from idgen.evaluation.rendered import attributes_of, take_photos
from idgen.metrics import PhotoStatistics, id_score, pixel_spread, rank_one
from idgen.metrics.identity import found
from idgen.models.probe import load_probe
from idgen.rewards.chain import Chain
from idgen.rewards.policies import guided
from idgen.rewards.views import bounded, vae_decoder
from idgen.synthetic.captions import caption, caption_rng
from idgen.train.config import parse_config
from idgen.train.loop import fit
from idgen.train.reward import RewardStage, RewardTrainConfig, build_subject
from idgen.train.reward_checks import share_obeyed
from idgen.train.subjects import FILE, Subject

CONFIGS = Path(__file__).parents[1] / "configs" / "mini"
RECIPES = {"arc2face": "reward.yaml", "ip_faceid": "reward_adapter.yaml"}
ARMS: dict[str, list[str]] = {
    "plain": ["--set", "algorithm.name=mse", "--set", "anchor_weight=0", "--set", "guards.act=false"],
    "reward": [],
    "unguarded": ["--set", "anchor_weight=0", "--set", "denoising_weight=0", "--set", "guards.act=false"],
}
START = "start"
OTHERS = 6
BAR_GAIN, BAR_LOSS = 0.03, 0.02
BATCH = 16


@dataclass(frozen=True)
class Asked:
    """A caption, and for each attribute that it names the values that its words describe."""

    text: str
    asked: Mapping[str, frozenset[str]]


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    device = resolve_device(args.device)
    people = chosen_people(args)
    with timed("photos"):
        photos = take_photos(people, range(1 + OTHERS), cache=args.cache, workers=args.workers)
    faces = Faces(device, args.cache)
    real = faces.embed(photos.images, keep=True)
    vectors = pooled(real.mini[:, :1])
    report = Report(
        f"Training by reward: {args.people} {args.split} people x {args.images} images, {len(args.seeds)} seeds,"
        f" {args.minutes:g} minutes each, {args.steps} steps, guidance {args.guidance:g}"
    )
    report.numbers |= {
        name: getattr(args, name) for name in ("split", "people", "images", "steps", "guidance", "minutes")
    }
    for subject in args.subjects:
        asked = captions_of(people, args.images) if subject == "ip_faceid" else None
        figures: dict[str, list[dict[str, float]]] = {START: [], **{arm: [] for arm in args.arms}}
        for seed in args.seeds:
            files = {arm: _train(args, subject, arm, seed) for arm in args.arms}
            made = build_subject(_settings(args, subject, args.arms[0], seed), device)
            for name, rows in figures.items():
                if name != START:
                    made.policy.load(files[name])
                pictures = draw(made, vectors.to(device), asked, args, base=name == START, seed=seed)
                rows.append(measure(faces, pictures, real.judge, asked))
                values = ", ".join(f"{key} {value:.3f}" for key, value in rows[-1].items())
                say(f"{subject}, {name}, seed {seed}: {values}")
        add_rows(report, subject, figures)
    report.publish(args.json)


@torch.no_grad()
def draw(
    subject: Subject, vectors: Tensor, asked: Sequence[Asked] | None, args: argparse.Namespace, *, base: bool, seed: int
) -> Tensor:
    """(people, images, height, width, 3) uint8; people without an embedding (zeros) get what the generator makes of nobody."""
    rows = vectors.repeat_interleave(args.images, 0)
    prompts = [""] * len(rows) if asked is None else [one.text for one in asked]
    chain, decode = Chain(subject.pipe.scheduler, args.steps), vae_decoder(subject.pipe.vae)
    parts, low = [], resolve_dtype(args.dtype, rows.device)
    for start in progress(range(0, len(rows), BATCH), -(-len(rows) // BATCH), "generating"):
        part = slice(start, min(start + BATCH, len(rows)))
        count = part.stop - part.start
        noise = torch.stack(
            [
                torch.randn(subject.noise_shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + index))
                for index in range(part.start, part.stop)
            ]
        )
        condition, nobody = subject.condition(rows[part], prompts[part]), subject.nobody(count)
        denoise = guided(subject.policy, condition, nobody, args.guidance, base=base)
        # As the pipelines and the trainings' checks compute.
        with torch.autocast(rows.device.type, low, enabled=low != torch.float32):
            pictures = bounded(decode(chain.sample(denoise, noise.to(rows.device))).float())
        parts.append(((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu())
    return torch.cat(parts).unflatten(0, (-1, args.images))


def measure(faces: Faces, pictures: Tensor, judged: Tensor, asked: Sequence[Asked] | None) -> dict[str, float]:
    """Figures of pictures (people, images, height, width, 3) beside real photos (people, 1 + others, dim) by the judge."""
    probes = faces.embed(pictures).judge
    others = judged[:, 1:]
    figures = {
        "id_score": id_score(probes, others, PhotoStatistics.of(judged)),
        "rank_one": float(rank_one(probes, others).mean()),
        "detection": float(found(probes).float().mean()),
        "diversity": float(pixel_spread(pictures).mean()),
    }
    if asked is not None:
        figures["adherence"] = share_obeyed(load_probe().read(pictures.flatten(0, 1)), [one.asked for one in asked])
    return figures


def add_rows(report: Report, subject: str, figures: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """A row for each arm, and the bars."""
    start = figures[START]
    for name, seeds in figures.items():
        cells = ", ".join(f"{key.replace('_', ' ')} {spread([one[key] for one in seeds])}" for key in seeds[0])
        report.add(f"{subject}, {name}", cells)
    for key in ("id_score", "rank_one"):
        for arm in set(figures) & {"reward", "unguarded"} if "plain" in figures else ():
            gains = [own[key] - plain[key] for own, plain in zip(figures[arm], figures["plain"], strict=True)]
            bar = f"+{BAR_GAIN}" if arm == "reward" else ""
            report.add(f"{subject}, {arm}: {key} over plain training", spread(gains, sign="+"), bar)
    for key in [key for key in ("detection", "diversity", "adherence") if key in start[0]]:
        for arm in [arm for arm in figures if arm != START]:
            losses = [own[key] / max(before[key], 1e-9) - 1 for own, before in zip(figures[arm], start, strict=True)]
            bar = f"-{BAR_LOSS:.0%}" if arm == "reward" else ""
            report.add(
                f"{subject}, {arm}: {key} against the start", spread([100 * loss for loss in losses], "+") + " %", bar
            )
    report.numbers[subject] = {name: [dict(one) for one in seeds] for name, seeds in figures.items()}


def spread(values: Sequence[float], sign: str = "") -> str:
    """The mean over seeds, and their standard deviation where there are several."""
    middle = f"{mean(values):{sign}.3f}"
    return middle if len(values) < 2 else f"{middle} ± {np.std(values, ddof=1):.3f}"


def _train(args: argparse.Namespace, subject: str, arm: str, seed: int) -> Path:
    with timed(f"{subject}, {arm}, seed {seed}: training"):
        return fit(RewardStage, _settings(args, subject, arm, seed)) / FILE


def _settings(args: argparse.Namespace, subject: str, arm: str, seed: int) -> RewardTrainConfig:
    """The recipe, the arm's changes, the caller's, and the same clock for all."""
    own = [
        *("--output_dir", str(args.out / f"{subject}-{arm}-{seed}"), "--seed", str(seed)),
        *("--max_minutes", str(args.minutes), "--max_train_steps", "1000000"),
    ]
    changes = [word for change in args.set for word in ("--set", change)]
    return parse_config(RewardTrainConfig, ["--config", str(CONFIGS / RECIPES[subject]), *ARMS[arm], *changes, *own])


def captions_of(people: range, images: int) -> list[Asked]:
    """What each picture is asked to show: the captions of shots that nobody is compared with."""
    shots = range(1 + OTHERS, 1 + OTHERS + images)
    made = []
    for person, looks in zip(people, attributes_of(people, shots), strict=True):
        for shot, attributes in zip(shots, looks, strict=True):
            text = caption(attributes, caption_rng(0, person, shot))
            made.append(Asked(text, read_caption(text, attributes, person, shot).asked))
    return made


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    flags = parser(__doc__, people=100)
    flags.add_argument("--images", type=int, default=4, help="generated per person (default: 4)")
    add_split(flags)
    flags.add_argument("--steps", type=int, default=20)
    flags.add_argument("--guidance", type=float, default=2.0)
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--minutes", type=float, default=15.0, help="of training, for each arm and seed (default: 15)")
    flags.add_argument("--subjects", nargs="+", choices=tuple(RECIPES), default=list(RECIPES))
    flags.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    flags.add_argument("--set", action="append", default=[], metavar="a.b=c", help="a setting of all trainings")
    flags.add_argument("--out", type=Path, default=Path("runs/reward-bars"), help="where the trainings go")
    flags.set_defaults(cache=Path("runs/photos"))
    args = flags.parse_args(argv)
    if args.people < 10 or args.images < 2:
        flags.error("the rates need at least 10 people and 2 images each")
    return args


if __name__ == "__main__":
    run(main)
