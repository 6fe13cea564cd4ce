"""Which half of the autoencoder loses more: `python -m benchmarks.autoencoder_limits --people 32`.

Copies of photos of validation people as the encoder and the decoder make them, and from latents that a gradient through the
decoder improves, away from the encoder's: what the decoder could draw if it were told better. The mini recogniser leads there
beside the pixels; the judge measures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bars_pictures import compare_copies
from benchmarks.report import Report, parser, run, timed
from idgen.adapters.arc2face.convert import load_model
from idgen.devices import resolve_device
from idgen.evaluation.rendered import VALIDATION, Photos, take_photos
from idgen.faces import FaceEncoder
from idgen.faces.align_torch import norm_crop_torch
from idgen.models.registry import load_recogniser
from idgen.rewards.views import vae_decoder
from idgen.train.pictures import to_bytes, to_float
from idgen.weights import find_mini

RATE = 0.03  # of Adam; the latents' standard deviation is 1
LIKENESS = 0.02  # weight of the recogniser's cosine beside the squared error

Draw = Callable[[Tensor], Tensor]  # latents (n, channels, h, w) to pictures (n, 3, size, size)


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    device = resolve_device(args.device)
    with timed("photos"):
        people = range(VALIDATION, VALIDATION + args.people)
        photos = take_photos(people, range(1), cache=args.cache, workers=args.workers)
    vae = load_model(args.vae or find_mini("vae"), "autoencoder").to(device, memory_format=torch.channels_last)
    vae.requires_grad_(False)
    images, landmarks = to_float(photos.flat.numpy(), device), photos.landmarks.flatten(0, 1).to(device)
    recogniser = load_recogniser(find_mini("recogniser")).to(device).eval().requires_grad_(False)
    with torch.no_grad():
        start = vae.encode(images).latents * vae.config.scaling_factor
        wanted = recogniser(norm_crop_torch(images, landmarks))

    def unlike(pictures: Tensor) -> Tensor:
        seen = recogniser(norm_crop_torch(pictures, landmarks))
        return 1 - F.cosine_similarity(seen, wanted).mean()

    report = Report(f"Copies of {len(images)} photos of validation people by {args.vae or 'mini'}")
    scores = _Scores(report, photos, vae_decoder(vae), start)
    scores.add("the encoder's latents", start)
    with timed("gradients"):
        for steps, latents in improved(vae_decoder(vae), start, images, unlike, max(args.steps)):
            if steps in args.steps:
                scores.add(f"after {steps} steps of gradient", latents)
    report.publish(args.json)


def improved(
    draw: Draw, start: Tensor, images: Tensor, unlike: Callable[[Tensor], Tensor], steps: int
) -> Iterator[tuple[int, Tensor]]:
    """Number of each step and the latents after it, led by squared error and unlikeness of what is drawn of them."""
    latents = start.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([latents], lr=RATE)
    for step in range(1, steps + 1):
        with torch.autocast(start.device.type, torch.bfloat16):
            made = draw(latents)
        loss = F.mse_loss(made.float(), images) + LIKENESS * unlike(made.float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        yield step, latents.detach()


class _Scores:
    def __init__(self, report: Report, photos: Photos, draw: Draw, start: Tensor) -> None:
        self.report, self.photos, self.draw, self.start = report, photos, draw, start
        self.judge = FaceEncoder.from_pretrained("judge", device=start.device)

    @torch.no_grad()
    def add(self, name: str, latents: Tensor) -> None:
        quality, cosine, sharpness = compare_copies(self.judge, to_bytes(self.draw(latents)), self.photos)
        figures = {
            "psnr": float(quality.mean()),
            "judge_cosine": float(cosine.mean()),
            "sharpness": sharpness,
            "moved": float((latents - self.start).square().mean().sqrt() / self.start.std()),
        }
        text = "{psnr:.2f} dB, judge's cosine {judge_cosine:.3f}, sharpness {sharpness:.3f}, moved by {moved:.3f} of the spread"
        self.report.add(name, text.format(**figures))
        self.report.numbers[name] = figures


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    flags = parser(__doc__, people=32)
    flags.add_argument("--vae", type=Path, metavar="DIR", help="another autoencoder than the family's")
    flags.add_argument("--steps", nargs="+", type=int, default=(10, 30, 60))
    flags.set_defaults(cache=Path("runs/photos"))
    return flags.parse_args(argv)


if __name__ == "__main__":
    run(main)
