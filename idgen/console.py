"""What a person reads: text and progress bars on stderr, so that stdout holds nothing but the JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")

_bars: list[Any] = []  # the bars on the screen, so that text does not land in the middle of one


def say(text: str) -> None:
    """Print a line for the person at the terminal (stderr), above a progress bar if there is one."""
    if _bars:
        _bars[-1].write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


def note(lines: Iterable[str]) -> None:
    """Say what is doubtful about what was given or made, a line each."""
    for line in lines:
        say(f"note: {line}")


def progress(iterable: Iterable[Item], total: int | None = None, desc: str = "") -> Iterator[Item]:
    """Yield from `iterable` behind a progress bar on stderr; in a log file it adds a line every ten seconds at most."""
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(iterable, total=total, desc=desc, file=sys.stderr, dynamic_ncols=True, mininterval=interval) as bar:
        _bars.append(bar)
        try:
            yield from bar
        finally:
            if bar in _bars:
                _bars.remove(bar)


def end_progress() -> None:
    """Close the bars of work that was broken off: what is said next starts on a line of its own."""
    while _bars:
        _bars.pop().close()


class Bar:
    """A progress bar on stderr that is moved by hand; text that is said meanwhile stands above it."""

    def __init__(self, total: int, desc: str) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, desc=desc, file=sys.stderr, dynamic_ncols=True)
        _bars.append(self._bar)

    def move(self, place: int) -> None:
        """To this place of `total`."""
        self._bar.update(place - self._bar.n)

    def close(self) -> None:
        if self._bar in _bars:
            _bars.remove(self._bar)
        self._bar.close()
