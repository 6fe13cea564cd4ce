"""What the mini family's autoencoder loses, on photos of held-out people.

python -m benchmarks.autoencoder --people 100
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.bars_pictures import add_autoencoder
from benchmarks.report import Report, add_split, chosen_people, parser, run
from idgen.devices import resolve_device, resolve_dtype
from idgen.evaluation.rendered import take_photos
from idgen.faces import FaceEncoder
from idgen.weights import find_mini


def main(argv: Sequence[str] | None = None) -> None:
    from diffusers import AutoencoderTiny

    flags = parser(__doc__, people=100)
    flags.add_argument("--shots", type=int, default=4, help="photos per person")
    add_split(flags)
    flags.set_defaults(cache=Path("runs/photos"))
    args = flags.parse_args(argv)
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    photos = take_photos(chosen_people(args), range(args.shots), seed=args.seed, cache=args.cache, workers=args.workers)
    vae = AutoencoderTiny.from_pretrained(find_mini("vae"), torch_dtype=dtype).to(device).eval()
    report = Report(f"Autoencoder, {args.people} {args.split} people x {args.shots} photos, {dtype}")
    add_autoencoder(report, vae, FaceEncoder.from_pretrained("judge", device=device), photos)
    report.publish(args.json)


if __name__ == "__main__":
    run(main)
