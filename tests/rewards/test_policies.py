"""What rewards train: the part that learns, the base beside it, and gradients to the former alone."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DDIMScheduler

from idgen.adapters.ip_faceid import FaceIDConfig, IPFaceIDAdapter
from idgen.checkpoint import load_metadata
from idgen.errors import IdgenError
from idgen.finetune import FinetuneConfig
from idgen.rewards.algorithms import GRADIENT, AlgorithmConfig
from idgen.rewards.chain import Chain
from idgen.rewards.policies import AdapterPolicy, Condition, FinetunePolicy, denoiser, guided
from tests.adapters.bases import tiny_unet as tiny_base
from tests.tiny import tiny_unet

WIDTH = 32


def lora() -> FinetunePolicy:
    torch.manual_seed(0)
    return FinetunePolicy(tiny_unet(WIDTH), FinetuneConfig(rank=2))


def adapter() -> AdapterPolicy:
    torch.manual_seed(0)
    unet = tiny_unet(WIDTH)
    config = FaceIDConfig(recogniser="mini", projection={"cross_attention_dim": WIDTH, "embedding_dim": 6}, rank=2)
    return AdapterPolicy(unet, IPFaceIDAdapter.for_unet(unet, config).eval())


def condition(rows: int = 3) -> Condition:
    torch.manual_seed(1)
    return Condition(torch.randn(rows, 4, WIDTH), torch.nn.functional.normalize(torch.randn(rows, 6)))


NOISE = torch.randn(3, 8, 4, 4)
TIMES = torch.tensor([10, 500, 900])
KINDS = pytest.mark.parametrize("make", [lora, adapter])


def shaken(policy):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return policy


@KINDS
def test_the_base_stays_what_it_was_while_the_policy_learns(make):
    policy = make()
    before = policy(NOISE, TIMES, condition(), base=True)
    assert torch.allclose(policy(NOISE, TIMES, condition()), before, atol=1e-6)
    shaken(policy)
    assert torch.equal(policy(NOISE, TIMES, condition(), base=True), before)
    assert (policy(NOISE, TIMES, condition()) - before).abs().max() > 1e-3


@KINDS
@pytest.mark.parametrize("name", sorted(GRADIENT))
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_every_algorithm_reaches_what_learns_and_nothing_else(make, name, kind):
    policy = make()
    chain = Chain(DDIMScheduler(prediction_type=kind), 3)
    config = AlgorithmConfig(name=name, copies=1)
    config.latents(denoiser(policy, condition()), chain, NOISE).pow(2).mean().backward()
    reached = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    assert reached and any(gradient.abs().sum() > 0 for gradient in reached)
    own = {id(parameter) for parameter in policy.parameters()}
    assert all(p.grad is None for p in policy.unet.parameters() if id(p) not in own)


@KINDS
def test_what_is_saved_says_who_rewarded_it_and_loads_back(make, tmp_path):
    policy = shaken(make())
    policy.save(tmp_path / "weights.safetensors", ["mini", "arc"])
    assert json.loads(load_metadata(tmp_path / "weights.safetensors")["reward_recognisers"]) == ["mini", "arc"]
    other = make()
    other.load(tmp_path / "weights.safetensors")
    assert torch.equal(other(NOISE, TIMES, condition()), policy(NOISE, TIMES, condition()))
    if make is lora:
        policy.unet.delete_adapters("reward")
        policy.unet.load_lora_adapter(tmp_path, weight_name="weights.safetensors", prefix="unet")
        assert torch.allclose(
            policy(NOISE, TIMES, condition(), base=False), other(NOISE, TIMES, condition()), atol=1e-5
        )
        with pytest.raises(IdgenError, match="does not fit this adapter"):
            FinetunePolicy(tiny_unet(WIDTH), FinetuneConfig(rank=2, targets="transformer")).load(
                tmp_path / "weights.safetensors"
            )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rank": 4}, r"rank 2 instead of 4; .*set finetune as it was trained"),
        ({"alpha": 8}, r"alpha 2\.0 instead of 8\.0; set finetune as it was trained"),
        ({"kind": "dora"}, r"kind lora instead of dora"),
    ],
)
def test_an_adapter_of_other_settings_is_one_line(tmp_path, changes, says):
    lora().save(tmp_path / "weights.safetensors", [])
    other = FinetunePolicy(tiny_unet(WIDTH), FinetuneConfig(**({"rank": 2} | changes)))
    before = [parameter.clone() for parameter in other.parameters()]
    with pytest.raises(IdgenError, match=says) as caught:
        other.load(tmp_path / "weights.safetensors")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_an_adapter_of_another_model_is_one_line(tmp_path):
    lora().save(tmp_path / "weights.safetensors", [])
    with pytest.raises(IdgenError, match=r"does not fit this adapter: unet\..*; same model and settings\?"):
        FinetunePolicy(tiny_unet(2 * WIDTH), FinetuneConfig(rank=2)).load(tmp_path / "weights.safetensors")


def test_rows_of_zeros_are_nobody_in_a_batch_with_others():
    policy, some = adapter(), condition()
    vectors = some.vectors.clone()
    vectors[1] = 0
    mixed = policy(NOISE, TIMES, Condition(some.context, vectors))
    nobody = policy(NOISE, TIMES, Condition(some.context, torch.zeros_like(vectors)))
    everybody = policy(NOISE, TIMES, some)
    assert torch.allclose(mixed[1], nobody[1], atol=1e-5) and torch.allclose(mixed[0], everybody[0], atol=1e-5)
    assert not torch.allclose(everybody[1], nobody[1], atol=1e-4)


@KINDS
def test_guidance_in_one_call_is_that_of_two(make):
    policy, some = shaken(make()), condition()
    nobody = some.map(torch.zeros_like)
    time = torch.tensor(400)
    with torch.no_grad():
        wanted, without = (denoiser(policy, c)(NOISE, time) for c in (some, nobody))
        made = guided(policy, some, nobody, 2.5)(NOISE, time)
        assert torch.allclose(made, without + 2.5 * (wanted - without), atol=1e-4)
        assert torch.equal(guided(policy, some, nobody, 1.0)(NOISE, time), wanted)


def test_conditions_are_joined_and_chosen_row_by_row():
    some, other = condition(), condition(3).map(torch.zeros_like)
    assert len(some.join(other)) == 6
    mixed = some.where(torch.tensor([True, False, True]), other)
    assert mixed.context[0].abs().sum() == 0 and torch.equal(mixed.vectors[1], some.vectors[1])


def test_sdxl_is_asked_with_its_pooled_prompt_and_sizes():
    unet = tiny_base("sdxl")
    pooled = unet.add_embedding.linear_1.in_features - 6 * unet.config.addition_time_embed_dim
    policy = FinetunePolicy(unet, FinetuneConfig(rank=2))
    some = Condition(
        torch.randn(2, 4, unet.config.cross_attention_dim), None, torch.randn(2, pooled), torch.ones(2, 6) * 64
    )
    noise = torch.randn(2, unet.config.in_channels, 8, 8)
    latents = AlgorithmConfig(name="draft").latents(denoiser(policy, some), Chain(DDIMScheduler(), 2), noise)
    latents.mean().backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in policy.parameters() if parameter.grad is not None)
    assert not torch.equal(
        policy(noise, torch.tensor([5, 5]), some),
        policy(noise, torch.tensor([5, 5]), Condition(some.context, None, -some.pooled, some.sizes)),
    )


def test_a_reward_trains_no_text_encoder():
    with pytest.raises(IdgenError, match="trains the UNet alone"):
        FinetunePolicy(tiny_unet(WIDTH), FinetuneConfig(modules=("unet", "text_encoder")))
