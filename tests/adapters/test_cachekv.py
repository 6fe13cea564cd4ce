"""Reference caches: what they promise of the UNet they enter, and of the people they hold."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel, VQModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from idgen.adapters.cachekv import CacheKV, ReferenceCache, encode_references, merge
from idgen.adapters.cachekv.build import WIDE, lay_out
from idgen.checkpoint import save_weights
from idgen.errors import IdgenError

LATENTS, SIDE = 4, 8


def make_unet(seed: int = 0, **changes: Any) -> UNet2DModel:
    """Three levels, self-attention at the lower two, as small as they get."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "in_channels": 2 * LATENTS,
        "out_channels": LATENTS,
        "block_out_channels": (32, 32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 16,
    }
    return UNet2DModel(**config | changes).eval()


@pytest.fixture
def unet() -> UNet2DModel:
    return make_unet()


@pytest.fixture
def kv(unet: UNet2DModel) -> CacheKV:
    kv = CacheKV(unet)
    kv.inject()
    return kv


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def people(count: int = 1, references: int = 3, seed: int = 1) -> torch.Tensor:
    return noise(count, references, LATENTS, SIDE, SIDE, seed=seed)


def predict(kv: CacheKV, cache: Any = None, rows: int = 2) -> torch.Tensor:
    sample = noise(rows, 2 * LATENTS, SIDE, SIDE, seed=2)
    with ExitStack() as stack:
        if cache is not None:
            stack.enter_context(kv.attend(cache))
        return kv.unet(sample, torch.tensor(500)).sample


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.allclose(first, second, atol=2e-5)


# What enters the UNet and leaves it


def test_eject_restores_the_unet_bit_for_bit(unet):
    def state() -> Any:
        modules = [(name, id(module), type(module)) for name, module in unet.named_modules()]
        owned = [(name, sorted(vars(module))) for name, module in unet.named_modules()]
        processors = [id(module.processor) for module in unet.modules() if isinstance(module, Attention)]
        return modules, list(unet.state_dict()), owned, processors

    kv = CacheKV(unet)
    before, plain = state(), predict(kv)
    for _ in range(2):
        kv.inject()
        assert state()[:3] == before[:3], "no module, no weight and no attribute is added"
        assert torch.equal(predict(kv), plain), "without references nothing changes"
        assert not torch.equal(predict(kv, kv.build(people())), plain)
        assert torch.equal(predict(kv), plain), "nothing of a call stays behind"
        kv.eject()
        assert state() == before
        assert torch.equal(predict(kv), plain)


def test_entering_and_leaving_in_the_wrong_order_is_refused(unet):
    first, second = CacheKV(unet), CacheKV(unet)
    with pytest.raises(IdgenError, match=r"inject\(\) it first"):
        first.eject()
    with pytest.raises(IdgenError, match=r"inject\(\) it first"):
        first.build(people())
    first.inject()
    with pytest.raises(IdgenError, match=r"eject\(\) it first"):
        first.inject()
    with pytest.raises(IdgenError, match="CacheProcessor"):
        second.inject()
    unet.mid_block.attentions[0].set_processor(AttnProcessor2_0())
    with pytest.raises(IdgenError, match="take those out first"):
        first.eject()


def test_a_unet_without_self_attention_is_refused():
    plain = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3, "add_attention": False}
    with pytest.raises(IdgenError, match="no self-attention"):
        CacheKV(make_unet(**plain))


# What is in a cache


def test_references_in_one_pass_equal_references_one_by_one_in_any_order(kv):
    latents = people(2, 3)
    cache = kv.build(latents)
    assert (cache.rows, cache.references, cache.levels) == (2, 3, (2, 4))
    one_by_one = [kv.build(latents[:, i : i + 1]) for i in range(3)]
    for name, layer in cache.layers.items():
        assert close(layer.key, torch.cat([one.layers[name].key for one in one_by_one], 1))
        assert close(layer.value, torch.cat([one.layers[name].value for one in one_by_one], 1))
    assert close(predict(kv, cache), predict(kv, kv.build(latents[:, [2, 0, 1]])))


