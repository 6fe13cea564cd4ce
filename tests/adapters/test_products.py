"""Attention by matrix products equals the fused kernel's, also where an adapter's tokens share one matrix for all heads."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention

from idgen.adapters.call import Active
from idgen.adapters.injections import joint, parts, products
from idgen.adapters.injections.host import attend
from idgen.adapters.injections.parts import DecoupledPart, JointPart, LowRankPart
from tests.adapters.bases import call_arguments, predict, tiny_unet
from tests.adapters.cases import CASES


def heads_of(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape[:2], tokens, shape[-1], generator=random).to(dtype) for tokens in shape[2:4]]


@pytest.mark.parametrize("chunk", [1 << 22, 5000, 130, 1], ids=lambda chunk: f"chunk{chunk}")
@pytest.mark.parametrize("masked", [False, True])
def test_products_in_chunks_of_any_size_equal_the_fused_kernel(chunk, masked, monkeypatch):
    monkeypatch.setattr(products, "CHUNK", chunk)
    (query, key), (value, _) = heads_of(2, 3, 70, 86, 8), heads_of(2, 3, 86, 1, 8, seed=1)
    bias = None
    if masked:
        bias = torch.randn(2, 1, 1, 86, generator=torch.Generator().manual_seed(2))
        bias[0, ..., 40:] = -torch.inf
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    torch.testing.assert_close(products.attention_by_products(query, key, value, bias), expected, atol=2e-6, rtol=1e-5)


def test_in_bf16_what_all_keys_share_costs_no_precision():
    """The mean of the keys is taken away: a large one would drown the logits' differences in rounding."""
    (query, key), (value, _) = heads_of(1, 2, 128, 200, 40), heads_of(1, 2, 200, 1, 40, seed=1)
    key = key + 20 * torch.randn(1, 2, 1, 40, generator=torch.Generator().manual_seed(3))
    query, key, value = (x.bfloat16() for x in (query, key, value))
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    error = (products.attention_by_products(query, key, value).double() - exact).abs().max()
    kernel = (F.scaled_dot_product_attention(query, key, value).double() - exact).abs().max()
    assert error < max(0.02, 3 * kernel), (error, kernel)
    rough = torch.softmax(torch.matmul(query, key.transpose(2, 3)) * 40**-0.5, -1) @ value
    assert (rough.double() - exact).abs().max() > 3 * error, "without it this test would notice"


