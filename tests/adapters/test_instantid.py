"""What InstantID has beside the contract: tokens for IdentityNet, and where faces are put."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from idgen.adapters.instantid import FaceCall, face_tokens
from idgen.adapters.instantid.scene import draw_faces, person_masks, place
from idgen.errors import IdgenError
from tests.adapters.bases import tiny_unet
from tests.tiny_sdxl import FACE, person, tiny_controlnet, tiny_instantid


@pytest.fixture(scope="module")
def adapter():
    return tiny_instantid(tiny_unet("sdxl"))


@torch.no_grad()
def test_people_of_one_batch_may_have_different_numbers_of_references(adapter):
    people = [person(0, references=1), person(1, references=4), person(2, references=2)]
    batch = adapter.condition(people, images=2)
    tokens = face_tokens(batch)
    assert tokens.shape == (12, 3, 32) and batch.rows == 12
    for index, one in enumerate(people):
        alone = adapter.condition(one, images=2)
        rows = [2 * index, 2 * index + 1, 6 + 2 * index, 7 + 2 * index]
        torch.testing.assert_close(tokens[rows], face_tokens(alone))
        for name, (part,) in alone.entries[0].parts.items():
            torch.testing.assert_close(batch.entries[0].parts[name][0].take(torch.tensor(rows)).value, part.value)


@torch.no_grad()
def test_nobody_has_as_many_references_as_the_person_it_is_compared_with(adapter):
    one, three = (adapter.condition(person(0, references=count)) for count in (1, 3))
    expected = adapter.image_proj(torch.zeros(1, 3, 512))
    torch.testing.assert_close(face_tokens(three)[:1], expected)
    assert not torch.allclose(face_tokens(one)[:1], expected, atol=1e-3)


@torch.no_grad()
def test_tokens_follow_the_halves_and_the_sum_of_conditionings(adapter):
    anna, ben = (adapter.condition(person(seed), images=2) for seed in range(2))
    both = anna + ben
    tokens = face_tokens(both)
    assert torch.equal(tokens, torch.cat([face_tokens(anna), face_tokens(ben)], 1))
    assert torch.equal(face_tokens(both.negative()), tokens[:2]) and torch.equal(
        face_tokens(both.positive()), tokens[2:]
    )


@torch.no_grad()
def test_identitynet_listens_within_its_call_only(adapter):
    net, other = tiny_controlnet(), tiny_controlnet()
    call = FaceCall(net, adapter.condition(person(0)))
    arguments = {
        "sample": torch.zeros(2, 4, 8, 8),
        "timestep": 1,
        "controlnet_cond": torch.zeros(2, 3, 64, 64),
        "added_cond_kwargs": {"text_embeds": torch.zeros(2, 8), "time_ids": torch.zeros(2, 6)},
        "return_dict": False,
    }

    def mid(model, context=None):
        context = torch.zeros(2, 7, 32) if context is None else context
        return model(encoder_hidden_states=context, **arguments)[1]

    silent, faces = mid(net), mid(net, call.tokens)
    with call.speaking():
        assert torch.equal(mid(net), faces) and torch.equal(mid(other), silent)
        arguments["sample"] = torch.zeros(3, 4, 8, 8)
        with pytest.raises(IdgenError, match="3 rows, and there are faces for 2"):
            mid(net)
    arguments["sample"] = torch.zeros(2, 4, 8, 8)
    assert torch.equal(mid(net), silent) and not torch.allclose(faces, silent, atol=1e-3)


def test_a_placed_face_keeps_its_shape_and_lies_in_its_box():
    points = FACE.numpy()
    placed = place(points, (100, 50, 700, 1050))
    spread = placed.max(0) - placed.min(0)
    assert spread.max() == pytest.approx(0.2 * 600) and (placed > [100, 50]).all() and (placed < [700, 1050]).all()
    before, after = points - points.mean(0), placed - placed.mean(0)
    np.testing.assert_allclose(after / np.linalg.norm(after), before / np.linalg.norm(before), atol=1e-5)
    np.testing.assert_allclose(place(3 * points + 9, (100, 50, 700, 1050)), placed, rtol=1e-4)
    with pytest.raises(IdgenError, match="one point"):
        place(np.ones((5, 2), np.float32), (0, 0, 64, 64))


def test_faces_are_drawn_within_their_masks():
    right = torch.zeros(8, 16)
    right[:, 8:] = 1
    (picture,) = draw_faces([[person(0)]], None, person_masks(right, 1, 1), (256, 512))
    assert picture[:, :, 256:].max() == 1 and picture[:, :, :256].max() == 0
    black = draw_faces([[person(0)]], None, person_masks(0 * right, 1, 1), (256, 512))
    assert torch.equal(black, draw_faces([[person(0)]], None, [None], (256, 512)))
