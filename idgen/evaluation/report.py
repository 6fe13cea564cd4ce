"""report.html: one file with the figures, what was not measured and why, flags, plots and pictures; nothing is fetched by it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from idgen.evaluation.evidence import Evidence, Sheet
from idgen.evaluation.flags import Findings
from idgen.evaluation.identity_figures import tar_points
from idgen.evaluation.material import Photo
from idgen.evaluation.plots import Points, histogram, line_plot
from idgen.evaluation.results import Figure

SHOWN = 12  # pictures of each grid
CELL = 112  # pixels of each
STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #1d1d1f; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; } td, th { padding: 3px 12px 3px 0; text-align: left; vertical-align: top; }
td.number { white-space: nowrap; font-variant-numeric: tabular-nums; } .small { color: #666; font-size: 12px; }
.flag { background: #fdecea; border-left: 4px solid #c0392b; padding: 6px 12px; margin: 6px 0; }
.remark { background: #fff6e0; border-left: 4px solid #d79b00; padding: 6px 12px; margin: 6px 0; }
.fine { background: #eaf6ec; border-left: 4px solid #2e8b57; padding: 6px 12px; margin: 6px 0; }
.grid { display: flex; flex-wrap: wrap; gap: 12px; } .cell { font-size: 12px; } .cell img { display: block; }
svg text { font-size: 11px; fill: #444; }
"""


@dataclass(frozen=True)
class Page:
    """What the report says besides figures.

    Attributes:
        title: of the protocol and the source.
        facts: rows of the table of settings.
        published: rows of the paper's own table.
        notes: where the protocol departs from the paper.
    """

    title: str
    facts: dict[str, str]
    published: dict[str, dict[str, float]]
    notes: Sequence[str]


def write_report(evidence: Evidence, sheet: Sheet, findings: Findings, page: Page) -> str:
    """The page as text."""
    parts = [
        f"<h1>{escape(page.title)}</h1>",
        *_flags(evidence, findings),
        "<h2>Figures</h2>",
        figures_table(sheet.figures),
        *_plots(evidence, sheet),
        *_grids(evidence, sheet, findings),
        "<h2>Not measured</h2>",
        table(["figure", "why"], [[name, why] for name, why in sheet.not_run.items()]),
        *_published(page),
        "<h2>How</h2>",
        table(["", ""], [[name, value] for name, value in page.facts.items()]),
        *(f'<p class="small">{escape(note)}</p>' for note in page.notes),
    ]
    return html_page(page.title, parts)


