"""Pictures of synthetic people: the same bytes however they are asked for, and ground truth that fits the pixels."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from idgen.errors import IdgenError
from idgen.synthetic import PARSING_CLASSES, Person, RenderBatch, Renderer, Shot, sample_person, sample_shot
from idgen.synthetic.asset import load_head
from idgen.synthetic.geometry import neutral_head
from idgen.synthetic.shots import preset
from idgen.synthetic.style import HAIR_STYLES

FIRST, COUNT, SIZE = 400_200, 6, 64
CLASS = {name: number for number, name in enumerate(PARSING_CLASSES)}
ARRAYS = ("images", "parsing", "landmarks5", "landmarks68", "pose", "expression")
Look = Callable[..., RenderBatch]


@pytest.fixture(scope="module")
def people() -> list[Person]:
    return [sample_person(0, FIRST + number) for number in range(COUNT)]


@pytest.fixture(scope="module")
def shots(people: list[Person]) -> list[Shot]:
    return [sample_shot(0, person, number) for number, person in enumerate(people)]


@pytest.fixture(scope="module")
def batch(people: list[Person], shots: list[Shot]) -> RenderBatch:
    return Renderer().render(people, shots, size=SIZE)


@pytest.fixture(scope="module")
def portraits(people: list[Person]) -> RenderBatch:
    """Frontal and bare-faced: nothing hides the face."""
    return Renderer().render(people, [plain(person) for person in people], size=128)


@pytest.fixture(scope="module")
def look(people: list[Person]) -> Look:
    """Renders the first person's plain shot with changes: look(yaw=30.0), look(actions={"jawOpen": 1.0})."""

    def render(size: int = 96, actions: dict[str, float] | None = None, **changes: object) -> RenderBatch:
        shot = replace(plain(people[0]), **changes)  # type: ignore[arg-type]
        names = load_head().action_names
        weights = np.array(
            [max((v for k, v in (actions or {}).items() if n.startswith(k)), default=0.0) for n in names]
        )
        return Renderer().render([people[0]], [replace(shot, actions=weights.astype(np.float32))], size=size)

    return render


def plain(person: Person) -> Shot:
    """A frontal portrait, still, without glasses and with short hair."""
    shot = sample_shot(0, person, 0, frontal=True)
    style = replace(person.style, glasses="none", hair="short", beard="none")
    still = np.zeros(52, np.float32)
    return replace(shot, yaw=0.0, pitch=0.0, roll=0.0, framing=np.array([0, 0, 1.0, 0]), actions=still, style=style)


def digest(batch: RenderBatch) -> str:
    return hashlib.sha256(b"".join(getattr(batch, name).tobytes() for name in ARRAYS)).hexdigest()


# The same bytes


def test_a_picture_alone_is_bit_for_bit_the_one_in_a_batch(
    people: list[Person], shots: list[Shot], batch: RenderBatch
) -> None:
    for i in (0, 3, 5):
        alone = Renderer().render([people[i]], [shots[i]], size=SIZE)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(batch, name)[i], err_msg=name)


def test_the_order_of_a_batch_does_not_matter(people: list[Person], shots: list[Shot], batch: RenderBatch) -> None:
    turned = Renderer().render(people[::-1], shots[::-1], size=SIZE)
    np.testing.assert_array_equal(turned.images[::-1], batch.images)


def test_two_threads_at_once_give_the_same_bytes_as_one(
    people: list[Person], shots: list[Shot], batch: RenderBatch
) -> None:
    renderer = Renderer()
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda _: digest(renderer.render(people, shots, size=SIZE)), range(2))
        assert set(found) == {digest(batch)}


