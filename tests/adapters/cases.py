"""One entry per method for the contract tests: how to build it small, and people that it takes.

Adding a method adds one `Case` here; everything in test_contract.py then runs on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from idgen.adapters.arc2face.expression import ExpressionConfig
from idgen.adapters.arc2face.reference import ReferenceConfig
from idgen.adapters.base import Adapter, AdapterConfig
from idgen.adapters.cachekv import CacheKVConfig
from idgen.adapters.fact import FACTConfig
from idgen.adapters.instantid import InstantIDConfig
from idgen.adapters.ip_faceid import FaceIDConfig
from idgen.adapters.pulid import PuLIDConfig
from idgen.adapters.pva import PVAConfig
from idgen.adapters.registry import adapter_class
from idgen.adapters.wplus import WPlusConfig
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
        elsewhere: parameters that act outside of the UNet, where these tests do not look.
        trained: whether it has weights; a method without any has nothing for gradients to reach.
    """

    method: str
    config: AdapterConfig
    person: Callable[[int], Any]
    inputs: Callable[[int], dict[str, Any]] = field(default=lambda people: {})
    bases: tuple[str, ...] = ("sd15", "sd2-inpaint", "sdxl")
    elsewhere: tuple[str, ...] = ()
    trained: bool = True

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


def random_tensor(*shape: int) -> Callable[[int], torch.Tensor]:
    """People who are a tensor: tokens, codes."""

    def person(seed: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(1000 + seed))

    return person


CASES = [
    Case(
        "ip_faceid",
        FaceIDConfig(projection={"cross_attention_dim": WIDTH, "num_tokens": 4}, rank=2),
        identity("buffalo_l"),
    ),
    Case(
        "arc2face_expression",
        ExpressionConfig(projection={"cross_attention_dim": WIDTH, "embedding_dim": 55, "num_tokens": 4, "ratio": 2}),
        random_tensor(55),
        bases=("sd15", "sd2-inpaint", "sdxl"),
    ),
    Case(
        "arc2face_reference",
        ReferenceConfig(rank=2),
        random_tensor(4, 8, 8),
        lambda people: {"prompt_embeds": random_tensor(people, 7, WIDTH)(0)},
        bases=("sd15",),
    ),
    Case(
        "cachekv",
        CacheKVConfig(),
        random_tensor(2, 4, 8, 8),
        lambda people: {"prompt_embeds": random_tensor(people, 7, WIDTH)(0)},
        bases=("sd15", "sd2-inpaint"),
        trained=False,
    ),
    Case(
        "cachekv",
        CacheKVConfig(levels=(2,)),
        random_tensor(2, 4, 8, 8),
        lambda people: {
            "prompt_embeds": random_tensor(people, 7, WIDTH)(0),
            "added_cond_kwargs": {"text_embeds": random_tensor(1, 8)(1), "time_ids": random_tensor(1, 6)(2)},
        },
        bases=("sdxl",),
        trained=False,
    ),
    Case(
        "fact",
        FACTConfig(
            resampler={"dim": 8, "heads": 1, "dim_head": 8, "depth": 1, "embedding_dim": 12, "output_dim": WIDTH},
            norm=True,
        ),
        random_tensor(2, 9, 12),
        bases=("sd15", "sd2-inpaint", "sdxl"),
    ),
    Case(
        "instantid",
        InstantIDConfig(
            projection={
                "dim": 8,
                "heads": 1,
                "dim_head": 8,
                "depth": 1,
                "num_queries": 3,
                "embedding_dim": 512,
                "output_dim": WIDTH,
            }
        ),
        identity("antelopev2"),
        bases=("sdxl", "sd15", "sd2-inpaint"),
    ),
    Case(
        "pulid", PuLIDConfig(cross_attention_dim=WIDTH), random_tensor(10, WIDTH), bases=("sdxl", "sd15", "sd2-inpaint")
    ),
    Case(
        "pva",
        PVAConfig(out_dim=WIDTH, num_layer=1),
        identity("ms1mv3_r50"),
        bases=("sd2-inpaint", "sd15", "sdxl"),
        elsewhere=("modifier",),
    ),
    Case(
        "wplus", WPlusConfig(cross_attention_dim=WIDTH), random_tensor(18, 512), bases=("sd15", "sd2-inpaint", "sdxl")
    ),
]