def test_building_ends_at_the_last_keys_that_are_needed(kv):
    ran: list[str] = []
    for name, module in kv.unet.named_modules():
        if name.endswith(("to_q", "to_v")) or name == "conv_out":
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    kv.build(people())
    assert (
        "up_blocks.1.attentions.1.to_v" in ran and "up_blocks.1.attentions.1.to_q" not in ran and "conv_out" not in ran
    )
    ran.clear()
    kv.build(people(), levels=[4])
    assert "up_blocks.0.attentions.1.to_v" in ran and not any(name.startswith("up_blocks.1") for name in ran)


def test_levels_are_chosen_when_building_or_later(kv):
    latents = people()
    everything = kv.build(latents)
    outputs = {}
    for level in (2, 4):
        chosen, later = kv.build(latents, levels=[level]), everything.select([level])
        assert chosen.levels == later.levels == (level,) and chosen.nbytes < everything.nbytes
        outputs[level] = predict(kv, later)
        assert torch.equal(predict(kv, chosen), outputs[level])
    assert not close(outputs[2], outputs[4]) and not close(outputs[2], predict(kv, everything))
    for refused in ([1], [], [2, 8]):
        with pytest.raises(IdgenError, match="levels"):
            kv.build(latents, levels=refused)
        with pytest.raises(IdgenError, match="levels"):
            everything.select(refused)


@pytest.mark.parametrize("shape", [(3, LATENTS, SIDE, SIDE), (1, 0, LATENTS, SIDE, SIDE), (1, 1, 9, SIDE, SIDE)])
def test_latents_that_are_no_references_are_refused(kv, shape):
    with pytest.raises(IdgenError, match="latents"):
        kv.build(torch.zeros(shape))


def test_a_cache_shows_nobody(kv):
    cache = kv.build(people(2))
    for text in (repr(cache), repr(merge(cache, cache)), repr(next(iter(cache.layers.values())))):
        assert "tensor" not in text


# The references that guidance compares with


def test_n_null_references_weigh_as_one_does_n_times(kv):
    for count in (1, 2, 5):
        copies = kv.build(torch.zeros(1, count, LATENTS, SIDE, SIDE))
        assert close(predict(kv, kv.null((SIDE, SIDE), count)), predict(kv, copies))
    assert not close(predict(kv, kv.null((SIDE, SIDE), 1)), predict(kv, kv.null((SIDE, SIDE), 5)))
    with pytest.raises(IdgenError, match="at least 1"):
        kv.null((SIDE, SIDE), 0)


def test_null_references_are_computed_once_per_model(kv):
    calls: list[int] = []
    kv.unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    for references, levels in ((1, None), (5, None), (5, [2])):
        kv.null((SIDE, SIDE), references, levels)
    assert len(calls) == 1
    assert kv.null((SIDE, SIDE), 5, [2]).levels == (2,)
    kv.unet.conv_in.weight.mul_(1.5)
    changed = kv.null((SIDE, SIDE), 2)
    assert len(calls) == 2, "other weights see other null references"
    assert close(predict(kv, changed), predict(kv, kv.build(torch.zeros(1, 2, LATENTS, SIDE, SIDE))))


def test_null_references_made_in_inference_mode_serve_training(kv):
    with torch.inference_mode():
        null = kv.null((SIDE, SIDE), 2)
    with torch.enable_grad():
        predict(kv, null).sum().backward()
    assert kv.unet.conv_in.weight.grad is not None


# Batches


