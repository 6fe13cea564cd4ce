"""Plots as inline SVG: lines over a logarithmic or plain axis, and histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 40
COLOURS = ("#1764ab", "#c0392b", "#2e8b57", "#8e6bb0", "#7f7f7f")

Points = Sequence[tuple[float, float]]


def line_plot(series: dict[str, Points], x_title: str, y_title: str, *, log_x: bool = False) -> str:
    """Lines through points (x, y); y from 0 to 1. With `log_x` points at x <= 0 are left out."""
    drawn = {name: [p for p in points if p[0] > 0 or not log_x] for name, points in series.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return ""
    place = math.log10 if log_x else float
    xs = [place(x) for points in drawn.values() for x, _ in points]
    low, high = min(xs), max(max(xs), min(xs) + 1e-9)
    parts = [_frame(x_title, y_title), *_y_ticks(1.0)]
    ticks = range(math.ceil(low), math.floor(high) + 1) if log_x else np.linspace(low, high, 5)
    for tick in ticks:
        label = f"1e{tick}" if log_x else f"{tick:.2g}"
        parts.append(_x_tick(_x(float(tick), low, high), label))
    for colour, (name, points) in zip(_colours(), drawn.items(), strict=False):
        path = " ".join(f"{_x(place(x), low, high):.1f},{_y(y, 1.0):.1f}" for x, y in points)
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"><title>{escape(name)}</title></polyline>'
        )
    return _svg(parts, list(drawn))


def histogram(series: dict[str, Sequence[float]], x_title: str, bins: int = 40) -> str:
    """Shares of values per bin, as outlines on one axis; values that are no number are left out."""
    arrays = {name: np.asarray(values, np.float64) for name, values in series.items()}
    arrays = {name: values[np.isfinite(values)] for name, values in arrays.items()}
    arrays = {name: values for name, values in arrays.items() if len(values)}
    if not arrays:
        return ""
    low = min(float(values.min()) for values in arrays.values())
    high = max(max(float(values.max()) for values in arrays.values()), low + 1e-6)
    edges = np.linspace(low, high, bins + 1)
    shares = {name: np.histogram(values, edges)[0] / len(values) for name, values in arrays.items()}
    top = max(float(share.max()) for share in shares.values())
    parts = [_frame(x_title, "share"), *_y_ticks(top)]
    for tick in np.linspace(low, high, 6):
        parts.append(_x_tick(_x(float(tick), low, high), f"{tick:.2f}"))
    for colour, (name, share) in zip(_colours(), shares.items(), strict=False):
        steps = [f"{_x(low, low, high):.1f},{_y(0, top):.1f}"]
        for left, right, value in zip(edges[:-1], edges[1:], share, strict=True):
            steps += [
                f"{_x(left, low, high):.1f},{_y(value, top):.1f}",
                f"{_x(right, low, high):.1f},{_y(value, top):.1f}",
            ]
        steps.append(f"{_x(high, low, high):.1f},{_y(0, top):.1f}")
        parts.append(
            f'<polyline fill="{colour}" fill-opacity="0.15" stroke="{colour}" points="{" ".join(steps)}">'
            f"<title>{escape(name)}</title></polyline>"
        )
    return _svg(parts, list(shares))


def _x(value: float, low: float, high: float) -> float:
    return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)


def _frame(x_title: str, y_title: str) -> str:
    inner = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"'
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<rect {inner} fill="none" stroke="#bbb"/>'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_title)}</text>'
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{escape(y_title)}</text>'
    )


def _x_tick(x: float, label: str) -> str:
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#eee"/>'
        f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{escape(label)}</text>'
    )


def _y_ticks(top: float) -> list[str]:
    return [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(value, top):.1f}" y2="{_y(value, top):.1f}" stroke="#eee"/>'
        f'<text x="{LEFT - 6}" y="{_y(value, top) + 4:.1f}" text-anchor="end">{value:.2g}</text>'
        for value in np.linspace(0, top, 5).tolist()
    ]


def _svg(parts: list[str], names: list[str]) -> str:
    legend = "".join(
        f'<tspan x="{LEFT + 8}" dy="14" fill="{colour}">{escape(name)}</tspan>'
        for colour, name in zip(_colours(), names, strict=False)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">'
        f'{"".join(parts)}<text y="{TOP + 2}">{legend}</text></svg>'
    )


def _colours() -> list[str]:
    return list(COLOURS) * 3
