"""Everything that figures are taken from, read off the pictures once; and the sheet that they are written on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from idgen.errors import IdgenError
from idgen.evaluation.cache import RowCache
from idgen.evaluation.identity import FaceSet
from idgen.evaluation.judge import Judge
from idgen.evaluation.material import Material, Photo
from idgen.evaluation.processes import Processes
from idgen.evaluation.prompts import Prompt
from idgen.evaluation.protocol import Protocol
from idgen.evaluation.readers import FaceReader, FaceTable, ProbeReader
from idgen.evaluation.results import Figure


@dataclass(frozen=True)
class Seen:
    """Pictures as one recogniser sees them, and whose they are."""

    table: FaceTable
    set: FaceSet

    @classmethod
    def of(cls, rows: Tensor, photos: Sequence[Photo], people: int) -> Seen:
        table = FaceTable.of_rows(rows)
        person = torch.tensor([photo.person for photo in photos], dtype=torch.long)
        return cls(table, FaceSet(table.vectors, person, people))


@dataclass(frozen=True)
class View:
    """All pictures of an evaluation by one recogniser.

    Attributes:
        made: the generated pictures.
        references: the photos that the generator saw.
        others: photos of the same people that it did not see.
        real: all photos of the people, in the order of `Material.photos`.
        training: people of the training, numbered by themselves; None where they are not known.
    """

    made: Seen
    references: Seen
    others: Seen
    real: Seen
    training: Seen | None


@dataclass(frozen=True)
class Captions:
    """Prompts and the pictures made of them, beside real renders of the same prompts."""

    prompts: Sequence[Prompt]
    made: Sequence[Photo]
    real: Sequence[Photo]


@dataclass
class Sheet:
    """What was measured.

    Attributes:
        figures: in the order in which they were taken.
        not_run: names of figures that were not, and why.
        columns: one value per generated picture, for metrics.csv.
        curves: for the report's plots.
    """

    figures: list[Figure] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)

    def skip(self, name: str, why: str) -> None:
        self.not_run[name] = why

    def value(self, name: str) -> float | None:
        """Of a figure by name; None where it was not taken."""
        return next((figure.value for figure in self.figures if figure.name == name), None)


@dataclass(frozen=True, repr=False)
class Evidence:
    """What is known of the pictures of one evaluation.

    Attributes:
        judge: as the judge sees everything.
        conditioning: as the recogniser does that the generator was shown the people with; None where nobody knows which.
        lookalikes: photos of people of the same appearance by the judge, under whom they resemble.
        probe: pose, expression and features of generated and of real pictures, where the protocol has the probe.
        clip: folder or cached hub id of a CLIP model.
        captions: what the mini family's text-to-face base was asked for, and what it made.
    """

    protocol: Protocol
    material: Material
    who: Judge
    judge: View
    conditioning: View | None
    lookalikes: Seen | None
    probe: tuple[ProbeReader, Tensor, Tensor] | None
    cache: RowCache
    device: torch.device
    seed: int = 0
    batch: int = 64
    clip: str | None = None
    captions: Captions | None = None
    processes: Processes = field(default_factory=Processes)

    def __repr__(self) -> str:  # the probe's readings and the photos' pixels have no place in logs
        return f"Evidence({self.protocol.name}, {len(self.material.generated)} pictures, {self.people} people)"

    @property
    def people(self) -> int:
        return len(self.material.people)

    @property
    def originals(self) -> Tensor:
        """(n,): where in `View.real` the original of each generated picture is; -1 where it has none."""
        place: dict[Photo | None, int] = {photo: index for index, photo in enumerate(self.material.photos)}
        return torch.tensor([place.get(photo.target, -1) for photo in self.material.generated], dtype=torch.long)


def shown_references(material: Material, protocol: Protocol) -> list[Photo]:
    """The references that the generator sees: the first few of each person, or of each picture to be repaired."""
    if material.jobs:
        return list(dict.fromkeys(photo for job in material.jobs for photo in job.references[: protocol.seen]))
    counts: dict[int, int] = {}
    shown = []
    for photo in material.references:
        counts[photo.person] = counts.get(photo.person, 0) + 1
        if counts[photo.person] <= protocol.seen:
            shown.append(photo)
    return shown


def gather(
    protocol: Protocol,
    material: Material,
    who: Judge,
    cache: RowCache,
    device: torch.device,
    *,
    seed: int = 0,
    batch: int = 64,
    clip: str | None = None,
    captions: Captions | None = None,
    processes: Processes | None = None,
) -> Evidence:
    """Read every picture by the judge, by the conditioning recogniser where it is known, and by the probe.

    Raises:
        IdgenError: a picture can not be read, or the judge finds no face in a reference.
    """
    processes = processes or Processes()
    kept: dict[str, Any] = {"batch": batch, "processes": processes}
    judged = _view(protocol, material, FaceReader(who.encoder, batch), cache, kept, "judge")
    other, lookalikes, probe = None, None, None
    if who.conditioning is not None:
        other = _view(protocol, material, FaceReader(who.conditioning, batch), cache, kept, "conditioning recogniser")
    if material.lookalikes:
        rows = cache.rows(FaceReader(who.encoder, batch), material.lookalikes, what="judge: lookalikes", **kept)
        lookalikes = Seen.of(rows, material.lookalikes, len(material.people))
    if protocol.probe:
        from idgen.models.probe import load_probe

        reader = ProbeReader(load_probe(device=device))
        made, real = (cache.rows(reader, part, what="probe", **kept) for part in (material.generated, material.photos))
        probe = (reader, made, real)
    return Evidence(
        protocol, material, who, judged, other, lookalikes, probe, cache, device, seed, batch, clip, captions, processes
    )


def check_references(references: Sequence[Photo], found: Tensor, recogniser: str, people: Sequence[str]) -> None:
    """Refuse references without faces: of such a person nothing can be said.

    Raises:
        IdgenError: names the photos.
    """
    bad = [photo.name for photo, seen in zip(references, found.tolist(), strict=True) if not seen]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise IdgenError(
            f"{recogniser!r} finds no face in {len(bad)} of {len(references)} references ({bad[0]}{more}):"
            " take them out, or give photos that show the face"
        )


def _view(
    protocol: Protocol, material: Material, reader: FaceReader, cache: RowCache, kept: dict[str, Any], what: str
) -> View:
    people = len(material.people)

    def seen(photos: Sequence[Photo], kind: str, of: int = people) -> Seen:
        return Seen.of(cache.rows(reader, photos, what=f"{what}: {kind}", **kept), photos, of)

    shown = shown_references(material, protocol)
    references = seen(shown, "references")
    check_references(shown, references.table.found, reader.encoder.recogniser, material.people)
    others, real = seen(material.others, "other photos"), seen(material.photos, "photos")
    training = None
    if material.training:
        training = seen(material.training, "training", 1 + max(photo.person for photo in material.training))
    return View(seen(material.generated, "generated"), references, others, real, training)
