"""Gated parts of several adapters at one block."""

import torch

from idgen.adapters.fact import FACTAdapter, FACTConfig
from tests.adapters.bases import call_arguments, predict, tiny_unet
from tests.adapters.cases import CASES

FACT = next(case for case in CASES if case.method == "fact")


def test_the_norm_of_one_adapter_sees_what_the_gates_of_all_have_made():
    """The gates of another adapter act behind it; with its norm being the base's own, nothing may differ from having none."""
    unet = tiny_unet("sd15")
    normed = FACT.build(unet).inject(unet, "normed")
    plain = FACTAdapter(FACTConfig(resampler=FACT.config.resampler), normed.layers).eval()
    plain.load_state_dict({key: value for key, value in normed.state_dict().items() if ".norm." not in key})
    other = FACTAdapter(plain.config, plain.layers).eval()
    other.load_state_dict({key: value.flip(0) if value.ndim else -value for key, value in plain.state_dict().items()})
    plain.inject(unet, "plain")
    other.inject(unet, "other")
    for layer in normed.layers:
        if layer.cross:
            own = unet.get_submodule(layer.block).norm2
            normed.gates[str(layer.index)].norm.load_state_dict(own.state_dict())
    arguments, person = call_arguments(unet, 2), FACT.person(0)
    with torch.no_grad():
        second = other.condition(person)
        results = [predict(unet, arguments, one.condition(person) + second) for one in (normed, plain)]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(results[0], predict(unet, arguments, plain.condition(person)), atol=1e-3)
