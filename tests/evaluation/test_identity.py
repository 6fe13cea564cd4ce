"""Figures over any number of pictures each: equal to the rectangular ones, and right where the answer is known."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from idgen.evaluation import identity as ragged
from idgen.evaluation.cache import RowCache
from idgen.evaluation.evidence import Evidence, Seen, View
from idgen.evaluation.identity import FaceSet, Scale
from idgen.evaluation.material import Material, Photo
from idgen.evaluation.protocol import load_protocol
from idgen.evaluation.readers import _COLUMNS, FaceTable
from idgen.metrics import identity as rectangular
from idgen.metrics import tar_at_far


def photos_of(people: int, photos: int, noise: float = 0.8, dim: int = 48, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(people, 1, dim, generator=generator), dim=-1)
    return centres + torch.randn(people, photos, dim, generator=generator) * noise / dim**0.5


def flat(photos: Tensor) -> FaceSet:
    """(people, photos, dim) in an order that mixes people."""
    people, count = photos.shape[:2]
    order = torch.randperm(people * count, generator=torch.Generator().manual_seed(5))
    return FaceSet(photos.flatten(0, 1)[order], torch.arange(people).repeat_interleave(count)[order], people)


REAL = photos_of(30, 9)
MADE, OTHERS = REAL[:, :4], REAL[:, 4:]


def test_the_scale_is_that_of_the_rectangular_photos() -> None:
    same, different = rectangular.photo_cosines(REAL)
    scale = Scale.of(flat(REAL))
    assert torch.allclose(scale.same.float(), same, atol=1e-5)
    assert torch.allclose(scale.different.float(), different, atol=1e-5)


def test_cosines_pairs_and_ranks_are_those_of_the_rectangular_ones() -> None:
    made, others = flat(MADE), flat(OTHERS)
    own = ragged.per_person(ragged.cosine_to(made, others), made)
    assert torch.allclose(own.float(), rectangular.similarity_to(MADE, OTHERS), atol=1e-5)
    pairs = ragged.pair_scores(made, others)
    genuine, impostor = rectangular.pair_scores(MADE, OTHERS)
    for ours, theirs in ((pairs.genuine, genuine.flatten()), (pairs.impostor, impostor)):
        assert torch.allclose(ours.sort().values, theirs.sort().values, atol=1e-5)
    at = pairs.curve([0.01])[0]
    assert at.tar == pytest.approx(tar_at_far(genuine.flatten(), impostor, 0.01).tar, abs=1e-6)
    shares, there = pairs.accepted(at.threshold, 30)
    assert there.all() and shares.mean() == pytest.approx(at.tar, abs=1e-6)
    pooled = rectangular.rank_one(MADE, rectangular.template(OTHERS))
    assert torch.allclose(ragged.per_person(ragged.retrieve(made, others).right, made), pooled)
    single = rectangular.rank_one(MADE, OTHERS)
    in_order = FaceSet(OTHERS.flatten(0, 1), torch.arange(30).repeat_interleave(5), 30)
    assert torch.allclose(ragged.per_person(ragged.retrieve_single(made, in_order), made), single)


def test_the_lookalike_test_is_that_of_the_rectangular_ones() -> None:
    rivals = torch.stack([photos_of(30, 5, seed=seed) * 0.15 + OTHERS * 0.85 for seed in (1, 2, 3)], 1)
    expected = rectangular.pick_among_lookalikes(MADE, torch.cat([OTHERS[:, None], rivals], 1))
    number = torch.arange(3).repeat_interleave(5).repeat(30)
    crowd = FaceSet(rivals.flatten(0, 2), torch.arange(30).repeat_interleave(15), 30)
    made = flat(MADE)
    found = ragged.per_person(ragged.pick_right(made, flat(OTHERS), crowd, number), made)
    assert torch.allclose(found, expected) and 0.3 < found.mean() < 1


def test_people_may_have_different_numbers_of_pictures() -> None:
    made, others = flat(MADE), flat(OTHERS)
    kept = others.only((others.person != 3) | (torch.rand(len(others), generator=torch.Generator()) < 0.5))
    uneven = made.only(torch.arange(len(made)) % 7 > 0)
    own = ragged.per_person(ragged.cosine_to(uneven, kept), uneven)
    assert own.mean() == pytest.approx(float(rectangular.similarity_to(MADE, OTHERS).mean()), abs=0.05)
    none = ragged.cosine_to(made, others.only(others.person != 3))
    assert none[made.person == 3].isnan().all() and not none[made.person != 3].isnan().any()


def test_a_picture_without_a_face_fails_everywhere_and_a_photo_without_one_is_left_out() -> None:
    blank = FaceSet(torch.zeros_like(flat(MADE).vectors), flat(MADE).person, 30)
    others = flat(OTHERS)
    assert ragged.cosine_to(blank, others).abs().max() == 0
    assert ragged.retrieve(blank, others).right.sum() == 0 and (ragged.retrieve(blank, others).nearest == -1).all()
    pairs = ragged.pair_scores(blank, others)
    assert (pairs.genuine == -1).all() and len(pairs.impostor) == 0
    holed = others.vectors.clone()
    holed[others.person == 2] = 0
    with_holes = FaceSet(holed, others.person, 30)
    assert ragged.cosine_to(flat(MADE), with_holes)[flat(MADE).person == 2].isnan().all()
    assert not Scale.of(with_holes).valid[2]
    assert (ragged.retrieve(flat(MADE), with_holes).nearest != 2).all()


def test_id_score_of_photos_is_one_and_of_strangers_nought() -> None:
    made, others = flat(MADE), flat(OTHERS)
    scale = Scale.of(flat(REAL))
    everybody = torch.ones(30, dtype=torch.bool)
    one = scale.interval(ragged.per_person(ragged.cosine_to(made, others), made), everybody)
    assert one.value == pytest.approx(1, abs=0.05) and one.low < one.value < one.high
    stranger = FaceSet(made.vectors, (made.person + 1) % 30, 30)
    nought = scale.interval(ragged.per_person(ragged.cosine_to(stranger, others), stranger), everybody)
    assert nought.value == pytest.approx(0, abs=0.06)


def test_photos_find_their_own_people_without_themselves() -> None:
    assert ragged.retrieve_photos(flat(photos_of(30, 6, noise=0.4))).mean() == 1
    assert ragged.retrieve_photos(flat(photos_of(30, 6, noise=9.0))).mean() < 0.2  # a photo is not its own proof
    pairs = ragged.photo_pairs(flat(REAL))
    assert len(pairs.genuine) == 30 * 36 and len(pairs.impostor) == 9 * 9 * 30 * 29 // 2


def test_the_nearest_person_of_the_training_is_found() -> None:
    assert ragged.nearest_training(MADE[:, 0], flat(OTHERS)).tolist() == list(range(30))


def test_more_pairs_than_fit_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ragged.pair_scores(flat(MADE), flat(OTHERS))
    monkeypatch.setattr(ragged, "MOST_PAIRS", 120 * 70)
    part = ragged.pair_scores(flat(MADE), flat(OTHERS))
    assert len(part.genuine) == len(whole.genuine) and len(part.impostor) < 0.6 * len(whole.impostor)
    assert part.curve([0.01])[0].threshold == pytest.approx(whole.curve([0.01])[0].threshold, abs=0.08)
    assert len(ragged.photo_pairs(flat(REAL)).genuine) > 30


def test_embeddings_do_not_show_in_logs() -> None:
    photos = FaceSet(torch.full((3, 4), 0.125), torch.tensor([0, 0, 1]), 2)
    assert repr(photos) == "FaceSet(3 pictures, 2 people)"
    table = FaceTable.of_rows(torch.full((3, sum(_COLUMNS.values()) + 4), 0.125))
    seen = Seen(table, photos)
    shown = [table, seen, View(seen, seen, seen, seen, None)]
    assert repr(table) == "FaceTable(3 pictures, 3 with a face)"
    material = Material(["anna", "ben"], [], [], [Photo(np.full((2, 2, 3), 125, np.uint8), "a", 0)])
    view, cpu = shown[2], torch.device("cpu")
    probe: Any = (None, photos.vectors, photos.vectors)
    shown.append(
        Evidence(load_protocol("mini"), material, None, view, view, seen, probe, RowCache(None), cpu)  # type: ignore[arg-type]
    )
    assert repr(shown[3]) == "Evidence(mini, 1 pictures, 2 people)"
    assert not any("125" in repr(one) for one in shown)