def test_another_process_with_more_threads_gives_the_same_bytes(batch: RenderBatch) -> None:
    program = (
        "import numpy, random, torch\n"
        "torch.set_num_threads(2); random.seed(1); numpy.random.seed(1); torch.manual_seed(1)\n"
        "from idgen.synthetic import Renderer, sample_person, sample_shot\n"
        "from tests.synthetic.test_render import digest\n"
        f"people = [sample_person(0, {FIRST} + n) for n in range({COUNT})]\n"
        "shots = [sample_shot(0, person.number, n) for n, person in enumerate(people)]\n"
        f"print(digest(Renderer().render(people, shots, size={SIZE})))\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [digest(batch)]


# Identity


def test_a_person_s_head_is_the_same_in_every_shot_and_nobody_else_s(people: list[Person]) -> None:
    again = sample_person(0, FIRST)
    np.testing.assert_array_equal(neutral_head(again), neutral_head(people[0]))
    faces = np.stack([neutral_head(person)[load_head().masks[2] > 0.5] for person in people])
    apart = np.linalg.norm(faces[:, None] - faces[None], axis=-1).mean(-1)
    assert apart[~np.eye(COUNT, dtype=bool)].min() > 0.02  # decimetres: 2 mm on average over the face


def test_a_hairstyle_moves_no_landmark(look: Look, people: list[Person]) -> None:
    style = plain(people[0]).style
    marks = [look(style=replace(style, hair=hair), size=32).landmarks68 for hair in HAIR_STYLES]
    for other in marks[1:]:
        np.testing.assert_array_equal(other, marks[0])


# What is in the picture


def test_shapes_types_and_ranges(batch: RenderBatch) -> None:
    assert batch.images.shape == (COUNT, SIZE, SIZE, 3) and batch.images.dtype == np.uint8
    assert batch.parsing.shape == (COUNT, SIZE, SIZE) and batch.parsing.dtype == np.uint8
    assert batch.parsing.max() < len(PARSING_CLASSES) == 13
    assert batch.landmarks5.shape == (COUNT, 5, 2) and batch.landmarks68.shape == (COUNT, 68, 2)
    assert batch.pose.shape == (COUNT, 3) and batch.expression.shape == (COUNT, 52)
    assert {getattr(batch, name).dtype for name in ARRAYS[2:]} == {np.dtype(np.float32)}


def test_every_parsing_class_can_be_seen(look: Look, people: list[Person]) -> None:
    style = replace(plain(people[0]).style, glasses="glasses", hair="short")
    laughing = preset("laughing").astype(np.float32)
    names = load_head().action_names
    batch = look(size=160, style=style, actions=dict(zip(names, laughing, strict=True)))
    counts = np.bincount(batch.parsing.ravel(), minlength=13)
    assert (counts > 8).all(), dict(zip(PARSING_CLASSES, counts, strict=True))


def test_pictures_are_neither_black_nor_burnt_out(batch: RenderBatch, portraits: RenderBatch) -> None:
    for image, parsing in zip((*batch.images, *portraits.images), (*batch.parsing, *portraits.parsing), strict=True):
        skin = image[parsing == CLASS["skin"]]
        assert (skin.min(1) > 250).mean() < 0.01
        assert skin.mean() > 15 and skin.std() > 4


def test_faces_are_where_a_portrait_has_them(portraits: RenderBatch) -> None:
    eyes = portraits.landmarks5[:, 1] - portraits.landmarks5[:, 0]
    apart = np.linalg.norm(eyes, axis=1)  # narrow and wide faces are scaled to the same five landmarks
    assert 30 < apart.mean() < 38 and apart.min() > 25 and apart.max() < 42
    middle = portraits.landmarks5.mean(1)
    assert (np.abs(middle[:, 0] - 63.5) < 6).all() and (np.abs(middle[:, 1] - 80) < 8).all()


def test_the_five_landmarks_are_eyes_nose_and_mouth_from_the_viewer_s_left(portraits: RenderBatch) -> None:
    left_eye, right_eye, nose, left_mouth, right_mouth = portraits.landmarks5.transpose(1, 0, 2)
    assert (left_eye[:, 0] < nose[:, 0]).all() and (nose[:, 0] < right_eye[:, 0]).all()
    assert (left_mouth[:, 0] < nose[:, 0]).all() and (nose[:, 0] < right_mouth[:, 0]).all()
    assert (left_eye[:, 1] < nose[:, 1]).all() and (nose[:, 1] < left_mouth[:, 1]).all()
    np.testing.assert_allclose(portraits.landmarks68[:, [30, 48, 54]], portraits.landmarks5[:, 2:], atol=1e-3)


def test_landmarks_lie_inside_the_parts_that_they_mark(portraits: RenderBatch) -> None:
    face = {"skin", "brows", "eyes", "iris", "nose", "lips", "mouth"}
    for five, marks, parsing in zip(portraits.landmarks5, portraits.landmarks68, portraits.parsing, strict=True):
        assert {named(parsing, mark) for mark in five} <= face
        assert "nose" in around(parsing, five[2], 1)
        for eye in five[:2]:
            assert {"eyes", "iris"} & around(parsing, eye, 4)
        for mark in marks[17:27]:
            assert {"brows", "skin"} & around(parsing, mark, 2)
        for mark in marks[48:60]:
            assert "lips" in around(parsing, mark, 3)


def test_the_mask_s_parts_are_where_the_landmarks_are(portraits: RenderBatch) -> None:
    """The mean place of nose, lips and irises in the mask is that of their landmarks."""
    for five, marks, parsing in zip(portraits.landmarks5, portraits.landmarks68, portraits.parsing, strict=True):
        for part, mark in (("lips", marks[48:60].mean(0)), ("iris", five[:2].mean(0)), ("nose", marks[28:31].mean(0))):
            middle = np.argwhere(parsing == CLASS[part])[:, ::-1].mean(0)
            assert np.linalg.norm(middle - mark) < 6, part  # a fifth of the distance between the eyes


def test_landmarks_scale_with_the_picture(look: Look) -> None:
    small, large = look(size=48).landmarks68, look(size=96).landmarks68
    np.testing.assert_allclose((small + 0.5) * 2, large + 0.5, atol=1e-4)


def test_supersampling_smooths_and_changes_no_ground_truth(people: list[Person], shots: list[Shot]) -> None:
    once = Renderer().render(people[:1], shots[:1], size=48)
    twice = Renderer().render(people[:1], shots[:1], size=48, supersampling=2)
    np.testing.assert_array_equal(once.landmarks68, twice.landmarks68)
    change = np.abs(once.images.astype(int) - twice.images)
    assert 0 < change.mean() < 6
    assert (once.parsing == twice.parsing).mean() > 0.9


def test_shadows_only_darken_and_move_nothing(people: list[Person], shots: list[Shot]) -> None:
    with_, without = (Renderer().render(people[:2], shots[:2], size=48, shadows=shadows) for shadows in (True, False))
    np.testing.assert_array_equal(with_.parsing, without.parsing)
    assert (with_.images.astype(int) <= without.images.astype(int) + 1).all()
    assert (with_.images.astype(int) < without.images.astype(int) - 5).any()


def test_sunglasses_hide_the_eyes(look: Look, people: list[Person]) -> None:
    style = replace(plain(people[0]).style, glasses="sunglasses")
    seen, hidden = look().parsing, look(style=style).parsing
    assert (seen == CLASS["iris"]).sum() > 10 > (hidden == CLASS["iris"]).sum()
    assert (hidden == CLASS["glasses"]).sum() > 100


# Expressions and poses


def test_a_head_that_turns_right_has_its_nose_to_the_right(look: Look) -> None:
    nose = {yaw: offset(look(yaw=yaw, size=32))[0] for yaw in (-30.0, 0.0, 30.0)}
    assert nose[-30.0] < nose[0.0] - 1 and nose[0.0] + 1 < nose[30.0]


def test_a_head_that_looks_up_has_its_nose_higher(look: Look) -> None:
    nose = {pitch: offset(look(pitch=pitch, size=32))[1] for pitch in (-15.0, 0.0, 15.0)}
    assert nose[15.0] < nose[0.0] - 0.3 and nose[0.0] + 0.3 < nose[-15.0]


def test_a_roll_is_counter_clockwise(look: Look) -> None:
    left, right = look(roll=12.0, size=96).landmarks5[0, :2]
    angle = np.degrees(np.arctan2(left[1] - right[1], right[0] - left[0]))
    assert 8 < angle < 16


def test_pose_and_expression_are_those_of_the_shot(batch: RenderBatch, shots: list[Shot]) -> None:
    np.testing.assert_allclose(batch.pose, [[s.yaw, s.pitch, s.roll] for s in shots], rtol=1e-6)
    np.testing.assert_array_equal(batch.expression, [s.actions for s in shots])


def test_an_open_jaw_parts_the_lips_and_shows_the_mouth(look: Look) -> None:
    shut, open_ = look(), look(actions={"jawOpen": 0.8})
    assert gap(open_, 62, 66) > gap(shut, 62, 66) + 5
    assert (open_.parsing == CLASS["mouth"]).sum() > (shut.parsing == CLASS["mouth"]).sum() + 40


def test_a_smile_widens_the_mouth_and_lifts_its_corners(look: Look) -> None:
    calm, smile = look(), look(actions={"mouthSmile": 1.0})
    assert gap(smile, 48, 54) > gap(calm, 48, 54) + 2
    for corner in (48, 54):
        rise = [(b.landmarks68[0, 57, 1] - b.landmarks68[0, corner, 1]) / eye_distance(b) for b in (calm, smile)]
        assert rise[1] > rise[0] + 0.02


def test_closed_eyes_show_no_iris(look: Look) -> None:
    open_, closed = look(), look(actions={"eyeBlink": 1.0})
    assert (open_.parsing == CLASS["iris"]).sum() > 20
    assert (closed.parsing == CLASS["iris"]).sum() <= 2
    for upper, lower in ((37, 41), (44, 46)):  # narrow eyes overlap when they close
        opening = [b.landmarks68[0, lower, 1] - b.landmarks68[0, upper, 1] for b in (open_, closed)]
        assert opening[0] > 2 and opening[1] < 0.3 * opening[0]


def test_raised_brows_rise_and_lowered_ones_fall(look: Look) -> None:
    heights = [
        (b.landmarks68[0, 36:48, 1].mean() - b.landmarks68[0, 17:27, 1].mean()) / eye_distance(b)
        for b in (look(actions={"browDown": 1.0}), look(), look(actions={"browInnerUp": 1.0, "browOuterUp": 1.0}))
    ]
    assert heights[0] < heights[1] - 0.01 and heights[1] + 0.01 < heights[2]


def test_a_gaze_to_the_right_moves_the_irises_to_the_right(look: Look) -> None:
    ahead, right = look(size=128), look(size=128, actions={"eyeLookOutLeft": 0.8, "eyeLookInRight": 0.8})
    places = [
        np.argwhere(b.parsing[0] == CLASS["iris"])[:, 1].mean() - b.landmarks5[0, :2, 0].mean() for b in (ahead, right)
    ]
    assert places[1] > places[0] + 1


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"size": 8}, "size must be"), ({"size": 2048}, "size must be"), ({"supersampling": 0}, "supersampling 1 to 4")],
)
def test_sizes_out_of_range_are_refused(
    people: list[Person], shots: list[Shot], settings: dict[str, int], message: str
) -> None:
    with pytest.raises(IdgenError, match=message):
        Renderer().render(people[:1], shots[:1], **settings)  # type: ignore[arg-type]


