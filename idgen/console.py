"""What a person reads: text and progress bars on stderr, so that stdout holds nothing but the JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def say(text: str) -> None:
    """Print a line for the person at the terminal (stderr)."""
    print(text, file=sys.stderr, flush=True)


def progress(iterable: Iterable[Item], total: int | None = None, desc: str = "") -> Iterator[Item]:
    """Yield from `iterable` behind a progress bar on stderr; the bar leaves no line in a log file that nobody watches."""
    from tqdm import tqdm

    yield from tqdm(
        iterable, total=total, desc=desc, file=sys.stderr, dynamic_ncols=True, disable=not sys.stderr.isatty()
    )
