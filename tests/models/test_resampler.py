"""Resamplers: an independent oracle, sizes read off weights, any length of input, gradients."""

import re

import pytest
import torch
from diffusers.models.embeddings import IPAdapterPlusImageProjection

from idgen.checkpoint import load_strict
from idgen.errors import IdgenError
from idgen.models.resampler import FaceResampler, Resampler, perceiver_sizes

SIZES = {"dim": 24, "heads": 3, "embedding_dim": 20, "output_dim": 12, "depth": 2, "dim_head": 16, "num_queries": 5}


def oracle(resampler, sizes):
    """diffusers' resampler with the same weights under its own names."""
    theirs = IPAdapterPlusImageProjection(
        embed_dims=sizes["embedding_dim"],
        output_dims=sizes["output_dim"],
        hidden_dims=sizes["dim"],
        depth=sizes["depth"],
        dim_head=sizes["dim_head"],
        heads=sizes["heads"],
        num_queries=sizes["num_queries"],
    )
    names = {"0.norm1": "ln0", "0.norm2": "ln1", "0.to_q": "attn.to_q", "0.to_out": "attn.to_out.0", "1.0": "ff.0"}
    names |= {"1.1": "ff.1.net.0.proj", "1.3": "ff.1.net.2"}
    state = {}
    for key, value in resampler.state_dict().items():
        match = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", key)
        if match is None:
            state[key] = value
        elif match[2] == "0.to_kv":
            for name, half in zip(("to_k", "to_v"), value.chunk(2), strict=True):
                state[f"layers.{match[1]}.attn.{name}.weight"] = half
        else:
            state[f"layers.{match[1]}.{names[match[2]]}.{match[3]}"] = value
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 7), (3, 144)])
def test_it_computes_what_diffusers_computes_under_other_names(batch, length):
    torch.manual_seed(0)
    resampler = Resampler(**SIZES)
    features = 20 * torch.randn(batch, length, 20)
    with torch.no_grad():
        tokens = resampler(features)
        assert tokens.shape == (batch, 5, 12)
        torch.testing.assert_close(tokens, oracle(resampler, SIZES)(features), atol=1e-5, rtol=1e-5)


def test_keys_at_the_published_depth():
    keys = list(Resampler(**SIZES | {"depth": 4}).state_dict())
    assert len(keys) == 51 and keys[0] == "latents"


@pytest.mark.parametrize("sizes", [SIZES | {"ff_mult": 4}, SIZES | {"depth": 1, "heads": 1, "ff_mult": 2}])
def test_every_size_but_the_head_is_read_off_the_weights(sizes):
    state = Resampler(**sizes).state_dict()
    assert Resampler.sizes(state, "test", dim_head=16) == sizes
    load_strict(Resampler(**Resampler.sizes(state, "test", dim_head=16)), state, "test")


def test_other_weights_are_refused_by_the_name_of_what_is_missing():
    state = Resampler(**SIZES).state_dict()
    for key in ("latents", "proj_in.weight", "layers.0.0.to_q.weight"):
        with pytest.raises(IdgenError, match=f"a file: the tensor '{key}' is missing"):
            Resampler.sizes({name: value for name, value in state.items() if name != key}, "a file", 16)
    with pytest.raises(IdgenError, match=r"'latents' has the shape \[5, 24\], expected 3"):
        Resampler.sizes(state | {"latents": state["latents"][0]}, "a file", 16)
    with pytest.raises(IdgenError, match="48 wide is not made of heads 64 wide"):
        Resampler.sizes(state, "a file")


def test_latents_of_the_face_take_the_place_of_the_learned_ones():
    torch.manual_seed(0)
    learned = Resampler(**SIZES)
    given = FaceResampler(**perceiver_sizes(learned.state_dict(), "test", 16))
    given.load_state_dict({key: value for key, value in learned.state_dict().items() if key != "latents"})
    features = torch.randn(2, 6, 20)
    assert torch.equal(given(learned.latents.expand(2, -1, -1), features), learned(features))


def test_order_of_references_does_not_matter_and_gradients_reach_them():
    torch.manual_seed(0)
    resampler = Resampler(**SIZES)
    features = torch.randn(1, 4, 20, requires_grad=True)
    tokens = resampler(features)
    torch.testing.assert_close(resampler(features.flip(1)), tokens, atol=1e-5, rtol=1e-5)
    tokens.square().sum().backward()
    assert (features.grad.abs().sum(-1) > 0).all() and all(p.grad is not None for p in resampler.parameters())
