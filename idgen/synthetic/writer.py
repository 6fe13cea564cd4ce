"""`idgen synth`: a data set of synthetic people on disk, byte for byte the same however it was made.

The work is cut into units (the shots of a few people) by the settings alone. A unit is rendered in fixed batches and
becomes visible in one rename, so neither the number of workers nor a kill at any instant changes the finished tree.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from idgen.errors import IdgenError
from idgen.version import __version__

from .layouts import LAYOUTS, PARTS, put
from .samples import render_unit
from .settings import SynthSettings, Unit, check
from .workers import Work, run_units

SETTINGS_FILE = "idgen-synth.json"
Progress = Callable[[Iterable[None], int, str], Iterable[None]]  # (items, total, description)


@dataclass(frozen=True)
class SynthReport:
    """What `write_dataset` did: `rendered` of `images` in `seconds`; the others were there from an earlier run."""

    images: int
    people: int
    rendered: int
    seconds: float
    images_per_second: float
    out: str


def write_dataset(
    settings: SynthSettings, out: Path, *, workers: int = 1, progress: Progress | None = None
) -> SynthReport:
    """Renders what is still missing of the data set in the folder `out`.

    progress: wraps an iterable of one item per rendered image, as `idgen.console.progress` does.
    Raises IdgenError when the folder can not be written, holds something else, was made with other settings, or is
    being written by another process.
    """
    check(workers > 0, f"--workers must be at least 1, not {workers}")
    start = time.perf_counter()
    try:
        _check_folder(out, settings)
        (out / PARTS).mkdir(parents=True, exist_ok=True)
        with FileLock(out / PARTS / "lock", timeout=0):
            put(out / SETTINGS_FILE, _describe(settings), out / PARTS)
            rendered = _complete(settings, out, workers, progress)
        shutil.rmtree(out / PARTS)
    except Timeout:
        raise IdgenError(
            f"{out} is being written by another idgen synth: wait for it, or choose another --out"
        ) from None
    except OSError as error:
        place = error.filename2 or error.filename or out
        raise IdgenError(
            f"cannot write {place}: {error.strerror or error}; free it, or choose another --out"
        ) from error
    seconds = time.perf_counter() - start
    return SynthReport(settings.images, settings.people, rendered, seconds, rendered / seconds, str(out))


def _check_folder(out: Path, settings: SynthSettings) -> None:
    """Raises IdgenError unless `out` is new, empty, or was begun with the same settings. Changes nothing."""
    if not out.exists():
        return
    check(out.is_dir(), f"--out {out} is a file: name a folder")
    described = out / SETTINGS_FILE
    if not described.exists():
        others = sorted(path.name for path in out.iterdir() if path.name != PARTS)
        check(not others, f"--out {out} holds something else ({', '.join(others[:3])}): name a new or empty folder")
        return
    try:
        before = json.loads(described.read_text(encoding="utf-8"))
        assert isinstance(before, dict)
    except (ValueError, AssertionError):
        raise IdgenError(f"{described} is damaged: remove the folder and begin again") from None
    now = json.loads(_describe(settings))
    changed = [f"{key} {before.get(key)!r}, not {now[key]!r}" for key in now if before.get(key) != now[key]]
    check(not changed, f"{out} was begun with {'; '.join(changed)}: use the same settings, or another --out")


def _describe(settings: SynthSettings) -> bytes:
    return (json.dumps({"idgen": __version__, **asdict(settings)}, indent=2) + "\n").encode()


def _complete(settings: SynthSettings, out: Path, workers: int, progress: Progress | None) -> int:
    """Renders the units that are missing and finishes the tree; returns the count of rendered images."""
    layout = LAYOUTS[settings.format](out, settings.shots)
    units = settings.units(layout.images_per_unit)
    layout.resume(units)
    missing = [unit for unit in units if not layout.has(unit)]
    total = sum(len(unit.people) for unit in missing) * settings.shots
    counts = run_units(make_work, (settings, out), missing, workers)
    images = (None for count in counts for _ in range(count))
    for _ in progress(images, total, "synth") if progress else images:
        pass
    layout.finish(units)
    return total


def make_work(settings: SynthSettings, out: Path) -> Work:
    """What a worker does with each of its units; called once in each worker."""
    from . import Renderer

    renderer = Renderer(device=settings.device)
    layout = LAYOUTS[settings.format](out, settings.shots)

    def work(unit: Unit) -> Iterator[int]:
        return layout.save(unit, render_unit(renderer, unit, settings))

    return work
