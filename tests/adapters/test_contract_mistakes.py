"""Mistakes that the contract refuses for every adapter: one clear error, and the UNet is as it was."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from idgen.errors import IdgenError
from tests.adapters.bases import predict, tiny_unet
from tests.adapters.test_contract import FIRST_BASE, attributes, conditioned, setup


@pytest.mark.parametrize(("case", "base"), FIRST_BASE)
def test_bad_calls_are_refused_and_leave_the_unet_as_it_was(case, base):
    unet, adapter, arguments = setup(case, base)
    output = predict(unet, arguments)
    adapter.inject(unet)
    inputs = case.inputs(1)
    layers = len(conditioned(case, adapter).entries[0].scales)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"scale": math.nan}, "finite"),
        ({"scale": [1.0] * (layers + 1)}, "layers"),
        ({"scale": {"no_such_block": 1.0}}, "no_such_block"),
        ({"images": 0}, "images"),
        ({"mask": torch.ones(3, 8, 8)}, "masks"),
        ({"mask": torch.full((8, 8), 2.0)}, "mask"),
        ({"mask": np.full((8, 8), np.nan, np.float32)}, "mask"),
    ]
    for options, word in bad:
        with pytest.raises(IdgenError, match=word):
            adapter.condition(case.person(0), **inputs, **options)
    with pytest.raises(IdgenError, match="no identity"):
        adapter.condition([], **inputs)
    with pytest.raises(IdgenError, match="rows"):
        predict(unet, arguments, conditioned(case, adapter, people=1, images=2))
    with pytest.raises(IdgenError, match="proportions"):
        predict(unet, arguments, conditioned(case, adapter, mask=torch.ones(64, 32)))
    assert torch.equal(predict(unet, arguments), output)
    person = conditioned(case, adapter)
    adapter.eject()
    other = case.build(unet, seed=1).inject(unet)
    with pytest.raises(IdgenError, match="not in this UNet"):
        predict(unet, arguments, person)
    other.eject()
    assert torch.equal(predict(unet, arguments), output)


@pytest.mark.parametrize(("case", "base"), FIRST_BASE)
def test_an_adapter_of_another_base_is_refused(case, base):
    other = tiny_unet("sd15", block_out_channels=(12, 24, 24))
    adapter = case.build(other)
    unet = tiny_unet("sd15")
    before = attributes(unet)
    with pytest.raises(IdgenError, match="was made for"):
        adapter.inject(unet)
    assert attributes(unet) == before and adapter.unet is None
