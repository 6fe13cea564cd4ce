"""The recogniser benchmark's pairs and figures, on embeddings whose answer is known."""

import pytest
import torch
from torch import Tensor

from benchmarks.recognisers import matched_pairs, measure

PEOPLE, SHOTS, DIM = 60, 6, 64


def embeddings(noise: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(PEOPLE, 1, DIM, generator=generator), dim=-1)
    return centres + torch.randn(PEOPLE, SHOTS, DIM, generator=generator) * noise / DIM**0.5


def all_pairs() -> list[tuple[int, int, int]]:
    return [(p, a, b) for p in range(PEOPLE) for a in range(SHOTS) for b in range(SHOTS) if a != b]


def test_pairs_are_cross_pose_and_restyled() -> None:
    yaw = torch.tensor([[0.0, 5.0, 20.0, 40.0]])
    look = [[("long",), ("bob",), ("bob",), ("long",)]]
    assert matched_pairs(yaw, look) == [(0, 0, 2), (0, 1, 3), (0, 2, 0), (0, 2, 3), (0, 3, 1), (0, 3, 2)]


def test_a_perfect_recogniser_reaches_one_everywhere() -> None:
    scores = measure(embeddings(0.1), embeddings(0.1, seed=1), all_pairs())
    assert scores["accuracy"] == scores["hard_accuracy"] == scores["rank_one"] == scores["tar_at_1e-3"] == 1.0
    assert scores["tar_at_1e-2"]["value"] == 1.0 and scores["undetected"] == 0


def test_a_recogniser_of_looks_alone_guesses_on_the_hard_split() -> None:
    scores = measure(embeddings(0.3), embeddings(0.3), all_pairs())
    # The lookalikes' vectors are those of the person: the pair (a, b) scores exactly the same.
    assert scores["accuracy"] > 0.99
    assert scores["hard_accuracy"] == pytest.approx(0.5, abs=0.05)


def test_noise_is_judged_by_chance() -> None:
    scores = measure(embeddings(30), embeddings(30, seed=1), all_pairs())
    assert scores["accuracy"] == pytest.approx(0.5, abs=0.04)
    assert scores["tar_at_1e-2"]["value"] == pytest.approx(0.01, abs=0.02)
    assert scores["rank_one"] < 0.1


def test_undetected_faces_count_as_misses() -> None:
    own = embeddings(0.1)
    own[:, 0] = 0
    scores = measure(own, embeddings(0.1, seed=1), all_pairs())
    assert scores["undetected"] == PEOPLE
    assert scores["tar_at_1e-3"] == pytest.approx(1 - 2 / SHOTS, abs=0.01)
