"""One entry per method for the contract tests: how to build it small, and people that it takes.

Adding a method adds one `Case` here; everything in test_contract.py then runs on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from idgen.adapters.base import Adapter, AdapterConfig
from idgen.adapters.ip_faceid import FaceIDConfig
from idgen.adapters.registry import adapter_class
from idgen.identity import Identity
from tests.adapters.bases import WIDTH


@dataclass(frozen=True)
class Case:
    """A method on the contract tests' UNets.

    Attributes:
        method: registered name.
        config: a small config of the method.
        person: makes one person from a seed, in a form that the method takes.
        inputs: makes the further inputs of `condition` for some people.
        bases: the shapes of UNets that the method has.
    """

    method: str
    config: AdapterConfig
    person: Callable[[int], Any]
    inputs: Callable[[int], dict[str, Any]] = field(default=lambda people: {})
    bases: tuple[str, ...] = ("sd15", "sdxl")

    def build(self, unet: UNet2DConditionModel, seed: int = 0) -> Adapter:
        """The adapter with random weights, all of which matter: what a method begins at zero is random too."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapter = adapter_class(self.method).for_unet(unet, self.config).eval()
            for parameter in adapter.parameters():
                torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 0.5)
        return adapter


def identity(recogniser: str, references: int = 2) -> Callable[[int], Identity]:
    """People whose embeddings follow from their number."""

    def person(seed: int) -> Identity:
        raw = torch.randn(references, 512, generator=torch.Generator().manual_seed(1000 + seed))
        return Identity(raw, recogniser)

    return person


CASES = [
    Case(
        "ip_faceid",
        FaceIDConfig(projection={"cross_attention_dim": WIDTH, "num_tokens": 4}, rank=2),
        identity("w600k_r50"),
    ),
]
