"""Prints figures of evaluations as Markdown, side by side: `python tools/results_table.py one/metrics.json four/metrics.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def results_table(contents: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """A row per figure, a column per evaluation, and what is to be read beside the first one's.

    Args:
        contents: of metrics.json files.
        names: of the columns.
    """
    titles: dict[str, str] = {}
    for content in contents:
        titles |= {name: figure["title"] for name, figure in content["metrics"].items() if name not in titles}
    lines = ["| | " + " | ".join(names) + " | beside it |", "|---|" + "---|" * (len(names) + 1)]
    for name, title in titles.items():
        cells = [_cell(content["metrics"].get(name)) for content in contents]
        beside = contents[0]["metrics"].get(name, {}).get("beside", {})
        context = ", ".join(f"{what} {value:.3f}" for what, value in beside.items())
        lines.append(f"| {title} | {' | '.join(cells)} | {context} |")
    return "\n".join(lines)


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        return "not run"
    if "low" in figure:
        return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
    return f"{figure['value']:.4g}"


if __name__ == "__main__":
    files = [Path(name) for name in sys.argv[1:]]
    print(
        results_table(
            [json.loads(file.read_text(encoding="utf-8")) for file in files], [file.parent.name for file in files]
        )
    )
