"""Captions: a closed grammar, short enough for the text encoder, true to the attributes, the same on every run."""

import re
from random import Random

import pytest

from idgen.synthetic import colour, shots, style, wording
from idgen.synthetic.attributes import attributes as describe
from idgen.synthetic.captions import MAX_TOKENS, caption, caption_rng, tokens, vocabulary
from idgen.synthetic.people import sample_person
from idgen.synthetic.shots import sample_shot

TABLES = {
    "gender": wording.NOUNS,
    "age": wording.AGES,
    "build": wording.BUILDS,
    "expression": wording.EXPRESSIONS,
    "hair_style": wording.HAIR_STYLES,
    "hair_colour": wording.HAIR_COLOURS,
    "beard": wording.BEARDS,
    "glasses": wording.GLASSES,
    "head": wording.HEADS,
    "gaze": wording.GAZES,
    "skin": wording.SKINS,
    "eye_colour": wording.EYE_COLOURS,
    "light": wording.LIGHTS,
    "background": wording.BACKGROUNDS,
    "clothing": wording.GARMENTS,
    "clothing_colour": wording.CLOTH_COLOURS,
}


def random_attributes(rng: Random) -> dict:
    flags = {key: rng.random() < 0.3 for key in ("lipstick", "eye_shadow", "freckles")}
    return {key: rng.choice(list(table)) for key, table in TABLES.items()} | flags


@pytest.fixture(scope="module")
def pairs() -> list[tuple[dict, str]]:
    rng = Random(5)
    described = [random_attributes(rng) for _ in range(6000)]
    return [(attributes, caption(attributes, caption_rng(0, i, 0))) for i, attributes in enumerate(described)]


def test_there_is_wording_for_everything_that_the_renderer_can_draw():
    assert set(wording.EXPRESSIONS) == {*shots.EXPRESSIONS, shots.MIXED}
    assert set(wording.HAIR_STYLES) == set(style.HAIR_STYLES)
    assert set(wording.BEARDS) == set(style.BEARDS)
    assert set(wording.GLASSES) == set(style.GLASSES)
    assert set(wording.HAIR_COLOURS) == set(colour.HAIRS)
    assert set(wording.EYE_COLOURS) == set(colour.EYES)
    assert set(wording.CLOTH_COLOURS) == set(colour.CLOTHES)
    assert set(wording.BACKGROUNDS) == set(shots.BACKGROUNDS)
    assert set(wording.GARMENTS) == set(shots.GARMENTS)


def test_sampled_people_and_shots_all_get_a_caption():
    for person in range(150):
        who = sample_person(0, person)
        for shot in range(2):
            attributes = describe(who, sample_shot(0, who, shot))
            assert caption(attributes, caption_rng(0, person, shot))
            for key, table in TABLES.items():
                assert attributes[key] in table


def test_every_word_is_in_the_vocabulary(pairs):
    known = set(vocabulary())
    assert {token for _, text in pairs for token in tokens(text)} <= known


def test_nearly_every_word_of_the_vocabulary_is_used(pairs):
    assert set(vocabulary()) - {token for _, text in pairs for token in tokens(text)} == set()


def test_captions_are_lower_case_words_and_commas_within_the_limit(pairs):
    for _, text in pairs:
        assert text == " ".join(text.split())
        assert "".join(tokens(text)) == text.replace(" ", "")
        assert len(tokens(text)) <= MAX_TOKENS


def test_the_gender_is_always_named(pairs):
    for attributes, text in pairs:
        assert set(tokens(text)) & set(wording.NOUNS[attributes["gender"]]), text


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("glasses", {"sunglasses"}, r"sunglasses"),
        ("glasses", {"glasses"}, r"(?<!no )glasses"),
        ("expression", {"laughing"}, r"laughing"),
        ("expression", {"slight smile", "smiling", "smiling with teeth"}, r"smil\w+"),
        ("head", {"left"}, r"looking (to the )?left"),
        ("head", {"right"}, r"(facing|turned) right"),
        ("hair_style", {"buzz cut"}, r"buzz"),
        ("hair_style", {"long", "long with a fringe"}, r"long"),
        ("beard", {"mustache"}, r"mustache"),
    ],
)
def test_a_word_is_said_only_of_pictures_that_show_it(pairs, key, values, words):
    said = [attributes[key] for attributes, text in pairs if re.search(rf"\b{words}\b", text)]
    assert len(said) > 20
    assert set(said) == values


def test_what_the_probe_measures_is_mentioned_most_often(pairs):
    def share(key: str, value: str) -> float:
        with_value = [(a, t) for a, t in pairs if a[key] == value]
        texts = {phrase.text for phrase in TABLES[key][value]}
        said = [any(text.removeprefix("wearing ") in t for text in texts) for _, t in with_value]
        return sum(said) / len(said)

    for key, value in (("expression", "angry"), ("head", "left"), ("glasses", "glasses")):
        assert share(key, value) > 0.55
    assert share("light", next(iter(wording.LIGHTS))) < 0.45


def test_wording_varies_for_the_same_attributes():
    attributes = random_attributes(Random(1))
    assert len({caption(attributes, caption_rng(0, 0, shot)) for shot in range(200)}) > 150


def test_the_same_seed_person_and_shot_give_the_same_caption():
    attributes = random_attributes(Random(2))
    assert caption(attributes, caption_rng(1, 2, 3)) == caption(attributes, caption_rng(1, 2, 3))
    assert len({caption(attributes, caption_rng(*key)) for key in ((1, 2, 3), (1, 3, 2), (2, 1, 3))}) == 3


def test_a_value_without_wording_is_an_error_that_names_it():
    attributes = random_attributes(Random(3)) | {"hair_style": "tonsure"}
    with pytest.raises(ValueError, match="hair_style 'tonsure'"):
        caption(attributes, caption_rng(0, 0, 0))
