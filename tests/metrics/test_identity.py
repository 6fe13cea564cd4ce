"""Identity scores of embeddings whose answer is known."""

import pytest
import torch
from torch import Tensor

from idgen.metrics import identity
from idgen.metrics.identity import PhotoStatistics


def photos_of(people: int, photos: int, *, noise: float, dim: int = 128, seed: int = 0) -> Tensor:
    """(people, photos, dim): a random direction per person plus noise of the given length per photo."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(people, 1, dim, generator=generator), dim=-1)
    return centres + torch.randn(people, photos, dim, generator=generator) * noise / dim**0.5


PHOTOS = photos_of(60, 8, noise=0.8)
REFERENCES, OTHERS = PHOTOS[:, :4], PHOTOS[:, 4:]


def test_real_photos_score_one() -> None:
    assert identity.id_score(REFERENCES, OTHERS, PhotoStatistics.of(PHOTOS)) == pytest.approx(1.0, abs=0.02)


def test_photos_of_strangers_score_nought() -> None:
    statistics = PhotoStatistics.of(PHOTOS)
    assert identity.id_score(REFERENCES.roll(1, 0), OTHERS, statistics) == pytest.approx(0.0, abs=0.03)


def test_the_score_is_the_cosine_on_the_scale_of_the_photo_statistics() -> None:
    statistics = PhotoStatistics(same=0.6, different=0.1)
    own = torch.tensor([[[1.0, 0.0]]])
    other = torch.tensor([[[0.35, (1 - 0.35**2) ** 0.5]]])
    assert identity.id_score(own, other, statistics) == pytest.approx(0.5)


def test_photo_statistics_match_a_plain_loop_over_pairs() -> None:
    photos = photos_of(5, 3, noise=1.0)
    vectors = torch.nn.functional.normalize(photos, dim=-1)
    same, different = [], []
    for p in range(5):
        for a in range(3):
            for q in range(5):
                for b in range(3):
                    cosine = float(vectors[p, a] @ vectors[q, b])
                    if p != q:
                        different.append(cosine)
                    elif a != b:
                        same.append(cosine)
    statistics = PhotoStatistics.of(photos)
    assert statistics.same == pytest.approx(sum(same) / len(same), abs=1e-5)
    assert statistics.different == pytest.approx(sum(different) / len(different), abs=1e-5)


def test_photo_statistics_of_one_person_are_refused() -> None:
    with pytest.raises(ValueError, match="2 people"):
        PhotoStatistics.of(PHOTOS[:1])


def test_a_scale_of_the_embedding_changes_no_score() -> None:
    statistics = PhotoStatistics.of(PHOTOS)
    assert identity.id_score(REFERENCES * 23, OTHERS, statistics) == pytest.approx(
        identity.id_score(REFERENCES, OTHERS, statistics), abs=1e-5
    )


def test_an_image_without_a_face_counts_as_cosine_nought() -> None:
    lost = REFERENCES.clone()
    lost[:, :2] = 0
    kept = identity.similarity_to(REFERENCES[:, 2:], OTHERS)
    assert identity.similarity_to(lost, OTHERS) == pytest.approx(kept / 2, abs=1e-5)


def test_rank_one_finds_the_right_people_and_not_strangers() -> None:
    clear = photos_of(60, 8, noise=0.3)
    assert identity.rank_one(clear[:, :4], clear[:, 4:]).mean() == 1.0
    assert identity.rank_one(clear.roll(1, 0)[:, :4], clear[:, 4:]).mean() == 0.0


def test_pooling_the_gallery_photos_helps_rank_one() -> None:
    noisy = photos_of(60, 8, noise=2.0)
    single = identity.rank_one(noisy[:, :4], noisy[:, 4:]).mean()
    assert identity.rank_one(noisy[:, :4], identity.template(noisy[:, 4:])).mean() > single + 0.05


def test_an_image_without_a_face_is_never_identified() -> None:
    nothing = torch.zeros_like(REFERENCES)
    assert identity.rank_one(nothing, OTHERS).sum() == 0
    candidates = torch.stack([OTHERS, -OTHERS], 1)
    assert identity.pick_among_lookalikes(nothing, candidates).sum() == 0
    genuine, impostor = identity.pair_scores(nothing, OTHERS)
    assert (genuine == -1).all() and len(impostor) == 0


def test_pair_scores_hold_every_pair_once() -> None:
    genuine, impostor = identity.pair_scores(REFERENCES, OTHERS)
    assert genuine.shape == (60, 4, 4)
    assert impostor.shape == (60 * 59 * 16,)
    assert genuine.mean() == pytest.approx(float(identity.similarity_to(REFERENCES, OTHERS).mean()), abs=1e-5)
    assert impostor.mean() == pytest.approx(float(identity.per_person_cosines(REFERENCES, OTHERS)[1].mean()), abs=1e-5)


def test_the_lookalike_test_picks_candidate_nought_and_guesses_at_chance() -> None:
    rivals = torch.stack([photos_of(60, 4, noise=0.8, seed=seed) for seed in (1, 2, 3)], 1)
    candidates = torch.cat([OTHERS[:, None], rivals], 1)
    assert identity.pick_among_lookalikes(REFERENCES, candidates).mean() == 1.0
    strangers = photos_of(60, 40, noise=5.0, seed=9)
    assert identity.pick_among_lookalikes(strangers, candidates).mean() == pytest.approx(0.25, abs=0.08)


def test_the_nearest_person_of_a_photo_is_its_own_person() -> None:
    assert identity.nearest_people(REFERENCES[:, 0], OTHERS).tolist() == list(range(60))
