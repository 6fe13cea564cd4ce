"""How fast synthetic people are rendered: size x supersampling x device, the two rasterisers, and `idgen synth` as a whole.

    python -m benchmarks.synth_speed [--images 48] [--workers 1 2] [--json FILE]

Prints CPU milliseconds per image of one process (what a busy machine does not change much) and wall-clock images per second
of whole runs, files and ground truth included, from the first image on (starting a worker takes some seconds once).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import Report
from idgen.console import say
from idgen.synthetic import Renderer, sample_person, sample_shot
from idgen.synthetic.geometry import build_scene, triangles
from idgen.synthetic.rasteriser import rasterise_numpy, rasterise_torch
from idgen.synthetic.settings import SynthSettings
from idgen.synthetic.writer import write_dataset

SIZES = (64, 128, 256, 512)
SUPERSAMPLINGS = (1, 2)
PEOPLE, SHOTS = 8, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=48, help="per render setting (default: 48)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of whole runs (default: 1 2)")
    parser.add_argument("--synth-images", type=int, default=640, help="of each whole run (default: 640)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = Report(f"Rendering speed ({os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} when begun)")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        for size in SIZES:
            for supersampling in SUPERSAMPLINGS:
                measure_render(report, device, size, supersampling, args.images)
    for size in (128, 256):
        measure_rasterisers(report, size, args.images // 4)
    for workers in args.workers:
        measure_synth(report, workers, args.synth_images)
    report.publish(args.json)


def measure_render(report: Report, device: str, size: int, supersampling: int, images: int) -> None:
    """CPU and wall-clock milliseconds of `Renderer.render`, in batches of 8."""
    renderer = Renderer(device=device)
    people = [sample_person(0, 900_100 + i) for i in range(PEOPLE)]
    shots = [sample_shot(0, person, shot) for shot in range(SHOTS) for person in people]
    renderer.render(people[:1], shots[:1], size=size, supersampling=supersampling)  # compiles

    def render_all() -> None:
        for start in range(0, images, PEOPLE):
            who = shots[start % len(shots) :][:PEOPLE]
            renderer.render(people, who, size=size, supersampling=supersampling)

    cpu, wall = _milliseconds(render_all, -(-images // PEOPLE) * PEOPLE)
    name = f"{device}, {size} px, supersampling {supersampling}"
    report.add(name, f"{cpu:.0f} ms CPU, {wall:.0f} ms", **{f"render_{device}_{size}_{supersampling}": [cpu, wall]})
    say(report.rows[-1].value + "  " + name)


def measure_rasterisers(report: Report, size: int, images: int) -> None:
    """Milliseconds to find which triangle each sample (2 x 2 per pixel) sees, in numba and in torch; both must agree."""
    corners, _ = triangles()
    cull = np.zeros(len(corners), bool)
    side = 2 * size
    scenes = []
    for number in range(images):
        person = sample_person(0, 900_200 + number)
        scene = build_scene(person, sample_shot(0, person, 0))
        scenes.append(((scene.xy * side - 0.5).astype(np.float32), scene.depth.astype(np.float32)))
    found: dict[str, list[np.ndarray]] = {"numba": [], "torch": []}

    def in_numba() -> None:
        found["numba"] = [rasterise_numpy(xy, depth, corners, cull, side, side)[0] for xy, depth in scenes]

    def in_torch() -> None:
        triangle, back = torch.from_numpy(np.ascontiguousarray(corners)), torch.from_numpy(cull)
        found["torch"] = [
            rasterise_torch(torch.from_numpy(xy)[None], torch.from_numpy(depth)[None], triangle, back, side, side)[0][0]
            .numpy()
            for xy, depth in scenes
        ]  # fmt: skip

    in_numba()  # compiles
    for name, rasterise in (("numba", in_numba), ("torch", in_torch)):
        cpu, wall = _milliseconds(rasterise, images)
        report.add(f"rasteriser in {name}, {size} px", f"{cpu:.1f} ms CPU", **{f"raster_{name}_{size}": [cpu, wall]})
        say(report.rows[-1].value + "  " + report.rows[-1].name)
    same = np.mean([np.mean(a == b) for a, b in zip(found["numba"], found["torch"], strict=True)])
    report.add(
        f"samples on which the two agree, {size} px", f"{100 * same:.3f} %", **{f"raster_agree_{size}": float(same)}
    )


def measure_synth(report: Report, workers: int, images: int) -> None:
    """Images per second of `idgen synth` at 128 px, from the first image that was written to the last."""
    shots = 16
    settings = SynthSettings(people=max(1, images // shots), shots=shots, first_person=900_300)
    times: list[float] = []

    def watch(items: Iterable[None], total: int, text: str) -> Iterator[None]:
        for item in items:
            times.append(time.perf_counter())
            yield item

    before = _cpu_of_all()
    with tempfile.TemporaryDirectory() as folder:
        whole = write_dataset(settings, Path(folder) / "people", workers=workers, progress=watch)
    cpu = 1000 * (_cpu_of_all() - before) / whole.images
    after = [moment for moment in times if moment - times[0] > 0.01]  # the first batch arrives at once
    steady = len(after) / (times[-1] - times[0]) if after else 0.0
    report.add(
        f"idgen synth, 128 px, {workers} worker{'s' if workers > 1 else ''}",
        f"{steady:.1f} images/s ({whole.images_per_second:.1f} with the start, {whole.images} images, {cpu:.0f} ms CPU each)",
        **{f"synth_{workers}": [steady, whole.images_per_second, cpu]},
    )
    say(report.rows[-1].value + "  " + report.rows[-1].name)


def _cpu_of_all() -> float:
    """CPU seconds of this process and of the workers that have ended."""
    return sum(os.times()[:4])


def _milliseconds(work: Callable[[], None], images: int) -> tuple[float, float]:
    """(CPU, wall-clock) milliseconds per image."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return 1000 * (time.process_time() - cpu) / images, 1000 * (time.perf_counter() - wall) / images


if __name__ == "__main__":
    main()
