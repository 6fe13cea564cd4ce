"""Testing a recogniser: verification sets in .bin files, IJB's templates, and rendered people."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from idgen.console import say
from idgen.errors import IdgenError
from idgen.evaluation.bins import read_bin
from idgen.evaluation.cache import Picture, RowCache
from idgen.evaluation.evidence import Sheet
from idgen.evaluation.fingerprints import recogniser_fingerprint, short
from idgen.evaluation.ijb import pair_cosines, read_ijb
from idgen.evaluation.output import FORMAT, finite, versions
from idgen.evaluation.plots import histogram, line_plot
from idgen.evaluation.processes import Processes
from idgen.evaluation.protocol import Protocol, load_protocol
from idgen.evaluation.readers import VERSION, FaceReader, FaceTable
from idgen.evaluation.report import figures_table, html_page, table
from idgen.evaluation.results import Figure
from idgen.files import atomic_write, check_output
from idgen.metrics import (
    equal_error_rate,
    pair_accuracy,
    pool_templates,
    roc_curve,
    tar_at_far,
    tar_at_nearest_far,
    ten_fold_accuracy,
)
from idgen.metrics.bootstrap import Interval
from idgen.metrics.identity import found, unit

if TYPE_CHECKING:
    from idgen.evaluation.runner import Request
    from idgen.faces import FaceEncoder

SHOWN = 8  # pairs of each grid
# What is about generated pictures, of which a test of a recogniser has none.
NOT_TAKEN = (
    "training",
    "lookalikes",
    "judge",
    "same_judge",
    "made_with",
    "rewarded_by",
    "measures",
    "prompts",
    "base",
    "clip",
    "training_data",
)


class AlignedReader:
    """Embeddings of faces that are aligned already: of the face and its mirror image, added up as the field's tests do."""

    def __init__(self, encoder: FaceEncoder) -> None:
        self.encoder = encoder
        self.key = f"aligned-{VERSION}-{short(recogniser_fingerprint(encoder))}"
        self.width = 512

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        crops = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        crops = crops.to(self.encoder.device)
        vectors = self.encoder.encode_aligned(crops) + self.encoder.encode_aligned(crops.flip(3))
        return torch.nn.functional.pad(vectors.float().cpu(), (0, self.width - vectors.shape[1]))


@dataclass(frozen=True)
class Judged:
    """Pairs that a recogniser has scored.

    Attributes:
        scores: (pairs,) cosines.
        same: (pairs,) bool.
        pictures: of a pair, for the grids; None where there are too many to keep.
    """

    scores: Tensor
    same: Tensor
    pictures: list[tuple[Picture, Picture]] | None


def verify(request: Request) -> dict[str, Any]:
    """Test the recogniser `request.source` by a verification protocol; writes report.html, metrics.json, metrics.csv.

    Raises:
        IdgenError: no such recogniser, a data set that is missing or damaged, or something in the request that plays no part.
    """
    from idgen.faces import FaceEncoder

    check_output(request.out, folder=True)
    protocol = load_protocol(request.protocol, list(request.settings))
    _check_request(request, protocol)
    processes = Processes.of_accelerate(request.device)
    device = processes.device(request.device)
    encoder = FaceEncoder.from_pretrained(request.source, device=device)
    cache = RowCache(request.kept / "readings")
    sheet = Sheet()
    kept: dict[str, Any] = {"batch": max(request.batch, 64), "processes": processes}
    if protocol.layout == "bin":
        judged = _bin(_data(request, protocol, "FILE.bin"), encoder, cache, protocol, sheet, kept)
    elif protocol.layout == "ijb":
        judged = _ijb(_data(request, protocol, "DIR"), encoder, cache, protocol, sheet, kept)
    elif protocol.layout == "rendered":
        judged = _rendered(request, encoder, cache, protocol, sheet, kept)
    else:
        raise IdgenError(
            f"protocol {protocol.name!r} verifies and has the layout {protocol.layout!r}: use bin, ijb or rendered"
        )
    if not processes.main:
        return {}
    content = {
        "format": FORMAT,
        "protocol": protocol.name,
        "recogniser": {"name": encoder.recogniser, "fingerprint": short(recogniser_fingerprint(encoder))},
        "pairs": len(judged.same),
        "same": int(judged.same.sum()),
        "metrics": {figure.name: figure.as_dict() for figure in sheet.figures},
        "not_run": sheet.not_run,
        "device": str(device),
        "versions": versions(),
    }
    return _write(request, protocol, judged, sheet, content)


def _check_request(request: Request, protocol: Protocol) -> None:
    untaken = NOT_TAKEN if protocol.layout != "rendered" else ("references", *NOT_TAKEN)
    usual = {field.name: field.default for field in fields(request)}
    for name in untaken:
        if getattr(request, name) != usual[name]:
            flag = f"--{name.replace('_', '-')}"
            why = "renders its own people" if name == "references" else "tests a recogniser, not pictures"
            raise IdgenError(f"protocol {protocol.name!r} {why}: leave {flag} out, or choose another protocol")


