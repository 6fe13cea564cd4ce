"""What an Identity promises: raw and unit vectors, no mixing, no leaking, files that come back."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import save_file

from idgen.errors import IdgenError
from idgen.headers import IDENTITY
from idgen.identity import FIELDS, Identity, require_same_recogniser


def person(n=3, d=512, recogniser="mini", seed=0, crops=True):
    g = torch.Generator().manual_seed(seed)
    return Identity(
        20 * torch.randn(n, d, generator=g),
        recogniser,
        torch.randint(0, 256, (n, 112, 112, 3), generator=g).to(torch.uint8) if crops else None,
        112 * torch.rand(n, 5, 2, generator=g) if crops else None,
        torch.rand(n, generator=g) if crops else None,
        torch.rand(n, generator=g) if crops else None,
    )


def assert_same(a: Identity, b: Identity) -> None:
    assert a.recogniser == b.recogniser
    for name in ("raw", *FIELDS):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None and right is None) or (torch.equal(left, right) and left.dtype == right.dtype)


def test_unit_has_length_one_and_raw_keeps_its_own():
    identity = person()
    assert torch.allclose(identity.unit().norm(dim=1), torch.ones(3))
    assert identity.raw.norm(dim=1).min() > 100
    assert identity.raw.dtype == torch.float32


def test_mean_pools_raw_vectors_and_unit_mean_pools_directions():
    short, long = torch.eye(4)[:1], 10 * torch.eye(4)[1:2]
    identity = Identity(torch.cat([short, long]), "mini")
    assert torch.equal(identity.mean(), torch.tensor([0.5, 5.0, 0, 0]))
    assert torch.allclose(identity.mean(unit=True), torch.tensor([0.5**0.5, 0.5**0.5, 0, 0]))
    assert identity.mean().shape == (4,)


@pytest.mark.parametrize("crops", [True, False])
def test_a_saved_identity_comes_back_the_same(tmp_path, crops):
    identity = person(crops=crops)
    identity.save(tmp_path / "person.safetensors")
    assert_same(Identity.load(tmp_path / "person.safetensors"), identity)


def test_pickling_and_copying_keep_everything():
    identity = person()
    assert_same(pickle.loads(pickle.dumps(identity)), identity)
    assert_same(copy.deepcopy(identity), identity)


@pytest.mark.parametrize("show", [repr, str, "{}".format, lambda i: "%s" % [i]])
def test_no_text_of_an_identity_shows_its_vectors(show):
    identity = person()
    text = show(identity)
    assert "3 references" in text and "mini" in text
    assert "tensor" not in text
    assert all(f"{value:.2f}" not in text for value in identity.raw.flatten().tolist())


def test_references_of_one_recogniser_join_and_split_again():
    a, b = person(2, seed=1), person(3, seed=2)
    both = Identity.concat([a, b])
    assert len(both) == 5
    assert_same(both.select([0, 1]), a)
    assert_same(both.select(slice(2, None)), b)
    assert_same(both.select(-1), b.select(2))


def test_joining_drops_what_one_of_them_lacks():
    both = Identity.concat([person(2), person(2, crops=False)])
    assert both.crops is None and both.scores is None and len(both) == 4


@pytest.mark.parametrize(
    "mix",
    [
        lambda a, b: Identity.concat([a, b]),
        lambda a, b: a.similarity(b),
        lambda a, b: require_same_recogniser([a, b]),
    ],
)
def test_two_recognisers_are_never_mixed(mix):
    with pytest.raises(IdgenError, match=r"different recognisers.*judge, mini"):
        mix(person(), person(recogniser="judge"))
    with pytest.raises(IdgenError, match="different sizes"):
        mix(person(), person(d=128))


def test_similarity_is_the_cosine_between_all_references():
    a, b = person(2, seed=1), person(3, seed=2)
    cosines = a.similarity(b)
    assert cosines.shape == (2, 3)
    assert torch.allclose(cosines[1, 2], torch.cosine_similarity(a.raw[1], b.raw[2], dim=0), atol=1e-6)
    assert torch.allclose(a.similarity(a).diagonal(), torch.ones(2))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_an_embedding_that_is_nan_infinite_or_zero_is_refused(value):
    raw = torch.randn(3, 8)
    raw[1, 3 if value else slice(None)] = value
    with pytest.raises(IdgenError, match="reference 1 is NaN, infinite or zero") as error:
        Identity(raw, "mini")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        (torch.ones(512), {}),
        (torch.ones(0, 512), {}),
        (torch.ones(2, 512), {"crops": torch.zeros(3, 112, 112, 3, dtype=torch.uint8)}),
        (torch.ones(2, 512), {"landmarks": torch.zeros(2, 68, 2)}),
        (torch.ones(2, 512), {"scores": torch.zeros(2, 1)}),
    ],
)
def test_shapes_that_do_not_fit_are_refused(raw, parts):
    with pytest.raises(IdgenError, match="identity"):
        Identity(raw, "mini", **parts)


def test_an_unknown_reference_is_named():
    with pytest.raises(IdgenError, match="reference 7"):
        person().select(7)


def test_files_that_are_no_identity_are_one_line(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "weights.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "no_raw.safetensors", {"format": IDENTITY, "recogniser": "mini"})
    save_file(
        {"raw": torch.ones(1, 2), "w": torch.ones(1)},
        tmp_path / "more.safetensors",
        {"format": IDENTITY, "recogniser": "a"},
    )
    save_file(
        {"raw": torch.full((1, 4), float("nan"))}, tmp_path / "nan.safetensors", {"format": IDENTITY, "recogniser": "a"}
    )
    person().save(tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-100])
    for name, words in (
        ("weights.safetensors", "not an identity"),
        ("no_raw.safetensors", "no embeddings"),
        ("more.safetensors", "unknown tensors"),
        ("nan.safetensors", "'raw' holds NaN"),
        ("cut.safetensors", "truncated"),
        ("missing.safetensors", "no such"),
        ("photo.jpg", "not an identity"),
    ):
        with pytest.raises(IdgenError, match=words) as error:
            Identity.load(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
