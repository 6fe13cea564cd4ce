"""Trains the whole mini family by one command: `python tools/train_mini.py configs/mini/plan_gpu_seeing.yaml --out runs/gpu`.

A plan names jobs: data to render, and stages of train/ with the minutes that each may take. A job starts when the jobs that it
needs have ended; those that wait on nothing run side by side. Every process is started at once and does its imports while it
waits. What a killed run has finished is not done again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from idgen.errors import IdgenError
from idgen.settings import read_yaml
from idgen.weights import mini_root

POLL = 0.2  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path, help="YAML: jobs by name")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, data and logs")
    parser.add_argument("--device", default="cpu", help="for rendering; trainings take the GPU that they find")
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    parser.add_argument("--deadline", type=float, help="minutes after which what still runs is ended")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the minutes and the people of every job")
    parser.add_argument("--rehearse", action="store_true", help="every job at its smallest, to see that the plan runs")
    parser.add_argument("--only", nargs="+", metavar="JOB")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        jobs: dict[str, dict[str, Any]] = read_yaml(args.plan)["jobs"]
        unknown = [name for name in args.only or () if name not in jobs]
        if unknown:
            raise IdgenError(f"{args.plan} has no job {unknown[0]!r}: its jobs are {', '.join(jobs)}")
        if args.job:
            return work(args.job, jobs[args.job], args)
        return direct({name: jobs[name] for name in args.only or jobs}, args)
    except IdgenError as error:
        print(f"train_mini: {error}", file=sys.stderr)
        return 2


def direct(jobs: dict[str, dict[str, Any]], args: argparse.Namespace) -> int:
    """Starts every job's process and waits for the last one to end."""
    (args.out / "state").mkdir(parents=True, exist_ok=True)
    running: dict[str, subprocess.Popen[bytes]] = {}
    started = time.monotonic()
    for name in jobs:
        if (args.out / "state" / f"{name}.done").exists():
            continue
        (args.out / "state" / f"{name}.failed").unlink(missing_ok=True)
        log = (args.out / f"{name}.log").open("ab")
        running[name] = subprocess.Popen([sys.executable, *sys.argv, "--job", name], stdout=log, stderr=log)
    bad = []
    while running:
        time.sleep(POLL)
        late = args.deadline is not None and time.monotonic() - started > 60 * args.deadline
        for name, process in list(running.items()):
            if late and process.poll() is None:
                process.kill()
                process.wait()
            if process.poll() is None:
                continue
            del running[name]
            good = process.returncode == 0
            (args.out / "state" / f"{name}.{'done' if good else 'failed'}").touch()
            bad += [] if good else [name]
            minutes = (time.monotonic() - started) / 60
            print(
                f"{minutes:6.2f} min  {name}: {'done' if good else 'FAILED, see ' + str(args.out / (name + '.log'))}",
                flush=True,
            )
    return 1 if bad else 0


def work(name: str, job: dict[str, Any], args: argparse.Namespace) -> int:
    """One job, in its own process."""
    # What only gets ready lets those pass that work already; nobody but root can take that back.
    polite = hasattr(os, "geteuid") and os.geteuid() == 0
    if polite:
        os.nice(10)
    if "synth" in job:
        import_module("idgen.synthetic.writer")
    else:
        import_module(f"idgen.train.{job['stage']}")
    for need in job.get("needs", []):
        while not (args.out / "state" / f"{need}.done").exists():
            if (args.out / "state" / f"{need}.failed").exists():
                print(f"{name} needs {need}, which failed")
                return 1
            time.sleep(POLL)
    if polite:
        os.nice(-10)
    if "synth" in job:
        return render(name, job["synth"], args)
    minutes = job["minutes"] * args.scale
    settings = {"output_dir": str(args.out / name), "max_minutes": minutes, "max_train_steps": 10**9}
    # Every validation leaves finished weights: what the deadline cuts short is not lost.
    settings |= {"validation_steps": 250, "validation_at_start": False, "checkpointing_steps": 10**9}
    settings |= {"data": "{out}/data/train", "validation": "{out}/data/validation", **job.get("set", {})}
    if args.rehearse:
        settings |= {"max_minutes": 0.05, "train_batch_size": 8, "lr_warmup_steps": 2} | job.get("rehearse", {})
    flags = [f"{key}={_filled(value, args.out)}" for key, value in settings.items()]
    config = ["--config", str(args.plan.parent / f"{job['config']}.yaml")]
    sys.argv = [job["stage"], *config, *(word for flag in flags for word in ("--set", flag))]
    from idgen.train.loop import run

    run(*stage_of(job["stage"]))
    return 0


def stage_of(training: str) -> tuple[Any, Any]:
    """The stage of train/NAME.py, and the class of its settings."""
    from idgen.train.loop import Stage

    module = import_module(f"idgen.train.{training}")
    (stage,) = (
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Stage) and kind.__module__ == module.__name__
    )
    return stage, get_args(stage.__orig_bases__[0])[0]  # type: ignore[attr-defined]


def render(name: str, settings: dict[str, int], args: argparse.Namespace) -> int:
    from idgen import cli

    people = 12 if args.rehearse else max(16, round(settings["people"] * args.scale))
    workers = min(args.workers, settings.get("workers", args.workers))
    words = ["synth", "--people", str(people), "--shots", str(settings["shots"]), "--format", "arrays"]
    words += ["--first-person", str(settings["first_person"]), "--out", str(args.out / "data" / name)]
    return cli.main([*words, "--device", args.device, "--workers", str(workers)])


def _filled(value: Any, out: Path) -> str:
    """`{out}` stands for the run's folder, `{mini}` for the family that ships."""
    if not isinstance(value, str):
        return "null" if value is None else str(value)
    return value.replace("{out}", str(out)).replace("{mini}", str(mini_root()))


if __name__ == "__main__":
    # Small operations on many cores: threads of one process would only get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    sys.exit(main())
