"""Contact sheets: titled rows of pictures with a line of text under each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

_BACKGROUND = (255, 255, 255)
_INK = (30, 30, 30)
_GAP = 8


@dataclass(frozen=True)
class SheetRow:
    """One row: pictures of any size, a title above them and a label under each (or no labels)."""

    images: Sequence[Image.Image]
    labels: Sequence[str] = field(default=())
    title: str = ""


def contact_sheet(rows: Sequence[SheetRow], *, cell: int = 160, columns: int | None = None) -> Image.Image:
    """Lay rows of pictures out on one white RGB picture.

    Args:
        rows: what to show, top to bottom. A row longer than `columns` is wrapped.
        cell: pixels per picture side; a picture is scaled to fit and centred, its aspect ratio kept.
        columns: pictures side by side; by default the longest row's number.

    Raises:
        ValueError: with no picture at all, or a row whose labels are not as many as its pictures.
    """
    widest = max((len(row.images) for row in rows), default=0)
    if widest == 0:
        raise ValueError("a contact sheet needs at least one picture")
    for row in rows:
        if row.labels and len(row.labels) != len(row.images):
            raise ValueError(f"row {row.title!r} has {len(row.images)} pictures and {len(row.labels)} labels")
    columns = columns or widest
    font = ImageFont.load_default(size=max(10, cell // 11))
    line = _line_height(font)
    lines = [strip for row in rows for strip in _wrap(row, columns)]
    height = _GAP + sum(_strip_height(strip, cell, line) for strip in lines)
    sheet = Image.new("RGB", (_GAP + columns * (cell + _GAP), height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for strip in lines:
        _draw_strip(sheet, draw, strip, top, cell, line, font)
        top += _strip_height(strip, cell, line)
    return sheet


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _wrap(row: SheetRow, columns: int) -> list[SheetRow]:
    return [
        SheetRow(row.images[start : start + columns], row.labels[start : start + columns], row.title * (start == 0))
        for start in range(0, len(row.images), columns)
    ]


def _strip_height(strip: SheetRow, cell: int, line: int) -> int:
    return line * bool(strip.title) + cell + line * bool(strip.labels) + _GAP


def _draw_strip(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, strip: SheetRow, top: int, cell: int, line: int, font: _Font
) -> None:
    if strip.title:
        draw.text((_GAP, top), _fitted(strip.title, sheet.width - 2 * _GAP, font), fill=_INK, font=font)
        top += line
    for column, image in enumerate(strip.images):
        left = _GAP + column * (cell + _GAP)
        picture = _scaled(image, cell)
        sheet.paste(picture, (left + (cell - picture.width) // 2, top + (cell - picture.height) // 2))
        if strip.labels:
            text = _fitted(strip.labels[column], cell, font)
            draw.text((left + (cell - font.getlength(text)) / 2, top + cell), text, fill=_INK, font=font)


def _scaled(image: Image.Image, cell: int) -> Image.Image:
    scale = cell / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _fitted(text: str, width: float, font: _Font) -> str:
    """The text, cut with dots where it would run into its neighbour."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "..") > width:
        text = text[:-1]
    return text + ".."


def _line_height(font: _Font) -> int:
    _, top, _, bottom = font.getbbox("Ag|")
    return int(bottom + top) + 2
