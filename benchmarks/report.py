"""Tables for people, JSON for programs, and the flags that all benchmarks share."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idgen.console import say
from idgen.errors import IdgenError
from idgen.evaluation.rendered import TEST, VALIDATION
from idgen.files import atomic_write


@dataclass(frozen=True)
class Row:
    """One line of a table: what was measured, the value, and the bar it must reach (empty: none)."""

    name: str
    value: str
    floor: str = ""
    aim: str = ""


@dataclass
class Report:
    """Rows to print and numbers to store, gathered as a benchmark goes."""

    title: str
    rows: list[Row] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: str, floor: str = "", aim: str = "", **numbers: Any) -> None:
        """One row, and the numbers behind it under their JSON names."""
        self.rows.append(Row(name, value, floor, aim))
        self.numbers |= numbers

    def markdown(self) -> str:
        bars = any(row.floor or row.aim for row in self.rows)
        head = ["", "measured", *(["floor", "aim"] if bars else [])]
        lines = [f"### {self.title}", "", _line(head), _line(["---"] * len(head))]
        for row in self.rows:
            lines.append(_line([row.name, row.value, *([row.floor, row.aim] if bars else [])]))
        return "\n".join(lines)

    def publish(self, json_file: Path | None) -> None:
        """Print the table on stdout; write the numbers and the rows where asked."""
        print(self.markdown(), flush=True)
        if json_file is not None:
            content = {"title": self.title, **self.numbers, "rows": [vars(row) for row in self.rows]}
            with atomic_write(json_file) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def parser(description: str | None, people: int) -> argparse.ArgumentParser:
    """The flags of every benchmark."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--people", type=int, default=people, help=f"held-out people (default: {people})")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random (default: 0)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep rendered photos here between runs")
    parser.add_argument("--workers", type=int, help="rendering processes (default: one per core)")
    return parser


def add_split(flags: argparse.ArgumentParser) -> None:
    """`--split`: the people of whom figures are told, or those by whom settings are chosen."""
    flags.add_argument("--split", choices=("test", "validation"), default="test")


def chosen_people(args: argparse.Namespace) -> range:
    """As many of the split's people as asked for."""
    first = {"test": TEST, "validation": VALIDATION}[args.split]
    return range(first, first + args.people)


@contextmanager
def attempted(report: Report, what: str) -> Iterator[None]:
    """Let the other rows be measured where a part of the family is missing: this row then says what is."""
    try:
        with timed(what):
            yield
    except IdgenError as error:
        report.add(what, f"not measured: {error}")


def run(main: Callable[[], None]) -> None:
    """Entry point of every benchmark: shows a user's mistake as one line."""
    try:
        main()
    except IdgenError as error:
        say(f"idgen: {error}")
        sys.exit(2)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say on stderr how long a part took."""
    start = time.perf_counter()
    yield
    say(f"{what}: {time.perf_counter() - start:.1f} s")


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
