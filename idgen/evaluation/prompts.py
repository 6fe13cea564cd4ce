"""Does a text-to-face picture show what the prompt asked for? Read by the attribute probe.

A prompt is the caption of a held-out person's shot. For each tracked attribute that it names, the picture obeys when the
value that the probe reads is one that the same words describe ("smiling" is said of two kinds of smile). Every value of an
attribute weighs the same. The probe makes mistakes on real renders too: their score is the row beside it, and the score of
pictures paired with the prompts of other pictures is what guessing reaches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from idgen.evaluation.rendered import attributes_of
from idgen.models.probe import Reading
from idgen.synthetic.captions import caption, caption_rng
from idgen.synthetic.wording import BEARDS, EXPRESSIONS, GLASSES, HAIR_COLOURS, HAIR_STYLES, HEADS, Phrase

TRACKED = ("expression", "hair", "glasses", "head")  # the ones of the bar; the others are reported beside them


@dataclass(frozen=True)
class Prompt:
    """A caption, whose shot it is of, and for each attribute it names the values that its words describe."""

    text: str
    person: int
    shot: int
    asked: Mapping[str, frozenset[str]]
    true: Mapping[str, str]


def choose_prompts(
    first_person: int, *, per_value: int, people: int = 400, shots: int = 4, seed: int = 0
) -> list[Prompt]:
    """Captions of people from `first_person` on, taken in order, until each value of each tracked attribute is named
    `per_value` times (or the people run out). A caption that names nothing still wanted is passed over."""
    wanted = {(name, value): per_value for name, values in VALUES.items() for value in values}
    chosen = []
    for person in range(first_person, first_person + people):
        for shot, attributes in enumerate(attributes_of([person], range(shots), seed)[0]):
            prompt = read_caption(caption(attributes, caption_rng(seed, person, shot)), attributes, person, shot)
            named = [(name, value) for name, value in prompt.true.items() if name in VALUES]
            if any(wanted[key] > 0 for key in named):
                chosen.append(prompt)
                for key in named:
                    wanted[key] -= 1
        if max(wanted.values()) <= 0:
            break
    return chosen


def read_caption(text: str, attributes: Mapping[str, object], person: int, shot: int) -> Prompt:
    """Find which attributes a caption of this shot names, and which values its words describe."""
    asked: dict[str, frozenset[str]] = {}
    for name, table in TABLES.items():
        words = _longest(text, table.get(str(attributes[name]), ()))
        if words:
            asked[name] = frozenset(value for value, wordings in table.items() if words in wordings)
    asked |= _hair(text, _spoken_hair(str(attributes["hair_style"]), str(attributes["hair_colour"])))
    return Prompt(text, person, shot, asked, {name: str(attributes[name]) for name in asked})


def asked_for(text: str) -> dict[str, frozenset[str]]:
    """What any prompt asks for, as `read_caption` finds it in captions: attribute -> the values that its words describe.
    Attributes that are not named are not in it."""
    asked: dict[str, frozenset[str]] = {}
    for name, table in TABLES.items():
        words = _longest(text, (wording for wordings in table.values() for wording in wordings))
        if words:
            asked[name] = frozenset(value for value, wordings in table.items() if words in wordings)
    return asked | _hair(text, _any_hair())


def obeyed(prompts: Sequence[Prompt], reading: Reading) -> dict[str, float]:
    """Share of pictures that show what was asked, per attribute and as `all`: the mean over the bar's four.

    `hair` is the mean of hair style and hair colour.
    """
    hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    read = {name: reading.values(name) for name in reading.classes}
    for index, prompt in enumerate(prompts):
        for name, values in prompt.asked.items():
            hits[name][prompt.true[name]].append(read[name][index] in values)
    shares = {
        name: sum(sum(shown) / len(shown) for shown in by_value.values()) / len(by_value)
        for name, by_value in hits.items()
    }
    shares["hair"] = (shares["hair_style"] + shares["hair_colour"]) / 2
    shares["all"] = sum(shares[name] for name in TRACKED) / len(TRACKED)
    return shares


def _spoken_hair(style: str, colour: str) -> dict[str, tuple[str, str]]:
    """What a caption may say of this hair, hairstyle and colour in one phrase or one of them alone -> (the style's wording, the
    colour's word)."""
    wordings = {phrase.text for phrase in HAIR_STYLES[style]}
    return {
        " ".join(template.format(word).split()): (template, word)
        for template in ("{} hair", *wordings)
        for word in ("", *HAIR_COLOURS[colour])
        if word or template != "{} hair"
    }


@cache
def _any_hair() -> dict[str, tuple[str, str]]:
    spoken = (_spoken_hair(style, colour) for style in HAIR_STYLES for colour in HAIR_COLOURS)
    return {said: how for each in spoken for said, how in each.items()}


def _hair(text: str, spoken: Mapping[str, tuple[str, str]]) -> dict[str, frozenset[str]]:
    said = _longest(text, spoken)
    if not said:
        return {}
    template, word = spoken[said]
    asked = {}
    if template != "{} hair":
        styles = {value: {phrase.text for phrase in phrases} for value, phrases in HAIR_STYLES.items()}
        asked["hair_style"] = frozenset(value for value, templates in styles.items() if template in templates)
    if word and "{}" in template:
        asked["hair_colour"] = frozenset(value for value, words in HAIR_COLOURS.items() if word in words)
    return asked


def _longest(text: str, wordings: Iterable[str]) -> str:
    """The longest of the wordings that the text holds as whole words, or nothing."""
    words = f" {text.replace(',', ' , ')} "
    return max((wording for wording in wordings if f" {wording} " in words), key=len, default="")


def _wordings(table: Mapping[str, Sequence[Phrase]]) -> dict[str, set[str]]:
    return {value: {phrase.text for phrase in phrases} for value, phrases in table.items()}


# attribute -> value -> its wordings
TABLES = {
    "expression": _wordings(EXPRESSIONS),
    "glasses": _wordings(GLASSES),
    "head": _wordings(HEADS),
    "beard": _wordings(BEARDS),
}
# What the bar counts, value by value; a mix of expressions has no words.
VALUES: dict[str, list[str]] = {
    "expression": [value for value, wordings in TABLES["expression"].items() if wordings],
    "hair_style": list(HAIR_STYLES),
    "hair_colour": list(HAIR_COLOURS),
    "glasses": list(GLASSES),
    "head": list(HEADS),
}
