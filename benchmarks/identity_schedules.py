"""What a loss of identity gains and costs as it acts over the noise levels: none, naive, windowed, scaled (as ReF-LDM's table 3).

    python -m benchmarks.identity_schedules --people 100 --seeds 0 1 2 --minutes 5 --json schedules.json

IP-Adapter-FaceID beside the mini family, all arms from the same weights (train/adapter.py's) and equally long by the clock: so
the loss pays for its decoder and recogniser. The judge measures identity; the denoising loss on held-out photos, sharpness and
the share of faces found show what it costs. ReF-LDM finds that naive use helps identity and hurts the picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.bars_identity import pooled
from benchmarks.faces import Faces
from benchmarks.report import Report, add_split, chosen_people, parser, run, timed
from benchmarks.reward import OTHERS, captions_of, draw, measure, spread
from idgen.console import say
from idgen.data.faces import FaceFolder
from idgen.devices import resolve_device
from idgen.evaluation.rendered import take_photos
from idgen.losses.diffusion import denoising_loss, noised_at
from idgen.metrics import sharpness_ratio
from idgen.train.adapter import AdapterStage, AdapterTrainConfig
from idgen.train.config import parse_config
from idgen.train.loop import fit
from idgen.train.picture_coding import encode_photos
from idgen.train.reward_checks import photo_embeddings
from idgen.train.subjects import FILE, AdapterSubject

RECIPE = Path(__file__).parents[1] / "configs" / "mini" / "adapter.yaml"
NONE = "none"
ARMS: dict[str, list[str]] = {
    NONE: ["identity_weight=0"],
    "naive": ["identity_schedule=naive"],
    "window": ["identity_schedule=window"],
    "scaled": ["identity_schedule=scaled"],
}
LEVELS = (50, 200, 400, 600, 800, 950)  # timesteps at which the held-out loss is taken


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    device = resolve_device(args.device)
    people = chosen_people(args)
    with timed("photos"):
        photos = take_photos(people, range(1 + OTHERS), cache=args.cache, workers=args.workers)
    faces = Faces(device, args.cache)
    real = faces.embed(photos.images, keep=True)
    vectors, asked = pooled(real.mini[:, :1]).to(device), captions_of(people, args.images)
    figures: dict[str, list[dict[str, float]]] = {arm: [] for arm in args.arms}
    for seed in args.seeds:
        for arm in args.arms:
            settings = settings_of(args, arm, seed)
            with timed(f"{arm}, seed {seed}: training"):
                file = fit(AdapterStage, settings) / FILE
            subject = AdapterSubject(settings.model, settings.method, file, "", {}, device)
            pictures = draw(subject, vectors, asked, args, base=False, seed=seed)
            row = measure(faces, pictures, real.judge, asked)
            row["sharpness"] = sharpness_ratio(pictures.flatten(0, 1), photos.images[:, 1:].flatten(0, 1))
            row["held_out_loss"] = held_out_loss(subject, settings, device)
            figures[arm].append(row)
            say(f"{arm}, seed {seed}: " + ", ".join(f"{key} {value:.4f}" for key, value in row.items()))
    report = Report(
        f"Loss of identity over the noise levels: {args.people} {args.split} people x {args.images} images,"
        f" {len(args.seeds)} seeds, {args.minutes:g} minutes each, weight {args.weight:g}"
    )
    add_rows(report, figures)
    report.numbers |= {name: getattr(args, name) for name in ("split", "people", "images", "minutes", "weight")}
    report.publish(args.json)


def add_rows(report: Report, figures: dict[str, list[dict[str, float]]]) -> None:
    """A row for each arm, and what each gains over none at the same seed."""
    for arm, seeds in figures.items():
        cells = ", ".join(f"{key.replace('_', ' ')} {spread([one[key] for one in seeds])}" for key in seeds[0])
        report.add(arm, cells)
    for arm in [arm for arm in figures if arm != NONE and NONE in figures]:
        gains = {
            key: [own[key] - plain[key] for own, plain in zip(figures[arm], figures[NONE], strict=True)]
            for key in ("id_score", "rank_one", "sharpness", "held_out_loss")
        }
        cells = ", ".join(f"{key.replace('_', ' ')} {spread(values, '+')}" for key, values in gains.items())
        report.add(f"{arm} over none", cells)
    report.numbers["arms"] = figures


@torch.no_grad()
def held_out_loss(subject: AdapterSubject, settings: AdapterTrainConfig, device: torch.device) -> float:
    """The denoising loss on photos of people of no training, at fixed times and with fixed noise."""
    assert settings.validation is not None
    data = FaceFolder.open(settings.validation)
    shots = [own[:2] for own in data.shots if len(own) >= 2][:32]
    latents = torch.from_numpy(encode_photos(data, subject.pipe.vae, subject.vae_file, device)[[a for a, _ in shots]])
    vectors = subject.read(photo_embeddings(data, settings.conditioning, device))[[b for _, b in shots]]
    condition = subject.condition(vectors, [data.captions[a] for a, _ in shots])
    latents = latents.to(device).float()
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(device)
    losses: list[Tensor] = []
    for level in LEVELS:
        times = torch.full((len(latents),), level, device=device)
        noised = noised_at(subject.pipe.scheduler, latents, noise, times)
        losses.append(denoising_loss(subject.policy(noised.noisy, times, condition), noised))
    return float(torch.stack(losses).mean())


def settings_of(args: argparse.Namespace, arm: str, seed: int) -> AdapterTrainConfig:
    """The recipe, the arm's changes, the caller's, and the same clock for all."""
    own = [
        *("--output_dir", str(args.out / f"{arm}-{seed}"), "--seed", str(seed), "--adapter", str(args.adapter)),
        *("--max_minutes", str(args.minutes), "--max_train_steps", "1000000", "--validation_at_start", "false"),
        *("--validation_steps", "1000000", "--identity_weight", str(args.weight), "--identity_start", "0"),
    ]
    changes = [word for change in [*ARMS[arm], *args.set] for word in ("--set", change)]
    # What an arm changes wins over what they share.
    return parse_config(AdapterTrainConfig, ["--config", str(RECIPE), *_merged(own, changes)])


def _merged(own: list[str], changes: list[str]) -> list[str]:
    settings = [f"{own[place].removeprefix('--')}={own[place + 1]}" for place in range(0, len(own), 2)]
    return [word for change in settings for word in ("--set", change)] + changes


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    flags = parser(__doc__, people=100)
    flags.add_argument("--images", type=int, default=4, help="generated per person (default: 4)")
    add_split(flags)
    flags.add_argument("--steps", type=int, default=20)
    flags.add_argument("--guidance", type=float, default=2.0)
    flags.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    flags.add_argument("--minutes", type=float, default=5.0, help="of training, for each arm and seed (default: 5)")
    flags.add_argument("--weight", type=float, default=0.1, help="of the loss of identity, ReF-LDM's (default: 0.1)")
    flags.add_argument("--adapter", type=Path, default=Path("runs/mini/adapter/weights") / FILE, help="where all start")
    flags.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    flags.add_argument("--set", action="append", default=[], metavar="a.b=c", help="a setting of all trainings")
    flags.add_argument("--out", type=Path, default=Path("runs/identity-schedules"), help="where the trainings go")
    flags.set_defaults(cache=Path("runs/photos"))
    return flags.parse_args(argv)


if __name__ == "__main__":
    run(main)
