"""What each adapter costs: `python -m benchmarks.adapters`.

A random UNet of the size of Stable Diffusion 1.5, 64 x 64 latents, batch 2, bf16, channels last. A round times a bare and an
adapted forward next to each other, the bare one first in every second round; the figure is the median of the rounds' ratios, as
the machine's speed wanders, with the middle half of the rounds beside it. All methods stand in each round, so that a busy
minute meets all of them. `--clock cpu` counts processor seconds: for a machine that does other work meanwhile.

Only what happens inside the UNet is counted. InstantID's IdentityNet is a ControlNet, work of its own that a caller may leave
out; its tokens and keys are made once per call, like everybody's, in the last column. Adapters that keep keys and values of whole
pictures (references) are left out: what they cost grows with the references, see docs/RESULTS.md.
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
COLUMNS = "| adapter | overhead over the bare UNet | middle half of rounds | bar | bare, s per step | making a person ready, s |"


def main() -> None:
    """Prints a table for docs/RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--methods", nargs="*", default=[name for name in methods() if name in PEOPLE], choices=PEOPLE)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    unet = UNet2DConditionModel(cross_attention_dim=TEXT, attention_head_dim=8).to(device, torch.bfloat16)
    unet = unet.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    call = {
        "sample": torch.randn(2, 4, 64, 64).to(device, torch.bfloat16).contiguous(memory_format=torch.channels_last),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 77, TEXT).to(device, torch.bfloat16),
    }
    forward = Forward(unet, call, time.process_time if arguments.clock == "cpu" else time.perf_counter)
    print(f"{COLUMNS}\n|---|---|---|---|---|---|")
    with torch.no_grad():
        made = {name: prepare(name, unet) for name in arguments.methods}
        pairs = forward.paired({name: conditioning for name, (_, conditioning, _) in made.items()}, arguments.rounds)
    for name, (adapter, _, ready) in made.items():
        adapter.eject()
        print(f"{row(name, pairs[name])} {ready:.2f} |", flush=True)


def row(name: str, pairs: list[tuple[float, float]]) -> str:
    """A method's line, but for its end.

    Args:
        pairs: seconds of a bare and of an adapted forward, by rounds.
    """
    overheads = sorted(100 * (adapted / bare - 1) for bare, adapted in pairs)
    low, high = overheads[len(overheads) // 4], overheads[-1 - len(overheads) // 4]
    bare = statistics.median(bare for bare, _ in pairs)
    return (
        f"| {name} | {statistics.median(overheads):+.1f} % | {low:+.1f} to {high:+.1f} % | {BARS.get(name, 3.0):.0f} % |"
        f" {bare:.3f} |"
    )


class Forward:
    """Times forwards of a UNet.

    Args:
        call: what it is called with.
        clock: in seconds.
    """

    def __init__(self, unet: UNet2DConditionModel, call: dict[str, torch.Tensor], clock: Callable[[], float]) -> None:
        self.unet, self.call, self.clock = unet, call, clock

    def seconds(self, conditioning: Conditioning | None) -> float:
        """Of one forward, bare or with a person."""
        self._wait()
        start = self.clock()
        self.unet(**self.call, cross_attention_kwargs=None if conditioning is None else conditioning.kwargs)
        self._wait()
        return self.clock() - start

    def paired(self, people: dict[str, Conditioning], rounds: int) -> dict[str, list[tuple[float, float]]]:
        """By method: seconds of a bare and of an adapted forward next to each other, in each round."""
        pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in people}
        for turn in range(rounds + 1):
            for name, conditioning in people.items():
                first, second = (None, conditioning) if turn % 2 else (conditioning, None)
                one, other = self.seconds(first), self.seconds(second)
                if turn:  # the first round warms up
                    pairs[name].append((one, other) if turn % 2 else (other, one))
        return pairs

    def _wait(self) -> None:
        if self.unet.device.type == "cuda":
            torch.cuda.synchronize()


def prepare(name: str, unet: UNet2DConditionModel) -> tuple[Adapter, Conditioning, float]:
    """An adapter with random weights in the UNet, a person in it, and the seconds that making the person ready took."""
    config, person, options = PEOPLE[name]()
    adapter = adapter_class(name).for_unet(unet, config).to(unet.device, torch.bfloat16).eval()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    adapter.inject(unet)
    start = time.perf_counter()
    conditioning = adapter.condition(person, **options)
    return adapter, conditioning, time.perf_counter() - start


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
