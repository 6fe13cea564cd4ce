"""The contract of idgen/adapters/base.py, kept by every registered adapter on every base that it has."""

from __future__ import annotations

import copy
import math
import threading
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

from idgen.adapters.base import Adapter, adapters_in
from idgen.adapters.registry import method as registered
from idgen.adapters.registry import methods
from idgen.adapters.schedule import StepScales
from idgen.errors import IdgenError
from tests.adapters.bases import call_arguments, predict, rows_of, tiny_unet
from tests.adapters.cases import CASES, Case

COMBINATIONS = [pytest.param(case, base, id=f"{case.method}-{base}") for case in CASES for base in case.bases]
FIRST = [case for index, case in enumerate(CASES) if case.method not in {one.method for one in CASES[:index]}]
FIRST_BASE = [pytest.param(case, case.bases[0], id=case.method) for case in FIRST]


def setup(case: Case, base: str) -> tuple[UNet2DConditionModel, Adapter, dict[str, Any]]:
    unet = tiny_unet(base)
    return unet, case.build(unet), call_arguments(unet, 2)


def conditioned(case: Case, adapter: Adapter, people: int = 1, **options: Any) -> Any:
    persons = [case.person(seed) for seed in range(people)]
    with torch.no_grad():
        return adapter.condition(persons, **case.inputs(people), **options)


def tree(unet: torch.nn.Module) -> list[tuple[str, str]]:
    return [(name, type(module).__name__) for name, module in unet.named_modules()]


def attributes(unet: torch.nn.Module) -> list[set[str]]:
    return [set(module.__dict__) for module in unet.modules()]


def same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_every_registered_adapter_has_a_case():
    assert {name for name in methods() if registered(name).adapter is not None} == {case.method for case in CASES}


@pytest.mark.parametrize(("case", "base"), COMBINATIONS)
def test_constructing_changes_nothing(case, base):
    unet = tiny_unet(base)
    before, state, own = tree(unet), copy.deepcopy(unet.state_dict()), attributes(unet)
    case.build(unet)
    assert tree(unet) == before and same_state(unet.state_dict(), state) and attributes(unet) == own


@pytest.mark.parametrize(("case", "base"), COMBINATIONS)
def test_eject_restores_the_unet_bit_for_bit_twice(case, base):
    unet, adapter, arguments = setup(case, base)
    before, state, own = tree(unet), copy.deepcopy(unet.state_dict()), attributes(unet)
    processors = dict(unet.attn_processors)
    output = predict(unet, arguments)
    for _ in range(2):
        adapter.inject(unet)
        assert tree(unet) == before and same_state(unet.state_dict(), state)
        assert torch.equal(predict(unet, arguments), output), "without identities the UNet computes what it did"
        adapted = predict(unet, arguments, conditioned(case, adapter))
        assert not torch.allclose(adapted, output, atol=1e-4)
        adapter.eject()
        assert tree(unet) == before and same_state(unet.state_dict(), state) and attributes(unet) == own
        assert all(unet.attn_processors[name] is processors[name] for name in processors)
        assert torch.equal(predict(unet, arguments), output)


@pytest.mark.parametrize(("case", "base"), FIRST_BASE)
def test_injecting_twice_or_ejecting_before_injecting_raises(case, base):
    unet, adapter, _ = setup(case, base)
    with pytest.raises(IdgenError, match=r"inject\(\) it first"):
        adapter.eject()
    adapter.inject(unet)
    with pytest.raises(IdgenError, match="already"):
        adapter.inject(unet)
    other = case.build(unet, seed=1)
    with pytest.raises(IdgenError, match="named"):
        other.inject(unet)
    other.inject(unet, "second")
    assert list(adapters_in(unet)) == [case.method, "second"]


@pytest.mark.parametrize(("case", "base"), COMBINATIONS)
def test_scale_zero_is_the_base_bit_for_bit_and_scale_acts(case, base):
    unet, adapter, arguments = setup(case, base)
    output = predict(unet, arguments)
    adapter.inject(unet)
    assert torch.equal(predict(unet, arguments, conditioned(case, adapter, scale=0.0)), output)
    changes = [
        (predict(unet, arguments, conditioned(case, adapter, scale=s)) - output).norm() for s in (0.05, 0.5, 1.0)
    ]
    assert min(changes) > 0 and not math.isclose(changes[1], changes[2], rel_tol=1e-4)


