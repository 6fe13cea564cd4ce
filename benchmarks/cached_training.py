"""Steps a second with latents, face embeddings and prompts from the cache, against making them anew for every sample.

    python -m benchmarks.cached_training --people 24 --steps 20

IP-Adapter-FaceID beside the mini family on rendered photos as files, the same samples, batches and settings in both; the
stretches take turns, and the best of each counts. The bar: at least 1.5 times the steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.report import Report, parser, run, timed
from idgen.devices import resolve_device
from idgen.evaluation.rendered import VALIDATION, attributes_of, take_photos
from idgen.synthetic.captions import caption, caption_rng
from idgen.train.adapter import AdapterStage, AdapterTrainConfig

SHOTS = 4
BAR = 1.5
ARMS = {"cached": True, "uncached": False}


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    device = resolve_device(args.device)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        with timed("photos"):
            write_photos(root / "photos", range(VALIDATION, VALIDATION + args.people), args)
        stages = {}
        for name, cached in ARMS.items():
            with timed(f"{name}: setting up"):
                stages[name] = AdapterStage(_settings(root, cached, args), device)
        times = {name: float("inf") for name in ARMS}
        for turn in range(args.rounds):
            for name, stage in stages.items():
                seconds = stretch(stage, args.steps, first=turn * args.steps)
                times[name] = min(times[name], seconds / args.steps)
    rate = times["uncached"] / times["cached"]
    report = Report(
        f"Cached against uncached training: mini, batch {args.batch}, {args.resolution} px photos, {device},"
        f" {torch.get_num_threads()} threads"
    )
    for name, seconds in times.items():
        report.add(f"{name}: steps a second", f"{1 / seconds:.2f}")
    report.add("cached over uncached", f"{rate:.2f}", f"{BAR}")
    report.numbers |= {"seconds_per_step": times, "ratio": rate, "batch": args.batch, "resolution": args.resolution}
    report.publish(args.json)


def stretch(stage: AdapterStage, steps: int, first: int) -> float:
    """Seconds that so many steps take, with everything that a step of the loop does."""
    trained = [parameter for parameter in stage.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4, fused=True)
    stage.module.train()
    start = time.perf_counter()
    for step in range(first, first + steps):
        rng = np.random.default_rng((0, step))
        torch.manual_seed(step)
        batch = stage.batch(rng)
        with torch.autocast(stage.device.type, torch.bfloat16):
            loss = stage.losses(stage.module, batch, 0.0)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if stage.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def write_photos(folder: Path, people: range, args: argparse.Namespace) -> None:
    """PNG files of rendered people, with metadata.jsonl."""
    photos = take_photos(people, range(SHOTS), cache=args.cache, workers=args.workers)
    looks = attributes_of(people, range(SHOTS))
    folder.mkdir(parents=True)
    lines = []
    for number, person in enumerate(people):
        for shot in range(SHOTS):
            name = f"{person}-{shot}.png"
            picture = Image.fromarray(photos.images[number, shot].numpy())
            picture.resize((args.resolution, args.resolution), Image.Resampling.BICUBIC).save(folder / name)
            words = caption(looks[number][shot], caption_rng(0, person, shot))
            lines.append(json.dumps({"file_name": name, "person": str(person), "text": words}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def _settings(root: Path, cached: bool, args: argparse.Namespace) -> AdapterTrainConfig:
    photos: dict[str, Any] = {"path": str(root / "photos"), "cache": root / "cache", "cache_latents": cached}
    return AdapterTrainConfig(
        output_dir=root / "out", photos=photos, settings={"rank": 16}, train_batch_size=args.batch, report_to="none"
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    flags = parser(__doc__, people=24)
    flags.add_argument("--batch", type=int, default=8)
    flags.add_argument("--steps", type=int, default=20, help="of a stretch (default: 20)")
    flags.add_argument("--rounds", type=int, default=3, help="stretches of each; the best counts (default: 3)")
    flags.add_argument("--resolution", type=int, default=512, help="side of the photos' files (default: 512)")
    flags.add_argument("--threads", type=int)
    return flags.parse_args(argv)


if __name__ == "__main__":
    run(main)