def test_lists_that_do_not_fit_are_refused(people: list[Person], shots: list[Shot]) -> None:
    with pytest.raises(IdgenError, match="one person for each shot"):
        Renderer().render(people, shots[:2])
    with pytest.raises(IdgenError, match="one person for each shot"):
        Renderer().render([], [])
    with pytest.raises(IdgenError, match=f"belongs to person {FIRST + 1}, not to person {FIRST}"):
        Renderer().render(people[:1], shots[1:2])


def named(parsing: np.ndarray, mark: np.ndarray) -> str:
    return PARSING_CLASSES[parsing[round(float(mark[1])), round(float(mark[0]))]]


def around(parsing: np.ndarray, mark: np.ndarray, reach: int) -> set[str]:
    """The classes within `reach` pixels of a landmark."""
    x, y = (round(float(value)) for value in mark)
    window = parsing[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
    return {PARSING_CLASSES[number] for number in np.unique(window)}


def offset(batch: RenderBatch) -> np.ndarray:
    """From the middle of the eyes to the nose tip, in pixels."""
    return batch.landmarks5[0, 2] - batch.landmarks5[0, :2].mean(0)


def eye_distance(batch: RenderBatch) -> float:
    return float(np.linalg.norm(batch.landmarks5[0, 1] - batch.landmarks5[0, 0]))


def gap(batch: RenderBatch, a: int, b: int) -> float:
    """Between two of the 68 landmarks: pixels of a picture whose eyes are 64 apart."""
    return 64 * float(np.linalg.norm(batch.landmarks68[0, a] - batch.landmarks68[0, b])) / eye_distance(batch)