def test_a_merged_batch_equals_separate_calls(kv):
    anna, ben, null = kv.build(people(1, 3)), kv.build(people(1, 1, seed=7)), kv.null((SIDE, SIDE), 2)
    sample = noise(3, 2 * LATENTS, SIDE, SIDE, seed=2)
    with kv.attend(merge(null, anna, ben)):
        together = kv.unet(sample, 500).sample
    for row, cache in enumerate((null, anna, ben)):
        with kv.attend(cache):
            assert close(kv.unet(sample[row : row + 1], 500).sample, together[row : row + 1])


def test_one_persons_cache_serves_any_number_of_photos(kv):
    cache = kv.build(people())
    several = predict(kv, cache, rows=4)
    assert torch.equal(several, predict(kv, cache.expand(4), rows=4))
    assert cache.expand(4).layers["mid_block.attentions.0"].key.stride(0) == 0, "expanding takes no memory"


def test_a_cache_that_does_not_fit_is_refused(kv):
    cache = kv.build(people(2))
    with pytest.raises(IdgenError, match="called with 3 rows"):
        predict(kv, cache, rows=3)
    with pytest.raises(IdgenError, match="only a cache of one row"):
        cache.expand(4)
    with pytest.raises(IdgenError, match="same levels"):
        merge(cache, cache.select([2]))
    wider = CacheKV(make_unet(block_out_channels=(32, 64, 64)))
    wider.inject()
    with pytest.raises(IdgenError, match="another UNet"):
        predict(wider, cache)


# Threads, nesting, training


def test_threads_on_one_unet_never_mix_people(kv):
    caches = [kv.build(people(seed=seed)) for seed in (1, 5)]
    wanted = [predict(kv, cache) for cache in caches]
    assert not close(*wanted)
    barrier, results = threading.Barrier(3), [None] * 3

    def wait() -> None:
        barrier.wait(timeout=30)

    # All threads are half-way through the UNet at the same time, in every round.
    hook = kv.unet.mid_block.register_forward_pre_hook(lambda *_: wait())

    def work(index: int) -> None:
        with torch.no_grad():
            cache = [*caches, None][index]
            results[index] = [predict(kv, cache) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.remove()
    for found, expected in zip(results, [*wanted, predict(kv)], strict=True):
        assert all(torch.equal(one, expected) for one in found)


def test_calls_nest(kv):
    other = CacheKV(make_unet(seed=3))
    other.inject()
    mine, theirs = kv.build(people()), other.build(people(seed=4))
    wanted, others = predict(kv, mine), predict(other, theirs)
    with kv.attend(mine), other.attend(theirs):
        assert torch.equal(predict(kv), wanted) and torch.equal(predict(other), others)
        inner = kv.build(people(seed=9))
        assert torch.equal(predict(kv), wanted), "building within a call leaves it alone"
        assert not torch.equal(predict(kv, inner), wanted)
        assert torch.equal(predict(kv), wanted)


def test_an_error_in_the_unet_ends_the_call(kv):
    plain = predict(kv)
    with pytest.raises(RuntimeError, match="channels"), kv.attend(kv.build(people())):
        kv.unet(torch.zeros(1, 3, SIDE, SIDE), 500)
    assert torch.equal(predict(kv), plain)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_pass_through_the_cache(kv, checkpointing):
    latents = people(2, 2).requires_grad_()
    if checkpointing:
        kv.unet.enable_gradient_checkpointing()
    kv.unet.train()
    with torch.enable_grad():
        predict(kv, kv.build(latents)).pow(2).sum().backward()
    reached = latents.grad
    latents.grad = None
    with torch.enable_grad():
        cache = kv.build(latents)
        predict(kv, cache.detach()).pow(2).sum().backward()
    assert reached.abs().amax((2, 3, 4)).min() > 0, "every reference of every person"
    assert latents.grad is None


# Files


def test_a_stored_cache_gives_the_same_bits(kv, tmp_path):
    cache = kv.build(people(), levels=[2])
    cache.save(tmp_path / "anna.safetensors")
    loaded = kv.load(tmp_path / "anna.safetensors")
    assert (loaded.references, loaded.levels, loaded.copies) == (3, (2,), 1)
    assert torch.equal(predict(kv, loaded), predict(kv, cache))


def test_a_stored_cache_knows_its_model(kv, tmp_path):
    kv.build(people()).save(tmp_path / "anna.safetensors")
    half = CacheKV(make_unet().half())
    half.inject()
    assert half.load(tmp_path / "anna.safetensors").references == 3, "the same weights in half precision"
    other = CacheKV(make_unet(seed=3))
    other.inject()
    with pytest.raises(IdgenError, match="other weights"):
        other.load(tmp_path / "anna.safetensors")


def test_files_that_hold_no_cache_are_refused(kv, tmp_path):
    path = tmp_path / "other.safetensors"
    save_weights(path, {"key": torch.zeros(1)})
    with pytest.raises(IdgenError, match="no reference cache"):
        kv.load(path)
    header = {"format": "idgen reference cache", "references": 1, "copies": 1, "levels": {"mid_block.attentions.0": 4}}
    for tensors in (
        {"signature": torch.zeros(1)},
        {
            "signature": torch.zeros(1),
            "mid_block.attentions.0.key": torch.zeros(2),
            "mid_block.attentions.0.value": torch.zeros(1),
        },
    ):
        save_weights(path, tensors, header)
        with pytest.raises(IdgenError, match="damaged"):
            kv.load(path)
    save_weights(path, {"signature": torch.zeros(1)}, header | {"levels": {}})
    with pytest.raises(IdgenError, match="damaged"):
        kv.load(path)
    with pytest.raises(IdgenError, match="no such"):
        ReferenceCache.read(tmp_path / "missing.safetensors")


# Memory


def make_vq() -> VQModel:
    torch.manual_seed(0)
    return VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=LATENTS,
        num_vq_embeddings=16,
    ).eval()


