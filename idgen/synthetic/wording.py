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
    "smiling with teeth": _adjective("smiling") + _doing("smiling with teeth") + _having("a wide smile", "a big smile"),
    "laughing": _adjective("laughing") + _doing("laughing", "laughing with an open mouth"),
    "surprised": _adjective("surprised") + _having("a surprised expression", "a surprised look"),
    "angry": _adjective("angry") + _having("an angry expression", "an angry look"),
    "sad": _adjective("sad") + _having("a sad expression", "a sad look"),
    "disgusted": _adjective("disgusted") + _having("a disgusted expression", "a disgusted look"),
    "afraid": _adjective("scared", "frightened") + _having("a scared expression", "a frightened look"),
    "eyes closed": _having("closed eyes", "eyes closed"),
    "open mouth": _having("an open mouth", "the mouth open"),
    "pouting": _adjective("pouting") + _doing("pouting"),
    "winking": _adjective("winking") + _doing("winking"),
    "mix": (),
}

HAIR_COLOURS = {
    "black": ("black",),
    "dark brown": ("dark brown",),
    "brown": ("brown",),
    "red": ("red",),
    "blond": ("blond", "blonde"),
    "light blond": ("light blond", "light blonde"),
    "grey": ("grey", "gray"),
    "white": ("white",),
}
# {} takes the colour, or nothing.
HAIR_STYLES = {
    "bald": _adjective("bald") + _having("a bald head", "no hair"),
    "buzz cut": _having("a {} buzz cut", "very short {} hair"),
    "short": _having("short {} hair"),
    "short with a fringe": _having("short {} hair and a fringe", "a fringe and short {} hair"),
    "side part": _having("{} hair with a side part", "a side part in short {} hair"),
    "receding": _having("receding {} hair", "thinning {} hair"),
    "curly": _having("curly {} hair"),
    "afro": _having("a {} afro", "{} afro hair"),
    "bob": _having("a {} bob", "{} bob hair"),
    "long": _having("long {} hair"),
    "long with a fringe": _having("long {} hair and a fringe", "a fringe and long {} hair"),
    "ponytail": _having("a {} ponytail", "{} hair in a ponytail"),
    "bun": _having("a {} bun", "{} hair in a bun"),
}
BEARDS = {
    "none": _adjective("clean shaven") + _having("no beard"),
    "stubble": _having("stubble"),
    "mustache": _having("a mustache"),
    "goatee": _having("a goatee"),
    "beard": _adjective("bearded") + _having("a beard", "a full beard"),
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
    "straight": (),
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
BUILDS = {"thin": _adjective("thin"), "average": (), "heavy": _adjective("heavy")}
EYE_COLOURS = {
    colour: _having(f"{colour} eyes") for colour in ("dark brown", "brown", "hazel", "green", "blue", "grey")
}
LIGHTS = {
    "soft light": _place("in soft light"),
    "bright light": _place("in bright light"),
    "dim light": _place("in dim light"),
    "warm light": _place("in warm light"),
    "cool light": _place("in cool light"),
    "side light": _place("in side light", "with light from the side"),
}
BACKGROUNDS = {
    "plain": _place("on a plain background", "against a plain wall"),
    "gradient": _place("on a smooth background"),
    "studio": _place("in a studio"),
    "room": _place("in a room", "indoors"),
    "window": _place("by a window", "near a window"),
    "outdoors": _place("outdoors", "outside"),
    "city": _place("in a city", "in the street"),
    "bricks": _place("against a brick wall"),
}
GARMENTS = {
    "t-shirt": _doing("wearing a {} t shirt"),
    "shirt": _doing("wearing a {} shirt"),
    "jumper": _doing("wearing a {} jumper", "wearing a {} sweater"),
    "dress": _doing("wearing a {} dress"),
    "jacket": _doing("wearing a {} jacket"),
}
CLOTH_COLOURS = {
    colour: (colour,)
    for colour in ("black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
}
LIPSTICK = _having("lipstick", "painted lips") + _doing("wearing lipstick")
EYE_SHADOW = _having("eye shadow") + _doing("wearing eye shadow")
FRECKLES = _having("freckles") + _adjective("freckled")


def noun(attributes: Mapping[str, Any], rng: HasRandom) -> tuple[str, str]:
    """(age, noun): the words that say whom the picture shows; the age may be left out."""
    return pick(_wordings(AGES, attributes, "age"), rng), pick(_wordings(NOUNS, attributes, "gender"), rng)


def phrases(attributes: Mapping[str, Any]) -> Iterator[tuple[list[Phrase], float]]:
    """For each thing that can be said of a portrait: its wordings, and the chance that a caption mentions it."""
    for options, chance in _everything(attributes):
        if options:
            yield list(options), chance


def every_text() -> Iterator[str]:
    """Every piece of text that a caption can be made of."""
    yield from (*OPENERS, *GLUE)
    for words in (*NOUNS.values(), *AGES.values(), *HAIR_COLOURS.values(), *CLOTH_COLOURS.values()):
        yield from words
    yield from (phrase.text for options in (LIPSTICK, EYE_SHADOW, FRECKLES) for phrase in options)
    tables = (EXPRESSIONS, HAIR_STYLES, BEARDS, GLASSES, HEADS, GAZES, SKINS, BUILDS, EYE_COLOURS, LIGHTS, BACKGROUNDS)
    for table in (*tables, GARMENTS):
        for options in table.values():
            yield from (phrase.text for phrase in options)


def _everything(attributes: Mapping[str, Any]) -> Iterator[tuple[Sequence[Phrase], float]]:
    def said(table: Mapping[str, Any], key: str, chance: float, **other_chances: float) -> tuple[Any, float]:
        return _wordings(table, attributes, key), other_chances.get(attributes[key], chance)

    yield said(EXPRESSIONS, "expression", 0.75, neutral=0.4)
    yield _hair(attributes), 0.75
    yield said(GLASSES, "glasses", 0.85, none=0.12)
    yield said(HEADS, "head", 0.75, straight=0.4)
    if attributes["gender"] == "man":
        yield said(BEARDS, "beard", 0.65, none=0.2)
    for key, options, chance in (
        ("lipstick", LIPSTICK, 0.5),
        ("eye_shadow", EYE_SHADOW, 0.35),
        ("freckles", FRECKLES, 0.5),
    ):
        yield (options if attributes[key] else ()), chance
    yield said(SKINS, "skin", 0.35)
    yield said(BUILDS, "build", 0.2)
    yield said(EYE_COLOURS, "eye_colour", 0.3)
    if attributes["expression"] != "eyes closed":
        yield said(GAZES, "gaze", 0.15)
    yield said(LIGHTS, "light", 0.35)
    yield said(BACKGROUNDS, "background", 0.35)
    yield _coloured(GARMENTS, "clothing", CLOTH_COLOURS, "clothing_colour", attributes), 0.35


def _hair(attributes: Mapping[str, Any]) -> Sequence[Phrase]:
    """The style with its colour, or one in four times the style or the colour alone; nothing of the colour when bald."""
    return _coloured(HAIR_STYLES, "hair_style", HAIR_COLOURS, "hair_colour", attributes, "{} hair")


def _coloured(
    things: Mapping[str, Any],
    thing: str,
    colours: Mapping[str, Any],
    colour: str,
    attributes: Mapping[str, Any],
    alone: str = "",
) -> list[Phrase]:
    """Wordings of a thing with its colour, and a few without it or (where `alone` says how) of the colour alone."""
    options: Sequence[Phrase] = _wordings(things, attributes, thing)
    names: Sequence[str] = _wordings(colours, attributes, colour)
    if not any("{}" in text for _, text in options):
        return list(options)
    both = [Phrase(kind, text.format(name)) for kind, text in options for name in names]
    plain = [Phrase(kind, " ".join(text.format("").split())) for kind, text in options]
    only = [Phrase(HAVING, alone.format(name)) for name in names] if alone else []
    # Each group gets its share of the equally likely wordings, however many it holds.
    return [
        group[i % len(group)] for group, share in ((both, 36), (plain, 6), (only, 6)) if group for i in range(share)
    ]


def pick(options: Sequence[Option], rng: HasRandom) -> Option:
    """One of the options, all equally likely; takes exactly one number from the generator."""
    return options[int(rng.random() * len(options))]


def _wordings(table: Mapping[str, Any], attributes: Mapping[str, Any], key: str) -> Any:
    """The wordings of one attribute's value; an attribute or value without any is a gap in the tables, not a user's error."""
    value = attributes[key]
    if value not in table:
        raise ValueError(f"no wording for {key} {value!r}: add it to idgen/synthetic/wording.py")
    return table[value]
