"""What a reward's gradient costs through the whole decoder, a small one, or the part around the face: time and peak memory.

    python -m benchmarks.decode_cost --family mini
    python -m benchmarks.decode_cost --family sd15 --batch 1 --face-share 0.25

`decoding` is latents to pictures and backwards (in `crop` with the preview). `whole step` adds what every mode pays alike:
finding the face, and the aligned crop through the recogniser and back; the UNet's own steps are left out. `mini` has the shipped
autoencoder and recogniser. `sd15` has networks of Stable Diffusion 1.5's shapes at 512 px (AutoencoderKL, AutoencoderTiny) and an
IResNet-50, with random weights, which take as long. Each figure comes from a process of its own, so that memory is not another's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from benchmarks.report import Report, parser, run, timed
from idgen.devices import resolve_device
from idgen.faces import FaceEncoder
from idgen.faces.torch_backend import TorchDetector, TorchRecogniser
from idgen.models.iresnet import iresnet50
from idgen.models.mini_detector import MiniDetector
from idgen.models.tiny_decoder import TinyDecoder
from idgen.rewards.identity import IdentityReward
from idgen.rewards.views import Asked, CropView, Decoder, FaceFinder, WholeView, vae_decoder
from idgen.weights import find_mini

MODES = ("full", "tiny", "crop")
DECODING = "decoding"
PARTS = (DECODING, "whole step")
BAR = 0.25
# The landmarks of a face, in units of its aligned crop.
FACE = torch.tensor([[0.342, 0.461], [0.657, 0.46], [0.5, 0.641], [0.371, 0.825], [0.632, 0.824]])


class Planted:
    """Looks for faces, for the price of it, and then says where one is: pictures of random latents show none.

    Args:
        find: None looks for nothing.
        share: side of the face's aligned crop over that of the picture.
    """

    def __init__(self, find: FaceFinder | None, share: float) -> None:
        self.find, self.share = find, share

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        if self.find is not None:
            self.find(pictures)
        side = pictures.shape[-1]
        landmarks = (FACE * self.share + (1 - self.share) / 2) * side
        count = len(pictures)
        return landmarks.expand(count, 5, 2).to(pictures.device), torch.ones(count, dtype=torch.bool).to(
            pictures.device
        )


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    if args.one:
        print(json.dumps(measure(args)))
        return
    report = Report(
        f"A reward step's decoding, {args.family}, batch {args.batch}, the face's crop {args.face_share:.0%} of the side,"
        f" {torch.get_num_threads()} threads"
    )
    costs: dict[str, dict[str, dict[str, float]]] = {mode: {} for mode in MODES}
    for mode, part in product(MODES, PARTS):
        with timed(f"{mode}, {part}"):
            words = [
                "--one",
                mode,
                part,
                "--family",
                args.family,
                "--batch",
                str(args.batch),
                "--rounds",
                str(args.rounds),
            ]
            words += ["--face-share", str(args.face_share), "--device", args.device]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.decode_cost", *words], check=True, stdout=subprocess.PIPE, text=True
            )
            costs[mode][part] = json.loads(done.stdout.splitlines()[-1])
    full = costs["full"]
    for mode, cost in costs.items():
        for part in PARTS:
            bar = f"{BAR}" if part == DECODING and mode != "full" else ""
            seconds, memory = (
                f"{cost[part][key]:.3g} ({cost[part][key] / full[part][key]:.2f} of full)"
                for key in ("seconds", "megabytes")
            )
            report.add(f"{mode}, {part}: seconds / peak MB", f"{seconds} / {memory}", bar)
    report.numbers |= {"family": args.family, "batch": args.batch, "face_share": args.face_share, "costs": costs}
    report.publish(args.json)


def measure(args: argparse.Namespace) -> dict[str, float]:
    """The best time of a part and the memory that it took at its peak beyond the networks'."""
    mode, part = args.one
    device = resolve_device(args.device)
    full, tiny, encoder, shape = (_mini if args.family == "mini" else _sd15)(device)
    reward, asked = IdentityReward(encoder), Asked(torch.randn(args.batch, 512, device=device))
    latents = torch.randn(args.batch, *shape, generator=torch.Generator().manual_seed(0)).to(device)

    planted = Planted(None if part == DECODING else FaceFinder(encoder), args.face_share)
    look = CropView(full, planted, tiny) if mode == "crop" else WholeView(full if mode == "full" else tiny, planted)

    def job() -> None:
        view = look(latents.clone().requires_grad_())
        (view.pictures.sum() if part == DECODING else reward(view, asked).mean()).backward()

    return _cost(job, args.rounds, device)


def _cost(job: Callable[[], None], rounds: int, device: torch.device) -> dict[str, float]:
    before, times = _memory(device, peak=False), []
    for _ in range(rounds):
        start = time.perf_counter()
        job()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    # Where a job needs next to nothing, what others give back meanwhile can be more.
    return {"seconds": min(times), "megabytes": max(0, _memory(device, peak=True) - before) / 1e6}


def _mini(device: torch.device) -> tuple[Decoder, Decoder, FaceEncoder, tuple[int, int, int]]:
    vae = AutoencoderTiny.from_pretrained(find_mini("vae"), torch_dtype=torch.float32)
    # Random weights take as long as trained ones.
    tiny = TinyDecoder(vae.config.latent_channels).eval().requires_grad_(False).to(device)
    encoder = FaceEncoder.from_pretrained("mini", device=device)
    return _frozen(vae, device), tiny, encoder, (vae.config.latent_channels, 16, 16)


def _sd15(device: torch.device) -> tuple[Decoder, Decoder, FaceEncoder, tuple[int, int, int]]:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    sizes = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
    full, tiny = AutoencoderKL(**sizes, **blocks, sample_size=512), AutoencoderTiny()
    recogniser = TorchRecogniser(iresnet50().to(device))
    encoder = FaceEncoder(TorchDetector(MiniDetector().to(device).eval()), recogniser, "random", device)
    return _frozen(full, device), _frozen(tiny, device), encoder, (4, 64, 64)


def _frozen(vae: Any, device: torch.device) -> Decoder:
    vae.encoder = None
    return vae_decoder(vae.eval().requires_grad_(False).to(device))


def _memory(device: torch.device, *, peak: bool) -> float:
    """Bytes now, from when on peaks are counted; or the peak since. Of the device, or else of this process."""
    if device.type == "cuda":
        if peak:
            return float(torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    if not peak:
        # Loading networks took more than they weigh: Linux forgets that peak when told so.
        Path("/proc/self/clear_refs").write_text("5")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(status["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    flags = parser(__doc__, people=0)
    flags.add_argument("--family", choices=("mini", "sd15"), default="mini")
    flags.add_argument("--batch", type=int, default=4)
    flags.add_argument("--rounds", type=int, default=3, help="the best counts (default: 3)")
    flags.add_argument(
        "--face-share", type=float, default=0.5, help="side of the aligned crop over that of the picture"
    )
    flags.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    return flags.parse_args(argv)


if __name__ == "__main__":
    run(main)
