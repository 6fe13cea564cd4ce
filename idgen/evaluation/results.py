"""What an evaluation says: figures with intervals, and for each figure that was not taken the reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from idgen.metrics.bootstrap import Interval


class NotRun(Exception):
    """Raised where a figure can not be taken; the message says why, and what would mend it."""


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        name: in metrics.json.
        title: in the report.
        value: the number itself.
        interval: the 95 % bootstrap interval over people, where there is one.
        beside: what else must be read with it: the same figure of real photos, of a stranger, ...
        note: how many people or images it is over, where that is not all of them.
    """

    name: str
    title: str
    value: float
    interval: Interval | None = None
    beside: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def of(
        cls, name: str, title: str, interval: Interval, beside: dict[str, float] | None = None, note: str = ""
    ) -> Figure:
        """A figure whose value is the middle of an interval."""
        return cls(name, title, interval.value, interval, beside or {}, note)

    def as_dict(self) -> dict[str, Any]:
        """For metrics.json."""
        content: dict[str, Any] = {"title": self.title, "value": self.value}
        if self.interval is not None:
            content |= {"low": self.interval.low, "high": self.interval.high, "level": self.interval.level}
        if self.beside:
            content["beside"] = self.beside
        if self.note:
            content["note"] = self.note
        return content

    def __str__(self) -> str:
        return str(self.interval) if self.interval is not None else f"{self.value:.4g}"


@dataclass(frozen=True)
class Flag:
    """Something about the pictures that makes their figures suspect.

    Attributes:
        name: one word or two, as in the column `flags` of metrics.csv.
        text: one sentence with the numbers.
        images: how many pictures bear it (0 for what is seen in the whole set only).
    """

    name: str
    text: str
    images: int = 0
