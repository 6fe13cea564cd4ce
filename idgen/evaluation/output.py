"""What an evaluation leaves: report.html, metrics.json, metrics.csv."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idgen.console import say
from idgen.evaluation.evidence import Evidence, Sheet
from idgen.evaluation.fingerprints import recogniser_fingerprint, short
from idgen.evaluation.flags import Findings
from idgen.evaluation.material import Material
from idgen.evaluation.report import Page, write_report
from idgen.files import atomic_write
from idgen.version import __version__

FORMAT = "idgen-evaluation-1"


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found, and where it wrote it.

    Attributes:
        sheet: the figures, what was not measured and why, and the columns of the table.
        findings: flags.
        report, metrics, table: report.html, metrics.json, metrics.csv.
        content: of metrics.json.
    """

    sheet: Sheet
    findings: Findings
    report: Path
    metrics: Path
    table: Path
    content: dict[str, Any]


def write_files(out: Path, source: str, evidence: Evidence, sheet: Sheet, findings: Findings) -> Outcome:
    """Write the three files into a folder, each whole or not at all."""
    protocol, material = evidence.protocol, evidence.material
    content: dict[str, Any] = {
        "format": FORMAT,
        "protocol": protocol.name,
        "title": protocol.title,
        "source": source,
        "people": len(material.people),
        "images": len(material.generated),
        "judge": {
            "name": evidence.who.encoder.recogniser,
            "fingerprint": short(recogniser_fingerprint(evidence.who.encoder)),
            "had_a_part": evidence.who.same,
            "made_by": list(evidence.who.makers),
        },
        "remarks": list(evidence.who.remarks),
        "flags": [{"name": flag.name, "text": flag.text, "images": flag.images} for flag in findings.flags],
        "metrics": {figure.name: figure.as_dict() for figure in sheet.figures},
        "not_run": sheet.not_run,
        "published": protocol.published,
        "settings": protocol.model_dump(mode="json", exclude={"published"}),
        "seed": evidence.seed,
        "device": str(evidence.device),
        "versions": versions(),
    }
    files = [out / name for name in ("report.html", "metrics.json", "metrics.csv")]
    page = Page(f"{protocol.title}: {source}", _facts(content, evidence), protocol.published, protocol.notes)
    _write_table(files[2], material, sheet)
    with atomic_write(files[1]) as temporary:
        temporary.write_text(json.dumps(finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with atomic_write(files[0]) as temporary:
        temporary.write_text(write_report(evidence, sheet, findings, page), encoding="utf-8")
    return Outcome(sheet, findings, files[0], files[1], files[2], content)


def _write_table(file: Path, material: Material, sheet: Sheet) -> None:
    """One row per generated picture."""
    names = [name for name, values in sheet.columns.items() if len(values) == len(material.generated)]
    with atomic_write(file) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "person", "prompt", *names])
        for index, photo in enumerate(material.generated):
            cells = [_cell(sheet.columns[name][index]) for name in names]
            table.writerow([photo.name, material.people[photo.person], photo.prompt, *cells])


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def _facts(content: dict[str, Any], evidence: Evidence) -> dict[str, str]:
    judge = content["judge"]
    return {
        "source": content["source"],
        "protocol": f"{content['protocol']} ({evidence.protocol.source})",
        "people": str(content["people"]),
        "generated pictures": str(content["images"]),
        "references shown / other photos": f"{len(evidence.judge.references.set)} / {len(evidence.judge.others.set)}",
        "judge": f"{judge['name']} ({judge['fingerprint']})",
        "recognisers that had a part": ", ".join(judge["made_by"]) or "not declared",
        "seed": str(content["seed"]),
        "device": content["device"],
        "versions": ", ".join(f"{name} {version}" for name, version in content["versions"].items()),
        "intervals": "95 %, by drawing people with replacement, 1000 times",
    }


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {"idgen": __version__} | {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "numpy")}


def finite(value: Any) -> Any:
    """NaN and infinities as null: JSON has neither."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summarise(outcome: Outcome) -> None:
    """Say the figures, what was not measured, and the flags (stderr)."""
    for figure in outcome.sheet.figures:
        say(f"{figure.title}: {figure}")
    for name, why in outcome.sheet.not_run.items():
        if not why.startswith("not "):
            say(f"not run: {name}: {why}")
    for remark in outcome.content["remarks"]:
        say(f"remark: {remark}")
    for found in outcome.findings.flags:
        say(f"FLAG {found.name}: {found.text}")
    say(f"report: {outcome.report}")