def _bin(
    file: Path, encoder: FaceEncoder, cache: RowCache, protocol: Protocol, sheet: Sheet, kept: dict[str, Any]
) -> Judged:
    pairs = read_bin(file)
    rows = cache.rows(AlignedReader(encoder), pairs.faces, what=f"{encoder.recogniser}: {file.name}", **kept)
    first, second, same = rows[::2], rows[1::2], torch.from_numpy(pairs.same)
    if len(same) >= 10:
        accuracy = pair_accuracy(first, second, same)
        note = f"standard deviation over the folds {accuracy.std:.5f}"
        sheet.add(
            Figure(
                "accuracy",
                "ten-fold accuracy, as insightface computes it (mirrored faces added)",
                accuracy.accuracy,
                note=note,
            )
        )
    else:
        sheet.skip("accuracy", f"ten folds need at least 10 pairs, got {len(same)}")
    scores = (unit(first) * unit(second)).sum(1)
    _rates(sheet, scores, same, protocol.fars)
    return Judged(scores, same, list(zip(pairs.faces[::2], pairs.faces[1::2], strict=True)))


def _ijb(
    folder: Path, encoder: FaceEncoder, cache: RowCache, protocol: Protocol, sheet: Sheet, kept: dict[str, Any]
) -> Judged:
    data = read_ijb(folder, protocol.name)
    rows = cache.rows(AlignedReader(encoder), data.faces, what=f"{encoder.recogniser}: {protocol.name}", **kept)
    templates, numbers = pool_templates(rows * data.score[:, None], data.template, data.media)
    scores = pair_cosines(templates, numbers, data.first, data.second)
    curve = roc_curve(scores, data.same)
    sheet.curves["roc"] = curve
    for far in protocol.fars:
        title = f"TAR at FAR {far:g} (the nearest point of the curve, as insightface prints it)"
        impostors = int((~data.same).sum())
        note = "" if impostors * far >= 1 else f"{impostors} impostor pairs can not tell this rate"
        sheet.add(Figure(f"tar_at_far_{far:.0e}", title, tar_at_nearest_far(curve, far), note=note))
    sheet.add(Figure("auc", "area under the curve", curve.area()))
    return Judged(scores, data.same, None)


def _rendered(
    request: Request, encoder: FaceEncoder, cache: RowCache, protocol: Protocol, sheet: Sheet, kept: dict[str, Any]
) -> Judged:
    from idgen.evaluation.built_in import render_people

    renders = request.kept / "photos" if request.cache is None else request.cache
    with kept["processes"].main_first():
        material = render_people(protocol, cache=renders, workers=request.workers)
    photos = [*material.references, *material.others]
    reader = FaceReader(encoder)
    faces = FaceTable.of_rows(cache.rows(reader, photos, what=f"{encoder.recogniser}: photos", **kept))
    sheet.add(Figure("faces_found", "photos in which its detector finds a face", float(faces.found.double().mean())))
    person = torch.tensor([photo.person for photo in photos])
    same_pairs = torch.combinations(torch.arange(len(photos)))
    same_pairs = same_pairs[person[same_pairs[:, 0]] == person[same_pairs[:, 1]]]
    generator = torch.Generator().manual_seed(request.seed)
    drawn = torch.randint(len(photos), (4 * len(same_pairs), 2), generator=generator)
    others = drawn[person[drawn[:, 0]] != person[drawn[:, 1]]][: 2 * len(same_pairs)]
    pairs = torch.cat([same_pairs, others])
    same = torch.arange(len(pairs)) < len(same_pairs)
    # A face that is not found is a miss where it should have matched, and no proof of a difference where not.
    vectors = unit(faces.vectors)
    scores = (vectors[pairs[:, 0]] * vectors[pairs[:, 1]]).sum(1)
    seen = found(faces.vectors)[pairs].all(1)
    scores = torch.where(seen | ~same, scores, torch.full_like(scores, -1.0))
    kept_pairs = seen | same
    pairs, scores, same = pairs[kept_pairs], scores[kept_pairs], same[kept_pairs]
    accuracy = ten_fold_accuracy(scores[same], scores[~same])
    sheet.add(Figure("accuracy", "ten-fold balanced accuracy", accuracy))
    _rates(sheet, scores, same, protocol.fars)
    if material.lookalikes:
        alike = FaceTable.of_rows(
            cache.rows(reader, material.lookalikes, what=f"{encoder.recogniser}: lookalikes", **kept)
        )
        rivals = torch.tensor([photo.person for photo in material.lookalikes])
        table_of = vectors @ unit(alike.vectors).T
        chosen = (person[:, None] == rivals[None]) & found(faces.vectors)[:, None] & found(alike.vectors)[None]
        hard = ten_fold_accuracy(scores[same], table_of[chosen])
        sheet.add(
            Figure("accuracy_same_appearance", "the same against people of the same skin, hair, brows and eyes", hard)
        )
    return Judged(scores, same, [(photos[a], photos[b]) for a, b in pairs.tolist()])


