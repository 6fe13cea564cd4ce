"""How often references are doubted."""

import random

import torch

from benchmarks.disagreement import doubted


def test_two_people_are_always_doubted_and_one_never_where_they_are_nothing_alike() -> None:
    people = torch.eye(3)[:, None].repeat(1, 5, 1)
    people[0, :1] = 0  # a photo in which no face was found
    assert doubted(people, (3, 0), 50, random.Random(0)) == 0
    assert doubted(people, (2, 2), 50, random.Random(0)) == 1
    assert doubted(people, (1, 1), 50, random.Random(0)) == 1