@pytest.mark.parametrize(("case", "base"), FIRST_BASE)
def test_a_scale_per_layer_acts_on_that_layer(case, base):
    unet, adapter, arguments = setup(case, base)
    output = predict(unet, arguments)
    adapter.inject(unet)
    whole = predict(unet, arguments, conditioned(case, adapter))
    down = predict(unet, arguments, conditioned(case, adapter, scale={"down_blocks": 1.0}))
    assert not torch.allclose(down, output, atol=1e-5) and not torch.allclose(down, whole, atol=1e-5)
    names = list(conditioned(case, adapter).entries[0].scales)
    as_list = [float(name.startswith("down_blocks")) for name in names]
    assert torch.equal(predict(unet, arguments, conditioned(case, adapter, scale=as_list)), down)


@pytest.mark.parametrize(("case", "base"), FIRST_BASE)
def test_a_step_window_acts_inside_and_rests_outside(case, base):
    unet, adapter, arguments = setup(case, base)
    output = predict(unet, arguments)
    adapter.inject(unet)
    always = predict(unet, arguments, conditioned(case, adapter))
    timesteps = torch.tensor([900.0, 700.0, 500.0, 300.0])
    late = StepScales.window(timesteps, 0.5, 1.0)
    early = StepScales.window(timesteps, 0.0, 0.5)
    assert torch.equal(predict(unet, arguments, conditioned(case, adapter, schedule=late)), always)
    assert torch.equal(predict(unet, arguments, conditioned(case, adapter, schedule=early)), output)


@pytest.mark.parametrize(("case", "base"), COMBINATIONS)
def test_a_mask_acts_where_it_is_white(case, base):
    unet, adapter, arguments = setup(case, base)
    output = predict(unet, arguments)
    adapter.inject(unet)
    whole = predict(unet, arguments, conditioned(case, adapter))
    white = predict(unet, arguments, conditioned(case, adapter, mask=torch.ones(64, 64)))
    assert torch.allclose(white, whole, atol=1e-5)
    black = predict(unet, arguments, conditioned(case, adapter, mask=torch.zeros(64, 64)))
    assert torch.allclose(black, output, atol=1e-5)
    half = torch.zeros(64, 64)
    half[:, :32] = 1
    halved = predict(unet, arguments, conditioned(case, adapter, mask=half))
    assert not torch.allclose(halved, whole, atol=1e-5) and not torch.allclose(halved, output, atol=1e-5)


@pytest.mark.parametrize(("case", "base"), COMBINATIONS)
def test_two_adapters_act_together_in_any_order_where_they_add(case, base):
    unet, adapter, arguments = setup(case, base)
    other = case.build(unet, seed=1).inject(unet, "other")
    adapter.inject(unet)
    one, two = conditioned(case, adapter), conditioned(case, other)
    both = predict(unet, arguments, one + two)
    for single in (one, two):
        assert not torch.allclose(both, predict(unet, arguments, single), atol=1e-5)
    # What each adds to the same attention sums up; a gate of fact acts on the picture as the gate before it left it.
    assert torch.allclose(both, predict(unet, arguments, two + one), atol=1e-5) == (case.method != "fact")
    with_nothing = one + conditioned(case, other, scale=0.0)
    assert torch.equal(predict(unet, arguments, with_nothing), predict(unet, arguments, one))
    other.eject()
    assert torch.equal(
        predict(unet, arguments, one), predict(unet, arguments, with_nothing.__class__(one.entries, 2, True))
    )


@pytest.mark.parametrize(("case", "base"), COMBINATIONS)
def test_a_batch_of_two_people_is_each_alone(case, base):
    unet, adapter, _ = setup(case, base)
    adapter.inject(unet)
    arguments = call_arguments(unet, 4)
    together = predict(unet, arguments, conditioned(case, adapter, people=2))
    for index in range(2):
        rows = [index, 2 + index]
        with torch.no_grad():
            inputs = {name: _row(value, index) for name, value in case.inputs(2).items()}
            alone = adapter.condition(case.person(index), **inputs)
        part = {name: value for name, value in rows_of(arguments, rows).items()}
        assert torch.allclose(predict(unet, part, alone), together[rows], atol=1e-5)


