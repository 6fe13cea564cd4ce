"""What a finetuning changes and how: one settings object for every kind, and peft's own for each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from idgen.errors import IdgenError

Kind = Literal["lora", "dora", "oft", "boft", "hra", "loha", "lokr"]
SCALED = ("lora", "dora", "loha", "lokr")  # the change is multiplied by alpha / rank
MULTIPLIED = ("oft", "boft", "hra")  # the weights are multiplied by a rotation instead of added to

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
TRANSFORMER = (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "fc1", "fc2")
# Named sets of layers, by the ends of their names in UNets and in CLIP text encoders.
TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ATTENTION,
    "transformer": TRANSFORMER,
    "all": (
        *TRANSFORMER,
        *("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"),
    ),
}


class FinetuneConfig(BaseModel):
    """Settings of one adapter over a UNet and, where wanted, its text encoders.

    Kinds: LoRA (arXiv 2106.09685), DoRA (2402.09353), OFT (2306.07280), BOFT (2311.06243), HRA (2405.17484),
    LoHa (2108.06098), LoKr (2309.14859). A setting that a kind has no use for is ignored, so that `kind` alone can be changed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = "lora"
    rank: int = Field(default=8, ge=1, description="of lora, dora, hra (even), loha and lokr")
    alpha: float | None = Field(
        default=None,
        gt=0,
        description="of lora, dora, loha and lokr: the change is multiplied by alpha / rank; the rank by default",
    )
    block_size: int = Field(default=8, ge=2, description="of oft and boft: features that are rotated together")
    butterfly: int = Field(default=1, ge=1, description="factors of boft; more than 1 needs peft's CUDA extension")
    cayley: Literal["exact", "neumann"] = Field(
        default="exact",
        description="of oft: how the rotation is computed; five terms of the Neumann series are no rotation for small blocks",
    )
    targets: Literal["attention", "transformer", "all"] | tuple[str, ...] = Field(
        default="attention", description="a set of layers, or the ends of their names"
    )
    modules: tuple[str, ...] = Field(
        default=("unet",), min_length=1, description="of the pipeline: unet, text_encoder, text_encoder_2"
    )
    ranks: dict[str, int] = Field(
        default={}, description="layers of another rank, by component and name (lora, dora, loha, lokr)"
    )
    alphas: dict[str, float] = Field(default={}, description="layers of another alpha, by component and name")

    @model_validator(mode="after")
    def _fits(self) -> FinetuneConfig:
        if self.kind == "hra" and self.rank % 2:
            raise IdgenError(
                f"rank is {self.rank}: hra needs an even one, its reflections start in pairs that cancel each other"
            )
        return self

    @property
    def endings(self) -> tuple[str, ...]:
        """What names of the layers end in."""
        return TARGETS[self.targets] if isinstance(self.targets, str) else self.targets

    @property
    def scale(self) -> float:
        """What the change is multiplied by at strength 1, in layers that are no exception."""
        return (self.alpha or self.rank) / self.rank if self.kind in SCALED else 1.0

    def peft(self, component: str, layers: Iterable[str]) -> Any:
        """peft's own settings for these layers of a component."""
        import peft

        common: dict[str, Any] = {"target_modules": list(layers)}
        if self.kind == "oft":
            exact = self.cayley == "exact"
            return peft.OFTConfig(r=0, oft_block_size=self.block_size, use_cayley_neumann=not exact, **common)
        if self.kind == "boft":
            return peft.BOFTConfig(
                boft_block_size=self.block_size, boft_block_num=0, boft_n_butterfly_factor=self.butterfly, **common
            )
        if self.kind == "hra":
            return peft.HRAConfig(r=self.rank, apply_GS=False, **common)
        alpha = self.alpha or self.rank
        common |= {
            "r": self.rank,
            "rank_pattern": _patterns(component, self.ranks),
            "alpha_pattern": _patterns(component, self.alphas),
        }
        if self.kind == "loha":
            return peft.LoHaConfig(alpha=alpha, **common)
        if self.kind == "lokr":
            return peft.LoKrConfig(alpha=alpha, **common)
        return peft.LoraConfig(lora_alpha=alpha, use_dora=self.kind == "dora", **common)


def read_peft(
    configs: Mapping[str, Any], targets: Sequence[str], sizes: Mapping[str, tuple[int, float]]
) -> FinetuneConfig:
    """The settings of an adapter that is in models.

    Args:
        configs: peft's, by component.
        targets: ends of the layers' names.
        sizes: rank and alpha of each layer, by component and name; empty for kinds without.

    Raises:
        IdgenError: it is of a kind, or has options, that idgen does not write.
    """
    kinds = {_kind(config) for config in configs.values()}
    if len(kinds) > 1:
        raise IdgenError(f"the components have adapters of different kinds ({', '.join(sorted(kinds))}): use two names")
    kind, first = kinds.pop(), next(iter(configs.values()))
    values: dict[str, Any] = {"kind": kind, "modules": tuple(configs)}
    if kind == "oft":
        values |= {"block_size": first.oft_block_size, "cayley": "neumann" if first.use_cayley_neumann else "exact"}
    elif kind == "boft":
        values |= {"block_size": first.boft_block_size, "butterfly": first.boft_n_butterfly_factor}
    elif kind == "hra":
        values["rank"] = first.r
    else:
        rank, alpha = (Counter(size[part] for size in sizes.values()).most_common(1)[0][0] for part in (0, 1))
        values |= {"rank": rank, "alpha": float(alpha)}
        values["ranks"] = {name: size[0] for name, size in sizes.items() if size[0] != rank}
        values["alphas"] = {name: float(size[1]) for name, size in sizes.items() if size[1] != alpha}
    return FinetuneConfig(**values, targets=tuple(targets))


def _kind(config: Any) -> str:
    name = config.peft_type.value.lower()
    plain = {
        "lora": ("use_rslora", "lora_bias", "modules_to_save"),
        "oft": ("coft", "block_share", "modules_to_save", "r"),
        "hra": ("apply_GS", "modules_to_save"),
        "boft": ("boft_block_num", "modules_to_save"),
        "loha": ("modules_to_save",),
        "lokr": ("modules_to_save",),
    }
    if name not in plain:
        raise IdgenError(f"adapters of kind {name!r} are not saved by idgen: use peft's own save_pretrained")
    set_options = [option for option in plain[name] if getattr(config, option, None)]
    if set_options:
        raise IdgenError(f"this {name} adapter uses {', '.join(set_options)}: save it with peft's own save_pretrained")
    return "dora" if name == "lora" and config.use_dora else name


def _patterns(component: str, exceptions: Mapping[str, Any]) -> dict[str, Any]:
    """peft reads the keys as expressions for the ends of names: they are made to fit one name only."""
    own = {
        key.removeprefix(f"{component}."): value for key, value in exceptions.items() if key.startswith(f"{component}.")
    }
    return {f"^{re.escape(name)}": value for name, value in own.items()}
