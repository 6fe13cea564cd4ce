"""Words that change a personalised portrait, and whether the picture shows them, read by the attribute probe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from idgen.evaluation.prompts import TABLES
from idgen.evaluation.rendered import attributes_of
from idgen.files import atomic_write
from idgen.models.probe import Reading
from idgen.synthetic.captions import caption, caption_rng
from idgen.synthetic.wording import DOING, EXPRESSIONS, GLASSES, HEADS

SUBJECT = "id person"  # the phrase under which a person is learned


@dataclass(frozen=True)
class Edit:
    """A prompt with one thing added, and the probe's values of the attribute that its words describe."""

    text: str
    attribute: str
    values: frozenset[str]


@cache
def edits() -> tuple[Edit, ...]:
    """Every value of expression, glasses and head that has a wording of what somebody does, in its first one."""
    found = []
    for attribute, table in (("expression", EXPRESSIONS), ("glasses", GLASSES), ("head", HEADS)):
        for phrases in table.values():
            doing = [phrase.text for phrase in phrases if phrase.kind == DOING]
            if doing:
                values = frozenset(value for value, wordings in TABLES[attribute].items() if doing[0] in wordings)
                found.append(Edit(f"a photo of a {SUBJECT} {doing[0]}", attribute, values))
    return tuple(found)


def adherence(reading: Reading, people: int) -> Tensor:
    """(people,) share of the edits that a person's pictures show; attributes weigh the same.

    Args:
        reading: of people x edits pictures, person by person.
    """
    shares = []
    for attribute in ("expression", "glasses", "head"):
        read = reading.values(attribute)
        chosen = [index for index, edit in enumerate(edits()) if edit.attribute == attribute]
        hits = [
            [read[person * len(edits()) + index] in edits()[index].values for index in chosen]
            for person in range(people)
        ]
        shares.append(torch.tensor(hits).double().mean(1))
    return torch.stack(shares).mean(0)


def write_captions(folder: Path, person: int, shots: int) -> None:
    """Beside photo N.png of a synthetic person N.txt, with what `idgen synth` says of the shot."""
    for shot, attributes in enumerate(attributes_of([person], range(shots))[0]):
        with atomic_write(folder / f"{shot}.txt") as temporary:
            temporary.write_text(caption(attributes, caption_rng(0, person, shot)), encoding="utf-8")
