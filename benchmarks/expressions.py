"""Expressions asked for in words, and whether a picture shows them, read by the attribute probe."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from idgen.evaluation.prompts import TABLES, VALUES
from idgen.evaluation.rendered import attributes_of
from idgen.models.probe import AttributeProbe
from idgen.synthetic.wording import ADJECTIVE, DOING, EXPRESSIONS, Phrase

ATTRIBUTE = "expression"


@dataclass(frozen=True)
class Asked:
    """An expression in words.

    Attributes:
        value: which one was meant.
        text: a caption that says it and nothing else of the person.
        values: all that the same words describe: "smiling" is said of two kinds of smile.
    """

    value: str
    text: str
    values: frozenset[str]


def ask(value: str, noun: str, seed: str) -> Asked:
    """One of the wordings of an expression, drawn at random."""
    phrase = random.Random(f"{seed} {value}").choice(list(EXPRESSIONS[value]))
    values = frozenset(other for other, wordings in TABLES[ATTRIBUTE].items() if phrase.text in wordings)
    return Asked(value, _caption(phrase, noun), values)


def ask_people(people: Sequence[int], each: int, seed: int) -> list[list[Asked]]:
    """So many expressions of each person, all of them equally often."""
    values = VALUES[ATTRIBUTE]
    nouns = [str(shots[0]["gender"]) for shots in attributes_of(people, [0])]
    return [
        [ask(values[(index * each + turn) % len(values)], noun, f"{seed} {person}") for turn in range(each)]
        for index, (person, noun) in enumerate(zip(people, nouns, strict=True))
    ]


def obeyed(probe: AttributeProbe, pictures: Tensor, asked: Sequence[Asked]) -> dict[str, float]:
    """By expression, the share of pictures (n, size, size, 3) that show what was asked; `all`: their mean."""
    hits = defaultdict(list)
    for read, one in zip(probe.read(pictures).values(ATTRIBUTE), asked, strict=True):
        hits[one.value].append(read in one.values)
    shares = {value: sum(shown) / len(shown) for value, shown in sorted(hits.items())}
    return shares | {"all": sum(shares.values()) / len(shares)}


def of_photos(people: Sequence[int], shots: int, seed: int) -> list[Asked | None]:
    """What could be asked for to get each photo of the people, shot by shot; None where no words are."""
    return [
        ask(str(shown[ATTRIBUTE]), str(shown["gender"]), f"{seed} {person} {shot}")
        if str(shown[ATTRIBUTE]) in VALUES[ATTRIBUTE]
        else None
        for person, taken in zip(people, attributes_of(people, range(shots)), strict=True)
        for shot, shown in enumerate(taken)
    ]


def _caption(phrase: Phrase, noun: str) -> str:
    if phrase.kind == ADJECTIVE:
        text = f"a photo of a {phrase.text} {noun}"
    else:
        text = f"a photo of a {noun} {phrase.text if phrase.kind == DOING else f'with {phrase.text}'}"
    return re.sub(r"\ba (?=[aeiou])", "an ", text)
