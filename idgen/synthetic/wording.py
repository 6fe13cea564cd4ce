"""What each attribute of a synthetic portrait may be called: the closed grammar behind `idgen.synthetic.captions`.

Tables only: each value of each attribute has a few wordings, each of a kind that says where it fits in a sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

Option = TypeVar("Option")

# Where a phrase fits: a [bald] man with [a beard], [looking left] [in soft light].
ADJECTIVE, HAVING, DOING, PLACE = "adjective", "having", "doing", "place"


class HasRandom(Protocol):
    """`random.Random` or `numpy.random.Generator`: anything whose `random()` is uniform in [0, 1)."""

    def random(self) -> float: ...


class Phrase(NamedTuple):
    kind: str
    text: str


def _adjective(*texts: str) -> list[Phrase]:
    return [Phrase(ADJECTIVE, text) for text in texts]


def _having(*texts: str) -> list[Phrase]:
    return [Phrase(HAVING, text) for text in texts]


def _doing(*texts: str) -> list[Phrase]:
    return [Phrase(DOING, text) for text in texts]


def _place(*texts: str) -> list[Phrase]:
    return [Phrase(PLACE, text) for text in texts]


OPENERS = ("a photo of", "a photo of", "a portrait of", "a picture of", "a face of", "")
GLUE = ("this", "a", "an", "with", "and", "is", "has")

NOUNS = {"woman": ("woman", "woman", "woman", "lady"), "man": ("man", "man", "man", "gentleman")}
AGES = {
    "young": ("young", "young", ""),
    "middle-aged": ("middle aged", "middle aged", ""),
    "elderly": ("elderly", "old", ""),
}

EXPRESSIONS = {
    "neutral": _having("a neutral expression", "a calm face") + _adjective("serious"),
    "slight smile": _having("a slight smile") + _doing("smiling slightly"),
    "smiling": _adjective("smiling") + _doing("smiling", "smiling") + _having("a smile"),
    "laughing": _adjective("laughing") + _doing("laughing", "laughing with an open mouth"),
    "surprised": _adjective("surprised") + _having("a surprised expression", "a surprised look"),
    "angry": _adjective("angry") + _having("an angry expression", "an angry look"),
    "sad": _adjective("sad") + _having("a sad expression", "a sad look"),
    "disgusted": _adjective("disgusted") + _having("a disgusted expression", "a look of disgust"),
    "eyes closed": _having("closed eyes", "eyes closed"),
    "open mouth": _having("an open mouth", "the mouth open"),
    "pouting": _adjective("pouting") + _doing("pouting"),
}

HAIR_COLOURS = {
    "black": ("black",),
    "dark brown": ("dark brown",),
    "brown": ("brown",),
    "auburn": ("auburn", "red"),
    "red": ("red",),
    "blond": ("blond", "blonde"),
    "grey": ("grey",),
    "white": ("white",),
}
# {} takes the colour, or nothing.
HAIR_STYLES = {
    "bald": _adjective("bald") + _having("a bald head", "no hair"),
    "buzz cut": _having("a {} buzz cut", "very short {} hair"),
    "short hair": _having("short {} hair"),
    "short hair with fringe": _having("short {} hair and a fringe"),
    "receding hair": _having("receding {} hair", "thinning {} hair"),
    "long hair": _having("long {} hair"),
    "long hair with fringe": _having("long {} hair and a fringe"),
    "bob hair": _having("{} bob hair", "a {} bob"),
}

BEARDS = {
    "none": _adjective("clean shaven") + _having("no beard"),
    "stubble": _having("stubble"),
    "mustache": _having("a mustache"),
    "beard": _adjective("bearded") + _having("a beard", "a full beard"),
    "goatee": _having("a goatee"),
}
GLASSES = {
    "none": _having("no glasses"),
    "glasses": _having("glasses") + _doing("wearing glasses"),
    "sunglasses": _having("sunglasses") + _doing("wearing sunglasses"),
}
HEADS = {
    "straight": _doing("looking straight", "facing the camera", "looking at the camera"),
    "left": _doing("looking left", "looking to the left", "facing left") + _place("with the head turned left"),
    "right": _doing("looking right", "looking to the right", "facing right") + _place("with the head turned right"),
    "up": _doing("looking up", "facing up") + _place("with the head raised"),
    "down": _doing("looking down", "facing down") + _place("with the head lowered"),
}
GAZES = {
    "straight": _having("eyes on the camera"),
    "left": _doing("glancing left"),
    "right": _doing("glancing right"),
    "up": _doing("glancing up"),
    "down": _doing("glancing down"),
}
SKINS = {
    "very light": _having("very light skin", "pale skin"),
    "light": _having("light skin"),
    "medium": _having("medium skin", "tan skin"),
    "brown": _having("brown skin"),
    "dark": _having("dark skin"),
}
EYE_COLOURS = {
    colour: _having(f"{colour} eyes") for colour in ("dark brown", "brown", "hazel", "green", "blue", "grey", "amber")
}
LIGHTS = {
    "soft": _place("in soft light"),
    "bright": _place("in bright light"),
    "dim": _place("in dim light"),
    "warm": _place("in warm light"),
    "cool": _place("in cool light"),
    "side": _place("with light from the side", "in light from the side"),
}
BACKGROUNDS = {
    "plain": _place("on a plain background", "against a plain wall"),
    "gradient": _place("on a smooth background"),
    "room": _place("in a room", "indoors"),
    "outdoors": _place("outdoors", "outside"),
}
CLOTHINGS = {
    "shirt": _doing("wearing a shirt"),
    "sweater": _doing("wearing a sweater"),
    "jacket": _doing("wearing a jacket"),
}
LIPSTICK = _having("lipstick", "painted lips") + _doing("wearing lipstick")
EYE_SHADOW = _having("eye shadow") + _doing("wearing eye shadow")
FRECKLES = _having("freckles") + _adjective("freckled")


def noun(attributes: Mapping[str, Any], rng: HasRandom) -> tuple[str, str]:
    """(age, noun): the words that say whom the picture shows; the age may be left out."""
    return pick(_wordings(AGES, attributes, "age"), rng), pick(_wordings(NOUNS, attributes, "gender"), rng)


def phrases(attributes: Mapping[str, Any]) -> Iterator[tuple[list[Phrase], float]]:
    """For each thing that can be said of a portrait: its wordings, and the chance that a caption mentions it."""
    expression, glasses, head = attributes["expression"], attributes["glasses"], attributes["head"]
    yield _wordings(EXPRESSIONS, attributes, "expression"), 0.4 if expression == "neutral" else 0.75
    yield _hair(attributes), 0.75
    yield _wordings(GLASSES, attributes, "glasses"), 0.12 if glasses == "none" else 0.85
    yield _wordings(HEADS, attributes, "head"), 0.4 if head == "straight" else 0.75
    if attributes["gender"] == "man":
        yield _wordings(BEARDS, attributes, "beard"), 0.2 if attributes["beard"] == "none" else 0.65
    if attributes["lipstick"]:
        yield LIPSTICK, 0.5
    if attributes["eye_shadow"]:
        yield EYE_SHADOW, 0.35
    if attributes["freckles"]:
        yield FRECKLES, 0.5
    yield _wordings(SKINS, attributes, "skin"), 0.35
    yield _wordings(EYE_COLOURS, attributes, "eye_colour"), 0.3
    yield _wordings(LIGHTS, attributes, "light"), 0.35
    yield _wordings(BACKGROUNDS, attributes, "background"), 0.35
    yield _wordings(CLOTHINGS, attributes, "clothing"), 0.3


def every_text() -> Iterator[str]:
    """Every piece of text that a caption can be made of."""
    yield from (*OPENERS, *GLUE)
    for table in (NOUNS, AGES, HAIR_COLOURS):
        for words in table.values():
            yield from words
    tables = (EXPRESSIONS, HAIR_STYLES, BEARDS, GLASSES, HEADS, SKINS, EYE_COLOURS, LIGHTS, BACKGROUNDS, CLOTHINGS)
    for options in (LIPSTICK, EYE_SHADOW, FRECKLES, *(options for table in tables for options in table.values())):
        yield from (phrase.text for phrase in options)


def _hair(attributes: Mapping[str, Any]) -> list[Phrase]:
    """Style and colour together, twice as often as the style or (where there is hair) the colour alone."""
    styles = _wordings(HAIR_STYLES, attributes, "hair_style")
    colours = _wordings(HAIR_COLOURS, attributes, "hair_colour")
    if not any("{}" in style.text for style in styles):
        return styles
    coloured = [Phrase(kind, text.format(colour)) for kind, text in styles for colour in colours]
    plain = [Phrase(kind, " ".join(text.format("").split())) for kind, text in styles]
    alone = [Phrase(HAVING, f"{colour} hair") for colour in colours]
    shares = ((coloured, 4), (plain, 1), (alone, 1))
    most = max(len(options) for options, _ in shares)
    return [phrase for options, share in shares for phrase in (options * most * share)[: most * share]]


def pick(options: Sequence[Option], rng: HasRandom) -> Option:
    """One of the options, all equally likely; takes exactly one number from the generator."""
    return options[int(rng.random() * len(options))]


def _wordings(table: Mapping[str, Any], attributes: Mapping[str, Any], key: str) -> Any:
    """The wordings of one attribute's value; an attribute or value without any is a gap in the tables, not a user's error."""
    value = attributes[key]
    if value not in table:
        raise ValueError(f"no wording for {key} {value!r}: add it to idgen/synthetic/wording.py")
    return table[value]
