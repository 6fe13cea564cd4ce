"""How long the mini family takes: seconds per generated image, and `idgen demo` from a cold start.

python -m benchmarks.speed --threads 2
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import torch

from benchmarks.bars_pictures import add_speed
from benchmarks.generation import load_arc2face
from benchmarks.guides import add_identity_guidance
from benchmarks.report import Report, parser, run
from idgen.devices import resolve_device, resolve_dtype
from idgen.faces import FaceEncoder


def main(argv: Sequence[str] | None = None) -> None:
    flags = parser(__doc__, people=1)
    flags.add_argument("--steps", type=int, default=20)
    flags.add_argument("--guidance", type=float, default=2.0)
    add_identity_guidance(flags, "as `idgen generate` has it")
    flags.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    flags.add_argument("--threads", type=int, help="CPU threads of torch (default: its own choice)")
    args = flags.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    report = Report(f"Speed on {device}, {str(dtype).removeprefix('torch.')}")
    seconds, result = cold_start(args.device)
    report.add(
        "idgen demo from a cold start (new process, 4 images)",
        f"{seconds:.1f} s",
        "40 s",
        demo_seconds=seconds,
        demo=result,
    )
    pipe, encoder = load_arc2face(device, dtype), FaceEncoder.from_pretrained("mini", device=device)
    for batch in args.batches:
        settings = {"steps": args.steps, "guidance": args.guidance, "identity_guidance": args.identity_guidance}
        add_speed(report, pipe, encoder, batch=batch, **settings)
    report.publish(args.json)


def cold_start(device: str) -> tuple[float, dict[str, object]]:
    """Seconds of `idgen demo` in a new process, and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "idgen", "demo", "--out", folder, "--json", "--device", device]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    return seconds, json.loads(done.stdout)


if __name__ == "__main__":
    run(main)