def html_page(title: str, parts: Sequence[str]) -> str:
    """A whole document around its parts."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _flags(evidence: Evidence, findings: Findings) -> list[str]:
    parts = [f'<p class="remark">{escape(remark)}</p>' for remark in evidence.who.remarks]
    parts += [f'<p class="flag"><b>{escape(flag.name)}</b> &nbsp; {escape(flag.text)}</p>' for flag in findings.flags]
    few = sum(bool(names) for names in findings.per_image)
    if not findings.flags:
        parts.append(f'<p class="fine">No flag on the set; {few} of {len(findings.per_image)} pictures bear one.</p>')
    return parts


def figures_table(figures: Sequence[Figure]) -> str:
    """Figures with their intervals and what is to be read beside them, as an HTML table."""
    rows = []
    for figure in figures:
        beside = "; ".join(f"{name} {value:.3g}" for name, value in figure.beside.items())
        rows.append([figure.title, str(figure), beside, figure.note])
    return table(["", "measured [95 %]", "beside it", ""], rows, number=1)


def _plots(evidence: Evidence, sheet: Sheet) -> list[str]:
    parts = []
    if "roc" in sheet.curves:
        curves: dict[str, Points] = {name: tar_points(pairs) for name, pairs in sheet.curves["roc"].items()}
        parts.append(line_plot(curves, "false accept rate", "true accept rate", log_x=True))
        pairs = sheet.curves["roc"]
        values = {
            "generated to the person": pairs["generated"].genuine,
            "generated to others": pairs["generated"].impostor,
            "real photos of one person": pairs["real photos"].genuine,
        }
        parts.append(histogram({name: _thinned(part) for name, part in values.items()}, "cosine by the judge"))
    if "id_score" in sheet.columns:
        scores = torch.tensor(sheet.columns["id_score"], dtype=torch.float64)
        own = [float(scores[evidence.judge.made.set.person == person].mean()) for person in range(evidence.people)]
        ordered = sorted(value for value in own if value == value)
        points = [(index / max(1, len(ordered) - 1), min(max(value, 0.0), 1.0)) for index, value in enumerate(ordered)]
        parts.append(line_plot({"people": points}, "share of people", "id_score (0 to 1)"))
    drawn = [part for part in parts if part]
    return ["<h2>Plots</h2>", f'<div class="grid">{"".join(drawn)}</div>'] if drawn else []


def _grids(evidence: Evidence, sheet: Sheet, findings: Findings) -> list[str]:
    """Best, median and worst by id_score (or by the cosine to the references), and pictures with flags."""
    column = next((name for name in ("id_score", "cosine_to_references") if name in sheet.columns), None)
    parts = []
    if column is not None:
        scores = torch.tensor(sheet.columns[column], dtype=torch.float64)
        known = (~scores.isnan()).nonzero()[:, 0]
        order = known[scores[known].argsort(descending=True)]
        middle = max(0, len(order) // 2 - SHOWN // 2)
        for name, chosen in (
            ("Best", order[:SHOWN]),
            ("Median", order[middle : middle + SHOWN]),
            ("Worst", order[-SHOWN:]),
        ):
            cells = [_cell(evidence, index, f"{float(scores[index]):.2f}") for index in chosen.tolist()]
            parts += [f"<h2>{name} by {escape(column)}</h2>", f'<div class="grid">{"".join(cells)}</div>']
    failed = [index for index, names in enumerate(findings.per_image) if names][: 2 * SHOWN]
    cells = [_cell(evidence, index, ", ".join(findings.per_image[index])) for index in failed]
    parts.append("<h2>Failures and flags</h2>")
    parts.append(f'<div class="grid">{"".join(cells)}</div>' if cells else "<p>None.</p>")
    return parts


def _cell(evidence: Evidence, index: int, text: str) -> str:
    """A reference, another photo (the original, where there is one) and the picture, side by side."""
    material = evidence.material
    photo = material.generated[index]
    reference, other = (
        next((p for p in photos if p.person == photo.person), None) for photos in (material.references, material.others)
    )
    pictures = [_picture(shown) for shown in (reference, photo.target or other, photo) if shown is not None]
    strip = Image.new("RGB", (len(pictures) * (CELL + 2), CELL), "white")
    for place, picture in enumerate(pictures):
        strip.paste(picture, (place * (CELL + 2), 0))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    name = escape(photo.name)
    return (
        f'<div class="cell"><img alt="{name}" src="data:image/png;base64,{data}">'
        f"{escape(material.people[photo.person])} &nbsp; <b>{escape(text)}</b><br><span class=small>{name}</span></div>"
    )


def _picture(photo: Photo) -> Image.Image:
    image = Image.fromarray(photo.pixels())
    image.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
    return image


def _published(page: Page) -> list[str]:
    if not page.published:
        return []
    names = list(dict.fromkeys(name for row in page.published.values() for name in row))
    rows = [
        [method, *(f"{row[name]:g}" if name in row else "" for name in names)] for method, row in page.published.items()
    ]
    return ["<h2>Published (the paper's own judge and figures)</h2>", table(["", *names], rows)]


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], number: int = -1) -> str:
    """An HTML table; `number` is the column that holds numbers."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{"number" if index == number else ""}">{escape(str(value))}</td>'
            for index, value in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{titles}</tr>{body}</table>"


def _thinned(values: Tensor, most: int = 50_000) -> list[float]:
    step = max(1, len(values) // most)
    return values[::step].tolist()
