"""Every kind on every base: into the model, beside a LoRA that was there, at any strength, and out again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from idgen.errors import IdgenError
from idgen.finetune import (
    FinetuneConfig,
    activate,
    active_adapters,
    adapter_parameters,
    add_adapter,
    remove_adapter,
    set_strength,
)
from tests.adapters.bases import call_arguments
from tests.finetune.models import (
    BASES,
    KINDS,
    config,
    output,
    same_state,
    state,
    text_to_image,
    train,
    trained,
    unet,
    with_user_lora,
)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_nothing_and_a_trained_one_does(kind: str, base: str) -> None:
    model = unet(base)
    before = output(model)
    parameters = add_adapter(model, config(kind))
    assert torch.allclose(output(model), before, atol=2e-6 if kind == "hra" else 0, rtol=0)
    train(parameters)
    assert (output(model) - before).abs().max() > 1e-3


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_removing_the_last_adapter_restores_the_base_bit_for_bit(kind: str, base: str) -> None:
    model = unet(base)
    before, output_before = state(model), output(model)
    trained(model, config(kind))
    remove_adapter(model, "person")
    assert same_state(model, before) and torch.equal(output(model), output_before)
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize("kind", KINDS)
def test_a_users_lora_stays_active_and_comes_back_alone_bit_for_bit(kind: str) -> None:
    model = with_user_lora(unet("sd15"))
    with_lora, before = output(model), state(model)
    parameters = add_adapter(model, config(kind), "person")
    assert active_adapters(model) == ["user", "person"]
    assert torch.allclose(output(model), with_lora, atol=2e-6)
    train(parameters)
    remove_adapter(model, "person")
    assert torch.equal(output(model), with_lora) and active_adapters(model) == ["user"]
    assert same_state(model, before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_in_which_a_lora_and_an_adapter_come_does_not_matter(kind: str) -> None:
    first, second = with_user_lora(unet("sd15")), unet("sd15")
    trained(first, config(kind))
    trained(second, config(kind))
    with_user_lora(second)
    activate(second, ["person", "user"])
    both = output(second)
    assert torch.allclose(output(first), both, atol=1e-5)
    activate(second, ["person"])
    assert (output(second) - both).abs().max() > 1e-3


def test_adapters_of_all_kinds_share_a_model() -> None:
    model = unet("sd15")
    before = state(model)
    alone = {}
    for seed, kind in enumerate(KINDS):
        trained(model, config(kind), kind, seed)
        activate(model, [kind])
        alone[kind] = output(model)
    activate(model, KINDS)
    everything = output(model)
    for kind in KINDS:
        activate(model, [kind])
        assert torch.allclose(output(model), alone[kind], atol=1e-6), kind
    activate(model, [])
    assert torch.equal(output(model), output(unet("sd15")))
    activate(model, KINDS)
    assert torch.equal(output(model), everything)
    for kind in KINDS:
        remove_adapter(model, kind)
    assert same_state(model, before)


def test_only_the_new_adapter_is_trained() -> None:
    model = with_user_lora(unet("sd15").requires_grad_(True))
    model.requires_grad_(False)
    parameters = add_adapter(model, config("oft"), "person")
    own = {id(parameter) for parameter in parameters.values()}
    assert {id(parameter) for parameter in model.parameters() if parameter.requires_grad} == own
    activate(model, ["user"])
    assert all(parameter.requires_grad for parameter in parameters.values())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter_and_lower_the_loss(kind: str) -> None:
    model = unet("sd15")
    parameters = add_adapter(model, config(kind, targets="transformer"))
    optimizer = torch.optim.AdamW(parameters.values(), 1e-2)
    arguments = call_arguments(model, 2)
    losses = []
    for _ in range(8):
        loss = (model(**arguments).sample - 1).pow(2).mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in parameters.values())
    assert losses[-1] < losses[0]


def test_text_encoders_take_part() -> None:
    pipe = text_to_image("sdxl")
    before = output(pipe)
    parameters = trained(pipe, config("lora", modules=("text_encoder", "text_encoder_2")))
    assert {key.split(".")[0] for key in parameters} == {"text_encoder", "text_encoder_2"}
    assert not torch.equal(output(pipe), before)
    remove_adapter(pipe, "person")
    assert torch.equal(output(pipe), before)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "oft", "targets": "all"}, r"convolution of 3 x 3, which peft's OFT computes wrongly: use boft"),
        ({"kind": "oft", "block_size": 5}, r"8 features, which blocks of 5 do not divide: set block_size to 4 or 8"),
        ({"kind": "boft", "block_size": 64}, r"blocks of 64 do not divide"),
        ({"kind": "boft", "butterfly": 2, "block_size": 4}, r"set butterfly to 1"),
        ({"targets": ("to_qq",)}, r"named 'to_qq': did you mean 'to_q'"),
        ({"targets": ("attn1",)}, r"no linear layer or convolution is named 'attn1'"),
        ({"modules": ("unet", "text_encoder")}, r"no component 'text_encoder' to finetune: there is unet"),
        ({"kind": "hra", "rank": 3}, r"rank is 3: hra needs an even one"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(settings: dict[str, Any], says: str) -> None:
    model = unet("sd15")
    before = state(model)
    with pytest.raises(IdgenError, match=says) as caught:
        add_adapter(model, FinetuneConfig(**settings))
    assert "\n" not in str(caught.value)
    assert same_state(model, before) and not hasattr(model, "peft_config")


def test_names_are_told_apart() -> None:
    model = unet("sd15")
    add_adapter(model, config("lora"), "anna")
    with pytest.raises(IdgenError, match="has an adapter 'anna' already"):
        add_adapter(model, config("oft"), "anna")
    with pytest.raises(IdgenError, match="no adapter 'bela' here: there is anna"):
        remove_adapter(model, "bela")
    with pytest.raises(IdgenError, match="name without dots"):
        add_adapter(model, config("lora"), "a.b")
    with pytest.raises(IdgenError, match=r"strength is nan"):
        set_strength(model, "anna", float("nan"))


def test_a_failure_in_the_second_component_leaves_the_first_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = text_to_image("sd15")
    before = state(pipe.unet)
    import idgen.finetune.adapters as adapters

    real, calls = adapters.inject_adapter_in_model, []

    def failing(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no memory")
        return real(*arguments, **named)

    monkeypatch.setattr(adapters, "inject_adapter_in_model", failing)
    with pytest.raises(RuntimeError, match="no memory"):
        add_adapter(pipe, config("lora", modules=("unet", "text_encoder")))
    assert same_state(pipe.unet, before)
    assert adapter_names(pipe.text_encoder) == []


def adapter_names(model: Any) -> list[str]:
    return list(getattr(model, "peft_config", {}))


def test_parameters_are_named_by_component_and_layer() -> None:
    model = unet("sd15")
    add_adapter(model, config("lora", targets=("to_q",)))
    keys = list(adapter_parameters(model, "default"))
    assert keys[0] == "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