def _row(value: Any, index: int) -> Any:
    return value[index : index + 1] if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize(("case", "base"), COMBINATIONS)
def test_guidance_in_one_batch_equals_two_passes_and_none(case, base):
    unet, adapter, _ = setup(case, base)
    adapter.inject(unet)
    arguments = call_arguments(unet, 4)
    conditioning = conditioned(case, adapter, people=1, images=2)
    together = predict(unet, arguments, conditioning)
    first, second = rows_of(arguments, slice(0, 2)), rows_of(arguments, slice(2, 4))
    assert torch.allclose(predict(unet, first, conditioning.negative()), together[:2], atol=1e-5)
    assert torch.allclose(predict(unet, second, conditioning.positive()), together[2:], atol=1e-5)
    off = conditioned(case, adapter, people=1, images=2, guidance=False)
    assert torch.allclose(predict(unet, second, off), together[2:], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("case", "base"), FIRST_BASE)
def test_half_precision_is_finite(case, base, dtype):
    unet, adapter, _ = setup(case, base)
    unet.to(dtype)
    adapter.inject(unet)
    arguments = call_arguments(unet, 2)
    for held in (torch.float32, dtype):  # an adapter in another dtype than the UNet follows it
        adapter.to(held)
        person = conditioned(case, adapter, scale=0.1)
        output = predict(unet, arguments, person)
        assert output.dtype == dtype and output.isfinite().all()


def training_step(
    case: Case, unet: UNet2DConditionModel, adapter: Adapter, arguments: dict[str, Any]
) -> dict[str, Any]:
    adapter.zero_grad()
    adapter.requires_grad_(True)
    unet.requires_grad_(False)
    persons = [case.person(0)]
    conditioning = adapter.condition(persons, **case.inputs(1))
    unet(**arguments, cross_attention_kwargs=conditioning.kwargs).sample.pow(2).mean().backward()
    return {name: parameter.grad for name, parameter in adapter.named_parameters()}


@pytest.mark.parametrize(("case", "base"), COMBINATIONS)
def test_gradients_reach_the_adapter_and_nothing_else(case, base):
    unet, adapter, arguments = setup(case, base)
    adapter.inject(unet)
    if not case.trained:
        assert not adapter.state_dict() and not conditioned_with_gradients(case, adapter)
        return
    gradients = training_step(case, unet, adapter, arguments)
    reached = {name for name, gradient in gradients.items() if gradient is not None and gradient.abs().max() > 0}
    assert set(gradients) - reached == set(case.elsewhere)
    assert all(parameter.grad is None for parameter in unet.parameters())


def conditioned_with_gradients(case: Case, adapter: Adapter) -> bool:
    """Whether a part of a conditioning would train something."""
    entry = adapter.condition([case.person(0)], **case.inputs(1)).entries[0]
    return any(part.key.requires_grad for parts in entry.parts.values() for part in parts)


