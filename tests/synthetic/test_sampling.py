"""People and shots as numbers, before any picture: deterministic, adult, fixed where identity is, varied where not."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from idgen.errors import IdgenError
from idgen.synthetic import Person, Shot, attributes, same_appearance, sample_person, sample_shot
from idgen.synthetic.asset import ASSET, HeadAsset, load_head
from idgen.synthetic.geometry import macro_weights, neutral_head
from idgen.synthetic.people import ADULT
from idgen.synthetic.shots import BACKGROUNDS, EXPRESSIONS, GARMENTS, MIXED
from idgen.synthetic.style import BEARDS, GLASSES, HAIR_STYLES

SHAPE = {"ancestry", "local", "muscle", "weight"}
KEYS = {
    "gender", "age", "skin", "build", "freckles", "hair_style", "hair_colour", "eye_colour", "beard", "glasses", "lipstick",
    "eye_shadow", "expression", "head", "gaze", "light", "background", "clothing", "clothing_colour", "yaw", "pitch", "roll",
}  # fmt: skip


@pytest.fixture(scope="module")
def crowd() -> list[Person]:
    return [sample_person(0, 400_000 + number) for number in range(150)]


@pytest.fixture(scope="module")
def album(crowd: list[Person]) -> list[tuple[Person, Shot]]:
    return [(person, sample_shot(0, person, shot)) for person in crowd for shot in range(8)]


def same(a: object, b: object) -> bool:
    """Whether two dataclasses hold the same values, bit for bit."""
    for field in fields(a):  # type: ignore[arg-type]
        x, y = getattr(a, field.name), getattr(b, field.name)
        if hasattr(x, "__dataclass_fields__"):
            if not same(x, y):
                return False
        elif not np.array_equal(x, y):
            return False
    return True


def test_the_same_numbers_give_the_same_person_and_shot_whatever_was_sampled_before() -> None:
    person, shot = sample_person(3, 17), sample_shot(3, 17, 5)
    for other in (16, 18):
        sample_shot(3, sample_person(3, other), 5)
    assert same(sample_person(3, 17), person)
    assert same(sample_shot(3, person, 5), shot)


def test_another_seed_person_or_shot_number_gives_another_one() -> None:
    person, shot = sample_person(0, 17), sample_shot(0, 17, 5)
    assert not same(sample_person(1, 17), person)
    assert not same(sample_person(0, 18), person)
    for other in (
        sample_shot(1, 17, 5),
        sample_shot(0, 17, 6),
        sample_shot(0, 18, 5),
        sample_shot(0, 17, 5, frontal=True),
    ):
        assert not np.array_equal(other.actions, shot.actions)


@pytest.mark.parametrize("numbers", [(-1, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_numbers_below_zero_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(IdgenError, match="start at 0"):
        sample_shot(*numbers)


def test_nobody_is_younger_than_an_adult(crowd: list[Person]) -> None:
    assert min(person.age for person in crowd) >= ADULT == 2 / 3
    assert min(same_appearance(person, 0, 1).age for person in crowd[:20]) >= ADULT


@pytest.mark.parametrize("age", [0.0, 1 / 3, 0.6666, 1.01, float("nan")])
def test_an_age_that_is_not_an_adults_is_refused(age: float) -> None:
    with pytest.raises(IdgenError, match="adult"):
        replace(sample_person(0, 1), age=age)


def test_no_shape_of_a_child_is_in_the_asset() -> None:
    assert not [name for name in load_head().macro_names if "child" in name or "baby" in name]


def test_gender_and_ancestry_are_mixed_continuously(crowd: list[Person]) -> None:
    genders = np.array([person.gender for person in crowd])
    assert 0.35 < (genders > 0.5).mean() < 0.65
    assert len(set(genders)) == len(crowd)
    ancestries = np.stack([person.ancestry for person in crowd])
    np.testing.assert_allclose(ancestries.sum(1), 1)
    assert (ancestries > 0.15).sum(1).max() == 3, "nobody is of mixed ancestry"


def test_the_macro_weights_share_out_one_whole(crowd: list[Person]) -> None:
    """Every person is a convex mixture of the corners of macro space: no shape is added twice or left out."""
    head = load_head()
    families = {name.partition(":")[0] for name in head.macro_names}
    for person in crowd[:10]:
        weights = macro_weights(head.macro_names, person)
        assert weights.min() >= 0
        for family in families:
            mine = [w for w, name in zip(weights, head.macro_names, strict=True) if name.partition(":")[0] == family]
            assert sum(mine) <= 1 + 1e-9


def test_same_appearance_keeps_all_but_the_shape(crowd: list[Person]) -> None:
    for person in crowd[:10]:
        twin = same_appearance(person, 0, 1)
        for field in fields(Person):
            kept = getattr(twin, field.name) is getattr(person, field.name)
            assert kept != (field.name in SHAPE), field.name


def test_same_appearance_is_another_head_as_far_off_as_a_stranger(crowd: list[Person]) -> None:
    def apart(a: Person, b: Person) -> float:
        face = load_head().masks[2] > 0.5
        return float(np.linalg.norm(neutral_head(a)[face] - neutral_head(b)[face], axis=1).mean())

    twins = np.mean([apart(person, same_appearance(person, 0, 1)) for person in crowd[:12]])
    strangers = np.mean([apart(a, b) for a, b in zip(crowd[:12], crowd[12:24], strict=True)])
    assert twins > 0.5 * strangers


def test_same_appearance_has_many_variants_each_always_the_same(crowd: list[Person]) -> None:
    person = crowd[0]
    assert same(same_appearance(person, 0, 1), same_appearance(person, 0, 1))
    assert not np.array_equal(same_appearance(person, 0, 1).local, same_appearance(person, 0, 2).local)
    assert not np.array_equal(same_appearance(person, 0, 1).local, same_appearance(person, 1, 1).local)


def test_about_a_third_of_the_shots_show_another_style_than_usual(album: list[tuple[Person, Shot]]) -> None:
    restyled = np.mean([shot.style is not person.style for person, shot in album])
    assert 0.31 < restyled < 0.39, restyled  # 0.35 of 1200: three standard deviations are 0.041


def test_a_restyled_shot_changes_hair_make_up_or_beard(album: list[tuple[Person, Shot]]) -> None:
    other = [(person.style, shot.style) for person, shot in album if shot.style is not person.style]
    assert np.mean([usual.hair != style.hair for usual, style in other]) > 0.7
    assert {style.glasses for _, style in other} == set(GLASSES)
    assert {style.beard for _, style in other} == set(BEARDS)


def test_only_men_have_beards_and_only_women_wear_make_up(album: list[tuple[Person, Shot]]) -> None:
    for person, shot in album:
        if person.woman:
            assert shot.style.beard == "none"
        else:
            assert shot.style.lipstick == shot.style.eye_shadow == 0


def test_every_named_choice_is_made_sometimes(album: list[tuple[Person, Shot]]) -> None:
    assert len(EXPRESSIONS) >= 10
    assert {shot.expression for _, shot in album} == {*EXPRESSIONS, MIXED}
    assert {shot.background for _, shot in album} == set(BACKGROUNDS)
    assert {shot.garment for _, shot in album} == set(GARMENTS)
    assert {shot.style.hair for _, shot in album} == set(HAIR_STYLES)


def test_expressions_are_continuous_mixes_of_the_52_actions(album: list[tuple[Person, Shot]]) -> None:
    actions = np.stack([shot.actions for _, shot in album])
    assert actions.shape[1] == 52 and actions.dtype == np.float32
    assert actions.min() >= 0 and actions.max() <= 1
    assert len(np.unique(actions, axis=0)) == len(actions)
    assert 0.12 < np.mean([shot.expression == MIXED for _, shot in album]) < 0.22


def test_a_frontal_shot_is_calm_and_in_the_usual_style(crowd: list[Person]) -> None:
    for person in crowd[:30]:
        shot = sample_shot(0, person, 0, frontal=True)
        assert shot.style is person.style
        assert shot.expression == "neutral" and shot.actions.max() < 0.2
        assert max(abs(shot.yaw), abs(shot.pitch), abs(shot.roll)) < 8


def test_attributes_have_a_fixed_set_of_plain_values(album: list[tuple[Person, Shot]]) -> None:
    for person, shot in album[::7]:
        found = attributes(person, shot)
        assert set(found) == KEYS
        assert {type(value) for value in found.values()} <= {str, bool, float}
        assert found["beard"] == shot.style.beard and found["expression"] == shot.expression


@pytest.mark.parametrize(
    ("turn", "word"),
    [({"yaw": 25.0}, "right"), ({"yaw": -25.0}, "left"), ({"pitch": 15.0}, "up"), ({"pitch": -15.0}, "down")],
)
def test_attributes_name_the_picture_s_sides(turn: dict[str, float], word: str) -> None:
    person, shot = sample_person(0, 1), sample_shot(0, 1, 0, frontal=True)
    assert attributes(person, shot)["head"] == attributes(person, shot)["gaze"] == "straight"
    assert attributes(person, replace(shot, **turn))["head"] == word  # type: ignore[arg-type]
    aside = np.array([np.sign(turn.get("yaw", 0)), np.sign(turn.get("pitch", 0))])
    assert attributes(person, replace(shot, gaze=aside))["gaze"] == word


def test_every_word_of_the_attributes_is_used(album: list[tuple[Person, Shot]]) -> None:
    found = [attributes(person, shot) for person, shot in album]
    for key, least in (
        ("age", 3),
        ("skin", 5),
        ("build", 3),
        ("head", 5),
        ("gaze", 5),
        ("light", 5),
        ("eye_colour", 6),
    ):
        words = [f[key] for f in found]
        assert len(set(words)) >= least, (key, set(words))
        assert max(words.count(word) for word in set(words)) < 0.85 * len(words), key


def test_the_asset_is_small_plain_data() -> None:
    """A zip of arrays of numbers and short strings: nothing that only a pickle could hold."""
    assert ASSET.stat().st_size < 1_500_000
    with np.load(ASSET, allow_pickle=False) as file:
        kinds = {file[name].dtype.kind for name in file.files}
    assert kinds <= set("iufU")


def test_the_asset_fits_together() -> None:
    head: HeadAsset = load_head()
    count = len(head.vertices)
    assert 5_000 < count < 20_000
    assert head.triangles.min() >= 0 and head.triangles.max() < count
    assert len(head.triangle_material) == len(head.triangles)
    assert head.masks.shape == (5, count) and head.masks.min() >= 0 and head.masks.max() <= 1
    targets = len(head.macro_names) + len(head.local_names) + len(head.action_names)
    assert len(head.action_names) == 52
    assert len(head.delta_pointer) == targets + 1 and (np.diff(head.delta_pointer) >= 0).all()
    assert head.delta_pointer[-1] == len(head.delta_vertex) == len(head.delta_value)
    assert head.delta_vertex.max() < count
    assert np.isfinite(head.vertices).all() and np.isfinite(head.delta_value).all()


def test_a_damaged_asset_is_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    damaged = tmp_path / "head.npz"
    damaged.write_bytes(ASSET.read_bytes()[:1000])
    monkeypatch.setattr("idgen.synthetic.asset.ASSET", damaged)
    with pytest.raises(IdgenError, match=r"head\.npz can not be read"):
        load_head.__wrapped__()