def _rates(sheet: Sheet, scores: Tensor, same: Tensor, fars: Sequence[float]) -> None:
    curve = roc_curve(scores, same)
    sheet.curves["roc"] = curve
    for far in fars:
        try:
            point = tar_at_far(scores[same], scores[~same], far)
        except ValueError as error:
            sheet.skip(f"tar_at_far_{far:.0e}", str(error))
            continue
        sheet.add(
            Figure(f"tar_at_far_{far:.0e}", f"TAR at FAR {far:g}", point.tar, _wilson(point.tar, int(same.sum())))
        )
    sheet.add(Figure("equal_error_rate", "equal error rate", equal_error_rate(scores[same], scores[~same])))
    sheet.add(Figure("auc", "area under the curve", curve.area()))


def _wilson(share: float, count: int, z: float = 1.96) -> Interval:
    """Wilson's interval of a share of so many pairs (they are not independent where people recur: a lower bound on the doubt)."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * ((share * (1 - share) + z * z / (4 * count)) / count) ** 0.5 / (1 + z * z / count)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def _data(request: Request, protocol: Protocol, what: str) -> Path:
    if request.references is None:
        raise IdgenError(f"protocol {protocol.name!r} needs the data: --references {what}")
    return request.references


def _write(
    request: Request, protocol: Protocol, judged: Judged, sheet: Sheet, content: dict[str, Any]
) -> dict[str, Any]:
    import json

    out = request.out
    if judged.pictures is not None:
        with (
            atomic_write(out / "metrics.csv") as temporary,
            open(temporary, "w", encoding="utf-8", newline="") as stream,
        ):
            rows = csv.writer(stream)
            rows.writerow(["pair", "same", "cosine"])
            for index, (score, same) in enumerate(zip(judged.scores.tolist(), judged.same.tolist(), strict=True)):
                rows.writerow([index, int(same), f"{score:.6f}"])
    with atomic_write(out / "metrics.json") as temporary:
        temporary.write_text(json.dumps(finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    curve = sheet.curves["roc"]
    points = list(zip(curve.far.tolist(), curve.tar.tolist(), strict=True))
    points = points[:: max(1, len(points) // 2000)]
    values = {"one person": judged.scores[judged.same], "two people": judged.scores[~judged.same]}
    plots = [
        line_plot({content["recogniser"]["name"]: points}, "false accept rate", "true accept rate", log_x=True),
        histogram({name: part[:: max(1, len(part) // 50_000)].tolist() for name, part in values.items()}, "cosine"),
    ]
    title = f"{protocol.title}: {content['recogniser']['name']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        figures_table(sheet.figures),
        f'<div class="grid">{"".join(plots)}</div>',
        *_grids(judged),
        "<h2>Not measured</h2>",
        table(["figure", "why"], list(sheet.not_run.items())),
        *(f'<p class="small">{escape(note)}</p>' for note in protocol.notes),
    ]
    with atomic_write(out / "report.html") as temporary:
        temporary.write_text(html_page(title, parts), encoding="utf-8")
    for figure in sheet.figures:
        say(f"{figure.title}: {figure}")
    say(f"report: {out / 'report.html'}")
    return {"report": out / "report.html", "metrics_file": out / "metrics.json", **content}


def _grids(judged: Judged) -> list[str]:
    """The pairs of one person that look least alike, and of two people that look most alike."""
    if judged.pictures is None:
        return []
    parts = []
    for title, kind, largest in (
        ("One person, least alike", judged.same, False),
        ("Two people, most alike", ~judged.same, True),
    ):
        rows = kind.nonzero()[:, 0]
        order = rows[judged.scores[rows].argsort(descending=largest)][:SHOWN]
        cells = [_cell(judged.pictures[index], float(judged.scores[index])) for index in order.tolist()]
        parts += [f"<h2>{title}</h2>", f'<div class="grid">{"".join(cells)}</div>']
    return parts


def _cell(pair: tuple[Picture, Picture], score: float) -> str:
    strip = Image.new("RGB", (226, 112), "white")
    for place, picture in enumerate(pair):
        image = Image.fromarray(picture.pixels())
        image.thumbnail((112, 112))
        strip.paste(image, (place * 114, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<div class="cell"><img alt="pair" src="data:image/png;base64,{data}">cosine <b>{score:.2f}</b></div>'