@pytest.mark.parametrize(
    ("case", "base"), [pytest.param(case, case.bases[0], id=case.method) for case in FIRST if case.trained]
)
def test_gradient_checkpointing_gives_the_same_gradients(case, base):
    unet, adapter, arguments = setup(case, base)
    adapter.inject(unet)
    plain = training_step(case, unet, adapter, arguments)
    plain = {name: gradient.clone() for name, gradient in plain.items() if gradient is not None}
    unet.train()
    unet.enable_gradient_checkpointing()
    recomputed = training_step(case, unet, adapter, arguments)
    for name, gradient in plain.items():
        assert torch.allclose(recomputed[name], gradient, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize(("case", "base"), COMBINATIONS)
def test_save_and_load_are_bit_exact(case, base, tmp_path):
    unet, adapter, arguments = setup(case, base)
    path = tmp_path / "adapter.safetensors"
    adapter.save(path)
    loaded = type(adapter).from_pretrained(path, unet)
    assert loaded.config == adapter.config and same_state(loaded.state_dict(), adapter.state_dict())
    adapter.inject(unet)
    expected = predict(unet, arguments, conditioned(case, adapter))
    adapter.eject()
    loaded.inject(unet)
    assert torch.equal(predict(unet, arguments, conditioned(case, loaded)), expected)


@pytest.mark.parametrize(("case", "base"), FIRST_BASE)
def test_a_moved_unet_still_works(case, base):
    from accelerate import cpu_offload, cpu_offload_with_hook
    from accelerate.hooks import remove_hook_from_module

    unet, adapter, arguments = setup(case, base)
    adapter.inject(unet)
    person = conditioned(case, adapter)
    expected = predict(unet, arguments, person)
    unet.to(torch.float64).to(torch.float32)
    assert torch.equal(predict(unet, arguments, person), expected)
    for offload in (lambda: cpu_offload_with_hook(unet, "cpu"), lambda: cpu_offload(unet, "cpu")):
        offload()
        assert torch.allclose(predict(unet, arguments, person), expected, atol=1e-6)
        remove_hook_from_module(unet, recurse=True)


@pytest.mark.parametrize(("case", "base"), FIRST_BASE)
def test_threads_on_one_unet_never_mix_people(case, base):
    unet, adapter, arguments = setup(case, base)
    adapter.inject(unet)
    with torch.no_grad():
        people = [adapter.condition(case.person(seed), **case.inputs(1)) for seed in range(2)]
    expected = [predict(unet, arguments, person) for person in people]
    assert not torch.allclose(*expected, atol=1e-4)
    wrong: list[int] = []
    finished: list[int] = []

    def work(index: int) -> None:
        for _ in range(100):
            if not torch.allclose(predict(unet, arguments, people[index]), expected[index], atol=1e-5):
                wrong.append(index)
        finished.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and sorted(finished) == [0, 1]


@pytest.mark.parametrize(("case", "base"), FIRST_BASE)
def test_constant_work_happens_once_per_call(case, base, monkeypatch):
    unet, adapter, arguments = setup(case, base)
    adapter.inject(unet)
    counts = {"project": 0, "parts": 0, "masks": 0}
    for name in ("project", "parts"):
        original = getattr(adapter, name)

        def counted(*given: Any, name: str = name, original: Any = original) -> Any:
            counts[name] += 1
            return original(*given)

        monkeypatch.setattr(adapter, name, counted)
    import idgen.adapters.call as call

    interpolate = call.F.interpolate

    def counted_mask(*given: Any, **options: Any) -> Any:
        counts["masks"] += options.get("mode") == "area" or "area" in given
        return interpolate(*given, **options)

    monkeypatch.setattr(call.F, "interpolate", counted_mask)
    person = conditioned(case, adapter, mask=torch.ones(64, 64))
    for _ in range(3):
        predict(unet, arguments, person)
    assert counts["project"] == 1 and counts["parts"] == 1
    resolutions = counts["masks"]
    predict(unet, arguments, person)
    assert 0 < counts["masks"] == resolutions <= len(unet.config["block_out_channels"])


@pytest.mark.parametrize(("case", "base"), FIRST_BASE)
def test_a_users_lora_stays_active(case, base):
    unet, adapter, arguments = setup(case, base)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "style")
    styled = predict(unet, arguments)
    unet.disable_adapters()
    assert not torch.allclose(predict(unet, arguments), styled, atol=1e-5)
    unet.enable_adapters()
    adapter.inject(unet)
    second = case.build(unet, seed=1).inject(unet, "second")
    assert unet.active_adapters() == ["style"] and torch.equal(predict(unet, arguments), styled)
    assert not torch.allclose(predict(unet, arguments, conditioned(case, adapter)), styled, atol=1e-5)
    second.eject()
    adapter.eject()
    assert unet.active_adapters() == ["style"] and torch.equal(predict(unet, arguments), styled)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "base"), FIRST_BASE)
def test_compiled_without_recompiling_between_steps(case, base):
    unet, adapter, arguments = setup(case, base)
    adapter.inject(unet)
    person = conditioned(case, adapter)
    expected = predict(unet, arguments, person)
    torch._dynamo.reset()
    compiled = torch.compile(unet, backend="aot_eager")
    assert torch.allclose(predict(compiled, arguments, person), expected, atol=1e-5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for timestep in (400, 300):
            arguments["timestep"] = torch.tensor(timestep)
            predict(compiled, arguments, person)
