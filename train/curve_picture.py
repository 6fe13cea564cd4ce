"""Curves as one picture, with PIL alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, COLUMNS = 420, 260, 2
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 30, 34
LINE, SMOOTH, FRAME, TEXT = (176, 200, 224), (23, 100, 171), (200, 200, 200), (60, 60, 60)
WINDOW = 50  # the bold line is the mean over a fiftieth of the points


def draw_curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Image.Image:
    """One small plot each, over the steps.

    Args:
        curves: points (step, value) by name, two or more each.
    """
    rows = -(-len(curves) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * WIDTH, rows * HEIGHT), "white")
    for place, (name, points) in enumerate(curves.items()):
        plot = Image.new("RGB", (WIDTH, HEIGHT), "white")
        _plot(ImageDraw.Draw(plot), name, points)
        sheet.paste(plot, (place % COLUMNS * WIDTH, place // COLUMNS * HEIGHT))
    return sheet


def _plot(draw: ImageDraw.ImageDraw, name: str, points: Sequence[tuple[float, float]]) -> None:
    font = ImageFont.load_default(size=12)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_low, x_high, y_low, y_high = min(xs), max(xs), min(ys), max(ys)
    if y_high - y_low < 1e-12:
        y_low, y_high = y_low - 0.5, y_high + 0.5

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / max(1e-12, x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    draw.rectangle((LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM), outline=FRAME)
    draw.text((LEFT, 8), name, TEXT, font)
    for share in (0.0, 0.5, 1.0):
        y = y_low + share * (y_high - y_low)
        draw.text((LEFT - 6, at(x_low, y)[1]), f"{y:.3g}", TEXT, font, anchor="rm")
        x = x_low + share * (x_high - x_low)
        draw.text((at(x, y_low)[0], HEIGHT - BOTTOM + 6), f"{x:.0f}", TEXT, font, anchor="mt")
    draw.line([at(x, y) for x, y in points], LINE, 1)
    draw.line([at(x, y) for x, y in zip(xs, _smoothed(ys), strict=True)], SMOOTH, 2)


def _smoothed(values: Sequence[float]) -> list[float]:
    reach = max(0, len(values) // WINDOW)
    parts = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]
