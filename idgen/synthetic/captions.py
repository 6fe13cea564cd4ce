"""Captions of synthetic portraits: varied natural wording from a closed grammar.

    caption(attributes(person, shot), caption_rng(seed, person, shot))
    -> "a portrait of a smiling young woman with long blonde hair and glasses, looking left"

Every caption is lower case ASCII, has at most `MAX_TOKENS` words and commas (it fits a 32-token text encoder with its
start and end tokens), names the person's gender and a random subset of the attributes, and is made of `vocabulary()`
only. What a value may be called is in `idgen.synthetic.wording`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random
from typing import Any

from .wording import ADJECTIVE, DOING, HAVING, OPENERS, PLACE, HasRandom, Phrase, every_text, noun, phrases, pick

MAX_TOKENS = 24


def caption_rng(seed: int, person: int, shot: int) -> Random:
    """The generator of one shot's caption: the same on every machine, run and worker."""
    return Random(f"caption {seed} {person} {shot}")


def caption(attributes: Mapping[str, Any], rng: HasRandom) -> str:
    """One caption for `idgen.synthetic.attributes(person, shot)`. Raises ValueError for a value that has no wording."""
    chosen = _choose(attributes, rng)
    subject = noun(attributes, rng)
    style = rng.random()
    opener = pick(OPENERS, rng)
    while True:
        text = _sentence(opener, subject, chosen, style)
        if len(tokens(text)) <= MAX_TOKENS:
            return re.sub(r"\ba (?=[aeiou])", "an ", text)
        chosen.pop()  # the last one chosen matters least


def tokens(text: str) -> list[str]:
    """The words and commas of a caption, as a word-level tokenizer sees them."""
    return re.findall(r"[a-z]+|,", text)


def vocabulary() -> list[str]:
    """Every word that a caption can hold, and the comma, sorted."""
    return sorted({token for text in every_text() for token in tokens(text)} | {","})


def _choose(attributes: Mapping[str, Any], rng: HasRandom) -> list[Phrase]:
    """A random subset of what can be said, most telling first, each in one of its wordings."""
    chosen = []
    for options, chance in phrases(attributes):
        mentioned = rng.random() < chance
        phrase = pick(options, rng)  # drawn in any case, so that one attribute's draw does not shift the others'
        if mentioned:
            # The order decides only what is dropped when the caption grows too long.
            chosen.append((chance * rng.random() ** 0.5, phrase))
    return [phrase for _, phrase in sorted(chosen, key=lambda pair: -pair[0])]


def _sentence(opener: str, subject: tuple[str, str], chosen: list[Phrase], style: float) -> str:
    age, person = subject
    adjectives, having, doing, place = (
        [phrase.text for phrase in chosen if phrase.kind == kind] for kind in (ADJECTIVE, HAVING, DOING, PLACE)
    )
    doing = _merge_worn(doing)
    core = _words(*adjectives, age, person)
    if style < 0.45:  # a photo of a smiling young woman with long hair and glasses, looking left in soft light
        text = _words(opener, "a", core)
        if having:
            text += " with " + _list(having)
        if doing:
            text += (", " if having else " ") + _list(doing)
    elif style < 0.75:  # this smiling young woman has long hair, glasses and is looking left in soft light
        text = _words("this" if style < 0.6 else "a", core)
        if having:
            text += " has " + _list(having)
        if doing:
            text += (" and is " if having else " is ") + _list(doing)
    else:  # young woman, smiling, long hair, glasses, looking left, soft light
        return ", ".join([core, *(phrase.text for phrase in chosen if phrase.kind != ADJECTIVE)])
    return _words(text, *place)


def _merge_worn(doing: list[str]) -> list[str]:
    """["wearing glasses", "laughing", "wearing a shirt"] -> ["laughing", "wearing glasses and a shirt"]"""
    worn = [text.removeprefix("wearing ") for text in doing if text.startswith("wearing ")]
    return [text for text in doing if not text.startswith("wearing ")] + (["wearing " + _list(worn)] if worn else [])


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def _words(*parts: str) -> str:
    return " ".join(part for part in parts if part)
