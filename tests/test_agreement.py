"""Photos of several people among one person's are noticed."""

import math

import torch

from idgen.agreement import SAME_PERSON, disagreement
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
