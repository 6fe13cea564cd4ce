"""Guards end a training that is only pleasing its reward; contrastive guidance is a sum of three answers."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from idgen.errors import IdgenError
from idgen.rewards.guards import GuardConfig, Guards, relative
from idgen.rewards.guidance import ContrastiveGuidance
from tests.tiny import tiny_unet


def guards(**changes) -> Guards:
    return Guards(GuardConfig(patience=2, **changes))


def told(watch: Guards, rows: list[dict[str, float]]) -> list[str | None]:
    return [watch.check(row) for row in rows]


def test_a_reward_that_climbs_while_the_held_out_recogniser_stands_still_ends_it():
    watch = guards()
    rows = [{"reward": 0.1 * n, "held_out": min(0.3, 0.1 * n)} for n in range(7)]
    said = told(watch, rows)
    assert said[:5] == [None] * 5 and "held-out recogniser" in said[5]
    assert watch.best == 3


def test_both_climbing_or_both_still_is_no_reason_to_end():
    assert told(guards(), [{"reward": 0.1 * n, "held_out": 0.05 * n} for n in range(6)]) == [None] * 6
    assert told(guards(), [{"reward": 0.5, "held_out": 0.3}] * 6) == [None] * 6


@pytest.mark.parametrize("name", ["adherence", "diversity", "detection"])
def test_a_loss_beyond_the_margin_ends_it_and_those_weights_are_not_kept(name):
    watch = guards(margin=0.02)
    rows = [{"reward": 0.1 * n, "held_out": 0.1 * n, name: value} for n, value in enumerate((0.9, 0.89, 0.87))]
    said = told(watch, rows)
    assert said[:2] == [None, None] and said[2] == f"{name} fell from 0.900 to 0.870, by more than 2%"
    assert watch.best == 1 and relative(watch.history)["held_out_gain"] == pytest.approx(0.2)


def test_guards_that_do_not_act_only_watch():
    watch = guards(act=False)
    assert told(watch, [{"reward": n, "held_out": 0.1, "diversity": 1.0 - n} for n in range(5)]) == [None] * 5
    assert len(watch.history) == 5 and watch.best == 0


def test_without_a_held_out_recogniser_only_losses_end_it():
    assert told(guards(), [{"reward": 0.1 * n} for n in range(6)]) == [None] * 6


@pytest.fixture
def unet():
    torch.manual_seed(0)
    unet = tiny_unet(16)
    for name in ("style", "better", "worse"):
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), adapter_name=name)
    return unet


INPUTS = (torch.randn(2, 8, 4, 4), 10, torch.randn(2, 3, 16))


@torch.no_grad()
def answer(unet, names):
    if names:
        unet.enable_adapters()
        unet.set_adapter(names)
    else:
        unet.disable_adapters()
    return unet(*INPUTS).sample


@pytest.mark.parametrize("others", [[], ["style"]])
def test_contrastive_guidance_adds_the_difference_of_two_adapters(unet, others):
    base, better, worse = (answer(unet, [*others, *more]) for more in ([], ["better"], ["worse"]))
    assert not torch.allclose(better, worse)
    answer(unet, others)
    with torch.no_grad(), ContrastiveGuidance(unet, "better", "worse", weight=3.0):
        guided = unet(*INPUTS).sample
        assert torch.equal(unet(*INPUTS, return_dict=False)[0], guided)
    assert torch.allclose(guided, base + 3 * (better - worse), atol=1e-5)
    with torch.no_grad():
        assert torch.equal(unet(*INPUTS).sample, base), "left the UNet with other adapters than before"
        with ContrastiveGuidance(unet, "better", "worse", weight=0.0):
            assert torch.equal(unet(*INPUTS).sample, base)
    assert "forward" not in vars(unet)


def test_contrastive_guidance_refuses_what_is_not_there(unet):
    with pytest.raises(IdgenError, match="no adapter 'best', only style, better, worse"):
        ContrastiveGuidance(unet, "best", "worse")
    with pytest.raises(IdgenError, match="two adapters"):
        ContrastiveGuidance(unet, "worse", "worse")
    with ContrastiveGuidance(unet, "better", "worse"), pytest.raises(IdgenError, match="taken over already"):
        ContrastiveGuidance(unet, "better", "worse").inject()