class Largest(TorchDispatchMode):
    """Remembers how many values the largest tensor of a computation held."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        made = result if isinstance(result, (tuple, list)) else (result,)
        self.values = max([self.values, *(one.numel() for one in made if isinstance(one, torch.Tensor))])
        return result


def test_no_attention_holds_a_matrix_of_scores(kv):
    vq, images = make_vq(), noise(1, 8, 3, 64, 64).clamp(-1, 1)
    tokens = 8 * 32 * 32
    with Largest() as largest:
        encode_references(vq, images)
    assert largest.values < tokens**2 / 8, "the panorama's attention"
    latents = noise(1, 8, LATENTS, 32, 32)
    scores = 2 * 16**2 * 9 * 16**2  # heads, own tokens, own and eight references' tokens
    with Largest() as largest:
        cache = kv.build(latents)
        with kv.attend(merge(kv.null((32, 32), 8), cache)):
            kv.unet(noise(2, 2 * LATENTS, 32, 32), 500)
    assert largest.values < scores, "the references' attention"
    with sdpa_kernel(SDPBackend.MATH), kv.attend(cache), Largest() as largest:
        kv.unet(noise(1, 2 * LATENTS, 32, 32), 500)
    assert largest.values >= scores, "this test sees such a matrix where there is one"


@pytest.mark.parametrize("width", [32, WIDE])
def test_a_wide_unet_is_laid_out_channels_last_and_computes_the_same(width: int) -> None:
    unet, vq = make_unet(block_out_channels=(width, width, width)), VQModel(norm_num_groups=8, block_out_channels=(8,))
    noisy = torch.randn(1, 2 * LATENTS, SIDE, SIDE)
    with torch.no_grad():
        before = unet(noisy, 3).sample
        lay_out(unet, vq)
        torch.testing.assert_close(unet(noisy, 3).sample, before, atol=1e-4, rtol=1e-4)
    weight = unet.down_blocks[0].resnets[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) is (width >= WIDE)
    assert vq.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