def test_products_are_used_where_they_win_and_never_where_gradients_flow(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    taken = []
    monkeypatch.setattr(products, "attention_by_products", lambda *given: taken.append(given) or given[0])
    (query, key), (value, _) = heads_of(1, 2, 70, 80, 8, dtype=torch.bfloat16), heads_of(1, 2, 80, 1, 8)
    value = value.bfloat16()
    products.attention(query, key, value)
    products.attention(query, key, value, torch.zeros(1, 1, 1, 80).bfloat16())
    assert len(taken) == 2
    others = {
        "float32": (query.float(), key.float(), value.float()),
        "few keys": (query, key[:, :, :20], value[:, :, :20]),
        "a mask of queries too": (query, key, value, torch.zeros(1, 1, 70, 80).bfloat16()),
        "gradients": (query.requires_grad_(), key, value),
    }
    for name, given in others.items():
        products.attention(*given)
        assert len(taken) == 2, name
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    with torch.no_grad():
        products.attention(query, key, value)
    assert len(taken) == 2


def layer() -> Attention:
    torch.manual_seed(0)
    return Attention(16, cross_attention_dim=12, heads=2, dim_head=8).eval().requires_grad_(False)


def of(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DECOUPLED = {
    f"{combine}-{zeros}-{'own' if own else 'layer'}": DecoupledPart(
        of(3, 6, 16, seed=1), of(3, 6, 16, seed=2), of(16, 16, seed=3) if own else None, combine, zeros
    )
    for combine, zeros, own in itertools.product(("add", "ortho", "ortho_v2"), (0, 4), (False, True))
}


@pytest.mark.parametrize("scale", [1.0, 0.6, torch.tensor([0.2, 0.0, 1.3]).reshape(-1, 1, 1)], ids=["1", "0.6", "rows"])
@pytest.mark.parametrize("part", DECOUPLED.values(), ids=DECOUPLED)
def test_tokens_in_one_matrix_act_as_in_the_fused_kernel(part, scale):
    hidden, text, mask = of(3, 20, 16, seed=4), of(3, 5, 12, seed=5), of(3, 20, 1, seed=6).sigmoid()
    ready = part.ready(2)
    assert ready.blocks is not None and part.blocks is None
    for where in (None, mask):
        results = [attend(layer(), hidden, text, None, [Active(one, scale, where)]) for one in (part, ready)]
        torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)
    rows = torch.tensor([2, 0])
    results = [one.act(hidden[rows], hidden[rows], hidden[rows], 2, 1.0) for one in (part.take(rows), ready.take(rows))]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_joint_tokens_in_one_matrix_act_as_in_wide_heads(masked, monkeypatch):
    hidden, text = of(2, 20, 16, seed=4), of(2, 5, 12, seed=5)
    bias = torch.tensor([[0.0] * 3, [-torch.inf] * 3])
    made = [JointPart(of(2, 3, 16, seed=n), of(2, 3, 16, seed=n + 1), of(16, 16, seed=n + 2), bias) for n in (10, 20)]
    mask = None
    if masked:
        mask = torch.zeros(2, 1, 5)
        mask[0, :, 3:] = -10000.0
    results = []
    for some in (made, [part.ready(2) for part in made]):
        calls: list[str] = []
        for name in ("_by_products", "_in_wide_heads"):
            original = getattr(joint, name)
            monkeypatch.setattr(joint, name, lambda *a, name=name, f=original, calls=calls: calls.append(name) or f(*a))
        results.append(attend(layer(), hidden, text, mask, [Active(part, 1.0, None) for part in some]))
        assert calls == (["_in_wide_heads"] if some is made else ["_by_products"])
        monkeypatch.undo()
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.5, torch.tensor([0.5, 2.0]).reshape(-1, 1, 1)], ids=["1", "0.5", "rows"])
def test_a_low_rank_change_is_the_same_with_and_without_gradients(scale):
    part = LowRankPart({"q": (of(2, 16, seed=1), of(16, 2, seed=2)), "out": (of(2, 16, seed=3), of(16, 2, seed=4))})
    hidden, text = of(2, 20, 16, seed=5), of(2, 5, 12, seed=6)
    results = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            results.append(attend(layer(), hidden, text, None, [Active(part, scale, None)]))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(results[0], attend(layer(), hidden, text, None, []), atol=1e-3)


@pytest.mark.parametrize("case", [case for case in CASES if "sd15" in case.bases], ids=lambda case: case.method)
def test_in_a_unet_both_ways_agree(case, monkeypatch):
    """On a CPU a call takes the matrices; a GPU, whose kernels are as fast, takes the keys as they are."""
    unet = tiny_unet("sd15")
    adapter = case.build(unet).inject(unet)
    arguments, person = call_arguments(unet, 2), case.person(0)
    results = []
    for few in (parts._few, lambda key, heads: False):
        monkeypatch.setattr(parts, "_few", few)
        with torch.no_grad():
            conditioning = adapter.condition(person, scale=0.7, **case.inputs(1))
        results.append(predict(unet, arguments, conditioning))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-3)


def test_matrices_are_made_once_per_call(monkeypatch):
    unet = tiny_unet("sd15")
    case = next(case for case in CASES if case.method == "wplus")
    adapter = case.build(unet).inject(unet)
    made = []
    for name in ("block_keys", "block_values"):
        original = getattr(parts, name)
        monkeypatch.setattr(parts, name, lambda *a, f=original, **k: made.append(1) or f(*a, **k))
    with torch.no_grad():
        conditioning = adapter.condition(case.person(0))
    once = len(made)
    for _ in range(3):
        predict(unet, call_arguments(unet, 2), conditioning)
    assert once == len(made) == 2 * sum(layer.cross for layer in adapter.layers)
