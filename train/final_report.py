"""The last thing that a training writes: `report/` with curves, grids, settings, figures and a model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from idgen.files import atomic_write
from idgen.train.config import TrainConfig, dump
from idgen.train.curve_picture import draw_curves
from idgen.train.train_log import LOG, read_log
from idgen.version import __version__

UNDRAWN = {"step", "minutes", "minutes_left"}


def write_report(config: TrainConfig, what: str, found: dict[str, Any]) -> Path:
    """Writes `output_dir/report` anew from the log.

    Args:
        what: one line on what was trained.
        found: what was left out of the data, and why training ended, if before its time.
    """
    folder = config.output_dir / "report"
    rows = read_log(config.output_dir / LOG)
    curves = _curves(rows)
    if curves:
        with atomic_write(folder / "curves.png") as temporary:
            draw_curves(curves).save(temporary)
    with atomic_write(folder / "config.yaml") as temporary:
        temporary.write_text(dump(config), encoding="utf-8")
    grids = sorted((config.output_dir / "grids").glob("*.png"))
    for grid in grids:
        with atomic_write(folder / "grids" / grid.name) as temporary:
            shutil.copyfile(grid, temporary)
    figures = _figures(rows) | found
    with atomic_write(folder / "figures.json") as temporary:
        temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(_card(config, what, figures, bool(curves), grids[-1:]), encoding="utf-8")
    return folder


def _curves(rows: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        values = {name: value for name, value in row.items() if name not in UNDRAWN}
        values |= {f"validation: {name}": value for name, value in (values.pop("validation", None) or {}).items()}
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
                curves.setdefault(name, []).append((float(row["step"]), float(value)))
    return {name: points for name, points in curves.items() if len(points) > 1}


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    losses = [row for row in rows if "loss" in row]
    checks = [row for row in rows if "validation" in row]
    last: dict[str, Any] = losses[-1] if losses else {}
    return {
        "steps": max((int(row["step"]) for row in rows), default=0),
        "minutes": last.get("minutes"),
        "last_loss": last.get("loss"),
        "validation": checks[-1]["validation"] if checks else {},
        "not_finite": [row for row in rows if "not_finite" in row],
        "validations_out_of_memory": [row["step"] for row in rows if "validation_failed" in row],
    }


def _card(config: TrainConfig, what: str, figures: dict[str, Any], curves: bool, grids: Sequence[Path]) -> str:
    name = config.output_dir.name
    settings = config.model_dump(mode="json")
    data = [f"- {key}: `{settings[key]}`" for key in ("data", "validation", "base", "model") if settings.get(key)]
    skipped = len(figures["not_finite"])
    lines = [
        "---", "library_name: idgen", "tags: [face, identity, diffusion]", "---", "",
        f"# {name}", "",
        what.strip().splitlines()[0] if what.strip() else "Trained weights.", "",
        f"Trained by idgen {__version__}: {figures['steps']} steps of {config.train_batch_size}, seed {config.seed}"
        + (f", {figures['minutes']} minutes" if figures["minutes"] else "") + ". All settings: [config.yaml](config.yaml).",
        *([f"Ended early: {figures['stopped']}."] if figures.get("stopped") else []),
        *([f"{skipped} steps were not finite and left out."] if skipped else []), "",
        "## Data", "", *(data or ["See config.yaml."]), "",
        *([f"```json\n{json.dumps(figures['data'], indent=1)}\n```", ""] if figures.get("data") else []),
        "## Figures", "",
        "By the averaged weights, at the last validation of the training; on people of no training where there are any."
        " Measure the result with `idgen evaluate` and a judge that took no part.", "",
        "| figure | value |", "|---|---|",
        *(f"| {key} | {value:.4g} |" for key, value in figures["validation"].items()), "",
        *(["![curves](curves.png)", ""] if curves else []),
        *(f"![the last grid](grids/{grid.name})" for grid in grids),
        "", "## Use", "",
        "The weights lie in `../weights`. A model that draws particular people is to be used with their consent only; pictures"
        " that it makes should be marked as generated, as idgen's pipelines do. The licence follows those of base and data.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)
