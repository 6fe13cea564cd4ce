"""The dial: 0 is the base, 1 the trained adapter, and every step between goes further."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from idgen.errors import IdgenError
from idgen.finetune import active_adapters, set_strength, strength
from tests.finetune.models import KINDS, config, output, train, trained, unet, with_user_lora


@pytest.mark.parametrize("base", ["sdxl", "mini"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_dial_goes_from_the_base_to_the_trained_adapter(kind: str, base: str) -> None:
    model = with_user_lora(unet(base))
    before = output(model)
    parameters = trained(model, config(kind))
    values = {key: value.detach().clone() for key, value in parameters.items()}
    full, distances = output(model), []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        set_strength(model, "person", value)
        assert strength(model, "person") == value
        distances.append(float((output(model) - before).norm()))
    assert distances[0] == 0 and distances == sorted(distances)
    assert torch.equal(output(model), full)
    assert all(torch.equal(parameters[key], value) for key, value in values.items())


def test_half_the_strength_of_a_pair_of_reflections_done_twice_is_the_whole() -> None:
    model = nn.ModuleDict({"to_q": nn.Linear(8, 8, bias=False)})
    trained({"unet": model}, config("hra", rank=2))
    whole = model["to_q"].get_delta_weight("person").clone()
    set_strength({"unet": model}, "person", 0.5)
    half = model["to_q"].get_delta_weight("person")
    assert (whole - torch.eye(8)).abs().max() > 1e-2
    assert torch.allclose(half @ half, whole, atol=1e-5)


def test_oft_stays_a_rotation_where_the_neumann_series_does_not() -> None:
    errors = {}
    for cayley in ("exact", "neumann"):
        model = nn.ModuleDict({"to_q": nn.Linear(32, 8)})
        parameters = trained({"unet": model}, config("oft", block_size=32, cayley=cayley))
        train(parameters, 0.1)
        turned = model["to_q"].get_delta_weight("person")
        errors[cayley] = float((turned @ turned.T - torch.eye(32)).norm())
    assert errors["exact"] < 1e-4 < 1 < errors["neumann"]


def test_training_at_another_strength_is_noticed() -> None:
    model = unet("sd15")
    parameters = trained(model, config("oft"))
    set_strength(model, "person", 0.5)
    train(parameters)
    with pytest.raises(IdgenError, match="trained while its strength was not 1"):
        set_strength(model, "person", 1.0)


def test_an_adapter_that_was_set_to_nothing_comes_back() -> None:
    model = unet("sd15")
    trained(model, config("boft"))
    full = output(model)
    set_strength(model, "person", 0)
    assert active_adapters(model) == []
    set_strength(model, "person", 1)
    assert torch.equal(output(model), full) and active_adapters(model) == ["person"]
