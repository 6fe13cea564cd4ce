"""Photos of several people among one person's are noticed, and photos in which several could be meant."""

import math

import pytest
import torch

from idgen.agreement import SAME_PERSON, disagreement, doubts
from idgen.errors import IdgenError
from idgen.identity import Identity

ANNA, BEN = torch.eye(3)[:2]


def test_references_of_different_people_are_told_with_their_cosines():
    assert disagreement(Identity(ANNA[None], "mini")) is None
    assert disagreement(Identity(torch.stack([ANNA, ANNA * 3]), "mini")) is None
    line = str(disagreement(Identity(torch.stack([ANNA, ANNA, BEN]), "mini")))
    assert "(number 3 of 3 stands out; cosines 1.00 1.00" in line and "\n" not in line
    strangers = disagreement(Identity(torch.stack([ANNA, BEN]), "mini"))
    assert "different people (cosines 1.00" in str(strangers), "neither of two stands out"


def test_two_photos_of_a_stranger_do_not_vouch_for_each_other():
    near = torch.tensor([[1.0, 0.2, 0], [1, -0.2, 0], [0.2, 1, 0.1], [0.2, 1, -0.1], [0.1, 1, 0]])
    line = str(disagreement(Identity(near[[0, 2, 1, 3]], "mini")))
    assert "(numbers 1, 3 against 2, 4; cosines 1.00" in line
    assert "(numbers 1, 2 of 5 stand out; " in str(disagreement(Identity(near, "mini")))
    third = torch.cat([near[2:], torch.eye(3)[[0, 2]]])
    assert "(numbers 4, 5 of 5 stand out; " in str(disagreement(Identity(third, "mini")))


def test_photos_of_one_person_may_differ_from_each_other_where_others_join_them():
    chain = torch.tensor([[math.cos(angle), math.sin(angle)] for angle in (0.0, 0.75, 1.5)])
    assert chain[0] @ chain[2] < SAME_PERSON and disagreement(Identity(chain, "mini")) is None


def test_another_face_nearly_as_large_is_noticed():
    def seen(*rivals: float | None) -> Identity:
        known = None if None in rivals else torch.tensor(rivals)
        return Identity(ANNA.repeat(len(rivals), 1), "mini", rivals=known)

    assert doubts(seen(None)) == doubts(seen(0.0)) == doubts(seen(0.4, 0.0)) == []
    assert doubts(seen(0.8)) == [
        "the reference shows another face nearly as large as the one that is taken: crop it to the person who is meant"
    ]
    assert doubts(seen(0.8, 0, 0.1))[0].startswith("number 1 of 3 references shows another face")
    assert doubts(seen(0.8, 0, 0.6))[0].startswith("number 1, 3 of 3 references show another face")


def test_strict_refuses_every_doubt_in_one_line():
    both = Identity(torch.stack([ANNA, BEN]), "mini", rivals=torch.tensor([0.0, 0.9]))
    with pytest.raises(
        IdgenError, match=r"number 2 of 2 .*; the references may show different people .* go without --strict"
    ):
        doubts(both, strict=True)
    assert doubts(both.select(0), strict=True) == [], "a doubt goes with its photo"
