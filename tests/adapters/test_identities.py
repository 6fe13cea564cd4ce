"""Which identities an adapter takes, and what it makes of them."""

import pytest
import torch

from idgen.adapters.identities import unit_embeddings
from idgen.errors import IdgenError
from idgen.identity import Identity


def rows(identity, recogniser="mini", dim=512):
    return unit_embeddings(identity, recogniser=recogniser, dim=dim)


@pytest.fixture
def raw():
    return 20 * torch.randn(4, 512, generator=torch.Generator().manual_seed(0))


def test_one_identity_is_one_person_however_many_references(raw):
    assert rows(Identity(raw, "mini")).shape == (1, 512)
    assert rows([Identity(raw, "mini"), Identity(raw[:1], "mini")]).shape == (2, 512)
    assert rows((Identity(raw, "mini"),)).shape == (1, 512)


def test_a_tensor_is_a_person_per_row(raw):
    torch.testing.assert_close(rows(raw), raw / raw.norm(dim=1, keepdim=True))
    assert rows(raw[0]).shape == (1, 512)


@pytest.mark.parametrize("references", [1, 2, 4])
def test_references_are_pooled_as_units_and_the_result_is_a_unit(raw, references):
    raw = raw[:references]
    mean = (raw / raw.norm(dim=1, keepdim=True)).mean(0)
    torch.testing.assert_close(rows(Identity(raw, "mini"))[0], mean / mean.norm())


def test_a_sharp_reference_does_not_outweigh_the_others(raw):
    louder = raw * torch.tensor([[100.0], [1], [1], [1]])
    torch.testing.assert_close(rows(Identity(raw, "mini")), rows(Identity(louder, "mini")))


def test_half_precision_and_other_devices_dtypes_come_out_as_float32(raw):
    assert rows(raw.half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda raw: Identity(raw, "buffalo_l"), "'buffalo_l'.*'mini'"),
        (lambda raw: [Identity(raw, "mini"), Identity(raw, "buffalo_l")], "'buffalo_l'.*'mini'"),
        (lambda raw: raw[:, :100], r"\(4, 100\)"),
        (lambda raw: raw[None], r"\(1, 4, 512\)"),
        (lambda raw: raw[:0], r"\(0, 512\)"),
        (lambda raw: [], "no identity"),
        (lambda raw: raw * torch.nan, "NaN"),
        (lambda raw: raw * torch.inf, "NaN"),
        (lambda raw: raw * 0, "zeros"),
        (lambda raw: [raw], "not Tensor"),
        (lambda raw: "anna.jpg", "not str"),
        (lambda raw: 3, "not int"),
    ],
    ids=range(12),
)
def test_what_is_refused_is_named(raw, bad, message):
    with pytest.raises(IdgenError, match=message) as error:
        rows(bad(raw))
    assert "\n" not in str(error.value)


def test_another_embedding_length_of_the_right_recogniser_is_refused():
    with pytest.raises(IdgenError, match=r"\(1, 128\)"):
        rows(Identity(torch.randn(2, 128), "mini"))


def test_people_of_different_lengths_are_refused(raw):
    with pytest.raises(IdgenError, match="128"):
        rows([Identity(raw, "mini"), Identity(torch.randn(2, 128), "mini")])


def test_no_error_shows_an_embedding(raw):
    with pytest.raises(IdgenError) as error:
        rows(Identity(raw, "buffalo_l"))
    assert not any(f"{value:.3f}" in str(error.value) for value in raw.flatten().tolist())
