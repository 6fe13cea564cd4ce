"""Where and when an adapter acts: what masks and step schedules cost, and in which dtype they act."""

import pytest
import torch

from idgen.adapters.call import Step
from idgen.adapters.injections import host
from idgen.adapters.schedule import StepScales
from tests.adapters.bases import call_arguments, predict, tiny_unet
from tests.adapters.cases import CASES

TIMES = torch.tensor([900.0, 700.0, 500.0, 300.0])
BY_METHOD = {case.method: case for case in CASES}
EACH_KIND = [pytest.param(BY_METHOD[name], id=name) for name in ("ip_faceid", "fact", "pva", "pulid", "wplus")]


def conditioned(case, adapter, **options):
    with torch.no_grad():
        return adapter.condition([case.person(0)], **case.inputs(1), **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", EACH_KIND)
def test_a_schedule_at_a_timestep_per_row_keeps_half_precision(case, dtype):
    unet = tiny_unet("sd15").to(dtype)
    adapter = case.build(unet).to(dtype).inject(unet)
    arguments = call_arguments(unet, 2)
    schedule = StepScales(TIMES, torch.tensor([0.0, 0.0, 0.5, 1.0]))
    conditioning = conditioned(case, adapter, scale=0.1, schedule=schedule)
    at_once = predict(unet, arguments, conditioning)
    each = predict(unet, {**arguments, "timestep": torch.tensor([500, 500])}, conditioning)
    assert each.dtype == dtype and torch.allclose(each, at_once, rtol=0.05, atol=0.05)


def test_a_mask_is_made_once_per_device_and_dtype():
    unet = tiny_unet("sd15")
    case = BY_METHOD["wplus"]
    adapter = case.build(unet).inject(unet)
    arguments = call_arguments(unet, 2)
    half = torch.zeros(64, 64)
    half[:, :32] = 1
    conditioning = conditioned(case, adapter, mask=half)
    predict(unet, arguments, conditioning)
    hidden = torch.zeros(2, 64, 8)
    first = conditioning.mask(0, (8, 8), hidden)
    assert first is conditioning.mask(0, (8, 8), hidden) and first.shape == (1, 64, 1)
    lower = conditioning.mask(0, (8, 8), hidden.bfloat16())
    assert lower.dtype == torch.bfloat16 and torch.equal(lower.float(), first)
    assert conditioning.mask(0, (8, 8), hidden.to("meta")).device.type == "meta"


def test_the_plain_attention_runs_once_where_every_entry_is_blended_with_it(monkeypatch):
    unet = tiny_unet("sd15")
    case = BY_METHOD["ip_faceid"]
    adapter = case.build(unet).inject(unet)
    layer = next(layer for layer in adapter.layers if layer.cross)
    step = Step.at(conditioned(case, adapter, mask=torch.ones(64, 64)), torch.zeros(2, 4, 8, 8), 500)
    calls = []
    attend = host.attend
    monkeypatch.setattr(host, "attend", lambda *given: calls.append(given[-1]) or attend(*given))
    hidden, text = torch.randn(2, 64, layer.hidden), torch.randn(2, 7, layer.context)
    host.attention(unet, layer)(hidden, encoder_hidden_states=text, idgen=step)
    assert [len(actives) for actives in calls] == [0, 2]
