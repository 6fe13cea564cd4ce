"""What each adapter costs: `python -m benchmarks.adapters`.

A random UNet of the size of Stable Diffusion 1.5, 64 x 64 latents, batch 2, bf16, channels last. Each adapted forward stands
beside a bare one in the same minute; the ratio of the medians is what counts, as the machine's speed wanders. Adapters that keep
keys and values of whole pictures (references) are left out: what they cost grows with the references, see docs/RESULTS.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel

from idgen.adapters.base import Adapter, AdapterConfig
from idgen.adapters.call import Conditioning
from idgen.adapters.registry import adapter_class, methods
from idgen.identity import Identity

TEXT = 768
BARS = {"ip_faceid": 5.0, "wplus": 5.0, "fact": 45.0}  # per cent; 3 for the others


def main() -> None:
    """Prints a table for docs/RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="*", default=None)
    arguments = parser.parse_args()
    with torch.device("cpu"):
        unet = UNet2DConditionModel(cross_attention_dim=TEXT, attention_head_dim=8)
    unet = unet.to(torch.bfloat16).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    call = {
        "sample": torch.randn(2, 4, 64, 64).bfloat16().contiguous(memory_format=torch.channels_last),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 77, TEXT).bfloat16(),
    }
    print(
        "| adapter | overhead over the bare UNet | bar | bare, s per step | making a person ready, s |\n|---|---|---|---|---|"
    )
    names = arguments.methods or [name for name in methods() if name in PEOPLE]
    for name in names:
        with torch.no_grad():
            adapter, conditioning, ready = prepare(name, unet)
            bare, adapted = paired(unet, call, conditioning, arguments.rounds)
        adapter.eject()
        overhead = 100 * (adapted / bare - 1)
        print(f"| {name} | {overhead:+.1f} % | {BARS.get(name, 3.0):.0f} % | {bare:.2f} | {ready:.2f} |", flush=True)


def prepare(name: str, unet: UNet2DConditionModel) -> tuple[Adapter, Conditioning, float]:
    """An adapter with random weights in the UNet, a person in it, and the seconds that making the person ready took."""
    config, person, options = PEOPLE[name]()
    adapter = adapter_class(name).for_unet(unet, config).to(torch.bfloat16).eval()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    adapter.inject(unet)
    start = time.perf_counter()
    conditioning = adapter.condition(person, **options)
    return adapter, conditioning, time.perf_counter() - start


def paired(
    unet: UNet2DConditionModel, call: dict[str, torch.Tensor], conditioning: Conditioning, rounds: int
) -> tuple[float, float]:
    """Median seconds of a bare and of an adapted forward, taken in turns."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(rounds + 1):
        for adapted in (False, True):
            start = time.perf_counter()
            unet(**call, cross_attention_kwargs=conditioning.kwargs if adapted else None)
            if turn:  # the first round warms up
                times[adapted].append(time.perf_counter() - start)
    return statistics.median(times[False]), statistics.median(times[True])


def _identity(recogniser: str) -> Identity:
    return Identity(torch.randn(1, 512), recogniser)


def _faceid() -> tuple[AdapterConfig, object, dict]:
    from idgen.adapters.ip_faceid import FaceIDConfig

    return FaceIDConfig(projection={"cross_attention_dim": TEXT}), _identity("w600k_r50"), {}


def _pulid() -> tuple[AdapterConfig, object, dict]:
    from idgen.adapters.pulid import PuLIDConfig

    return PuLIDConfig(cross_attention_dim=TEXT), torch.randn(10, TEXT), {}


def _pva() -> tuple[AdapterConfig, object, dict]:
    from idgen.adapters.pva import PVAConfig

    return PVAConfig(out_dim=TEXT), _identity("ms1mv3_r50"), {}


def _wplus() -> tuple[AdapterConfig, object, dict]:
    from idgen.adapters.wplus import WPlusConfig

    return WPlusConfig(), torch.randn(18, 512), {}


def _fact() -> tuple[AdapterConfig, object, dict]:
    from idgen.adapters.fact import FACTConfig

    return FACTConfig(), torch.randn(1, 144, 512), {}


def _instantid() -> tuple[AdapterConfig, object, dict]:
    from idgen.adapters.instantid import InstantIDConfig
    from idgen.adapters.instantid.config import PUBLISHED

    return InstantIDConfig(projection={**PUBLISHED, "output_dim": TEXT}), _identity("glintr100"), {}


def _expression() -> tuple[AdapterConfig, object, dict]:
    from idgen.adapters.arc2face.expression import ExpressionConfig

    return ExpressionConfig(), torch.randn(55), {}


PEOPLE: dict[str, Callable[[], tuple[AdapterConfig, object, dict]]] = {
    "arc2face_expression": _expression,
    "fact": _fact,
    "instantid": _instantid,
    "ip_faceid": _faceid,
    "pulid": _pulid,
    "pva": _pva,
    "wplus": _wplus,
}

if __name__ == "__main__":
    main()
