"""Projections of IP-Adapter-FaceID: shapes, references, sizes read off weights, and no state between calls."""

import threading

import pytest
import torch

from idgen.checkpoint import load_strict
from idgen.errors import IdgenError
from idgen.models.face_projections import FaceIDPlusProjection, FaceIDProjection

SIZES = {"cross_attention_dim": 24, "embedding_dim": 20, "num_tokens": 3, "ratio": 2}
PLUS = SIZES | {"clip_dim": 10, "depth": 2, "dim_head": 8}


def test_references_of_a_person_become_one_row_of_tokens_in_order():
    projection = FaceIDProjection(**SIZES)
    faces = torch.randn(2, 5, 20)
    tokens = projection(faces)
    assert tokens.shape == (2, 15, 24)
    for person in range(2):
        torch.testing.assert_close(tokens[person].unflatten(0, (5, 3)), projection(faces[person]))


def test_every_size_is_read_off_the_weights():
    for kind, sizes, options in ((FaceIDProjection, SIZES, {}), (FaceIDPlusProjection, PLUS, {"dim_head": 8})):
        state = kind(**sizes).state_dict()
        assert kind.sizes(state, "test", **options) == sizes
        load_strict(kind(**kind.sizes(state, "test", **options)), state, "test")


def test_weights_of_the_other_kind_are_refused():
    with pytest.raises(IdgenError, match=r"a file: the tensor 'proj_in\.weight' is missing"):
        FaceIDPlusProjection.sizes(FaceIDProjection(**SIZES).state_dict(), "a file")
    plus = FaceIDPlusProjection(**PLUS).state_dict()
    with pytest.raises(IdgenError, match=r"unexpected: perceiver_resampler"):
        load_strict(FaceIDProjection(**FaceIDProjection.sizes(plus, "a file")), plus, "a file")


def test_the_shortcut_adds_what_the_picture_shows_and_must_be_chosen():
    projection = FaceIDPlusProjection(**PLUS)
    face, picture = torch.randn(2, 20), torch.randn(2, 7, 10)
    plain = projection(face, picture, shortcut=False)
    own = projection(face, picture, shortcut=True, s_scale=0.0)
    torch.testing.assert_close(own, projection.tokens(face))
    torch.testing.assert_close(projection(face, picture, shortcut=True, s_scale=0.5), own + 0.5 * plain)
    with pytest.raises(TypeError, match="shortcut"):
        projection(face, picture)


def test_nothing_stays_on_the_module_so_threads_may_share_it():
    projection = FaceIDPlusProjection(**PLUS).requires_grad_(False)
    attributes = set(vars(projection))
    faces, pictures = torch.randn(6, 1, 20), torch.randn(6, 1, 7, 10)
    alone = [projection(face, picture, shortcut=True) for face, picture in zip(faces, pictures, strict=True)]
    together = [None] * 6

    def work(index):
        for _ in range(20):
            together[index] = projection(faces[index], pictures[index], shortcut=True)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert set(vars(projection)) == attributes
