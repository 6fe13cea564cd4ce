"""What a reward trains: a UNet of which a part learns, and the same UNet without it, to compare with.

Two kinds: a finetuning adapter (LoRA and its relatives, `idgen.finetune`) inside any Stable Diffusion, SDXL or Arc2Face UNet; and
a decoupled identity adapter (`idgen.adapters`) beside one.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from idgen.adapters.base import Adapter
from idgen.adapters.call import Conditioning
from idgen.adapters.embeddings import Norm, RawEmbeddings, UnitEmbeddings
from idgen.checkpoint import load_metadata, load_strict, load_weights, save_weights
from idgen.errors import IdgenError
from idgen.evaluation.judge import REWARDED_BY
from idgen.finetune import FinetuneConfig, activate, active_adapters, add_adapter, save_adapter
from idgen.finetune.files import describe, own_key, published, read_settings
from idgen.rewards.chain import Denoise

NAME = "reward"  # of the finetuning adapter among those of its UNet


@dataclass(frozen=True)
class Condition:
    """What one call of the UNet is conditioned on, a row a picture.

    Attributes:
        context: (batch, tokens, dim) what its cross-attention reads.
        vectors: (batch, dim) face embeddings for a decoupled adapter, raw or unit as it reads them, zeros for nobody; or None.
        pooled, sizes: (batch, dim), (batch, 6) SDXL's pooled prompt and picture sizes; or None.
    """

    context: Tensor
    vectors: Tensor | None = None
    pooled: Tensor | None = None
    sizes: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """The same with every tensor changed."""
        return _condition([None if part is None else change(part) for part in self._parts()])

    def join(self, other: Condition) -> Condition:
        """The rows of both, one after the other."""
        pairs = zip(self._parts(), other._parts(), strict=True)
        return _condition([None if a is None or b is None else torch.cat([a, b]) for a, b in pairs])

    def where(self, chosen: Tensor, other: Condition) -> Condition:
        """The other's rows where `chosen` (batch,) is true."""

        def pick(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            if a is None or b is None:
                return None
            return torch.where(chosen.view(-1, *([1] * (a.ndim - 1))), b.to(a), a)

        return _condition([pick(a, b) for a, b in zip(self._parts(), other._parts(), strict=True)])

    def __len__(self) -> int:
        return len(self.context)

    def _parts(self) -> list[Tensor | None]:
        return [getattr(self, part.name) for part in fields(self)]


def _condition(parts: Sequence[Tensor | None]) -> Condition:
    context, *others = parts
    assert context is not None
    return Condition(context, *others)


class Policy(nn.Module, ABC):
    """A UNet with a part that learns. That part's parameters are all that this module has; the UNet is frozen.

    `policy(noisy, timesteps, condition)` is the model's answer, with `base=True` the one it gave before it learned anything.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self._unet = [unet.requires_grad_(False)]  # in a list, so that it does not become a part of this

    @property
    def unet(self) -> Any:
        return self._unet[0]

    @abstractmethod
    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Condition, base: bool = False) -> Tensor:
        """
        Args:
            noisy: (batch, channels, h, w).
            timesteps: (batch,) int64.

        Returns:
            Like `noisy`, float32.
        """

    @abstractmethod
    def save(self, path: Path, recognisers: Sequence[str]) -> None:
        """Writes what learned as one safetensors file, which also says which recognisers rewarded it.

        Args:
            recognisers: their names; none of them may judge the pictures.
        """

    @abstractmethod
    def load(self, path: Path) -> None:
        """Takes up what `save` wrote, for the same UNet and settings."""

    def _ask(self, noisy: Tensor, timesteps: Tensor, condition: Condition, **more: Any) -> Tensor:
        if condition.pooled is not None:
            more["added_cond_kwargs"] = {"text_embeds": condition.pooled, "time_ids": condition.sizes}
        return self.unet(noisy, timesteps, condition.context, **more).sample.float()


class FinetunePolicy(Policy):
    """A LoRA, OFT or other finetuning adapter in a UNet.

    Args:
        unet: any UNet2DConditionModel; other adapters in it stay as they are and belong to the base.
        config: of the new adapter.

    Raises:
        IdgenError: the adapter does not fit, or is meant for text encoders too: those would have to be asked at every step.
    """

    def __init__(self, unet: Any, config: FinetuneConfig) -> None:
        super().__init__(unet)
        if config.modules != ("unet",):
            raise IdgenError("a reward trains the UNet alone: leave finetune.modules at [unet]")
        parameters = add_adapter({"unet": unet}, config, NAME)
        self.names = list(parameters)
        self.weights = nn.ParameterList(parameters.values())

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Condition, base: bool = False) -> Tensor:
        if not base:
            return self._ask(noisy, timesteps, condition)
        with self._without():
            return self._ask(noisy, timesteps, condition)

    def save(self, path: Path, recognisers: Sequence[str]) -> None:
        save_adapter(path, {"unet": self.unet}, NAME)
        declare_rewards(path, recognisers)

    def load(self, path: Path) -> None:
        models = {"unet": self.unet}
        found, own = read_settings(path).model_dump(), describe(models, NAME).model_dump()
        other = [
            f"{name} {found[name]} instead of {own[name]}"
            for name in own
            if found[name] != own[name] and name not in ("targets", "modules")  # the keys say which layers
        ]
        if other:
            raise IdgenError(f"{path} does not fit this adapter: {'; '.join(other)}; set finetune as it was trained")
        state = {own_key(key, models): value for key, value in load_weights(path).items()}
        wrong = [
            published(name)
            for name, parameter in zip(self.names, self.weights, strict=True)
            if name not in state or state[name].shape != parameter.shape
        ]
        if wrong or len(state) != len(self.names):
            raise IdgenError(
                f"{path} does not fit this adapter: {', '.join(wrong[:3]) or 'it holds more'}; same model and settings?"
            )
        with torch.no_grad():
            for name, parameter in zip(self.names, self.weights, strict=True):
                parameter.copy_(state[name])

    @contextmanager
    def _without(self) -> Iterator[None]:
        before = active_adapters({"unet": self.unet})
        activate({"unet": self.unet}, [name for name in before if name != NAME])
        try:
            yield
        finally:
            activate({"unet": self.unet}, before)


class AdapterPolicy(Policy):
    """A decoupled identity adapter, whose base is itself as it was.

    Args:
        unet: without other idgen adapters named "reward" and "base".
        adapter: a method that is conditioned on face embeddings alone, such as IP-Adapter-FaceID; injected by this.
    """

    def __init__(self, unet: Any, adapter: Adapter) -> None:
        super().__init__(unet)
        self._base = [copy.deepcopy(adapter).requires_grad_(False)]
        self.adapter = adapter.requires_grad_(True)
        self._base[0].inject(unet, "base")
        adapter.inject(unet, NAME)

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Condition, base: bool = False) -> Tensor:
        assert condition.vectors is not None
        made = conditioning(self._base[0] if base else self.adapter, condition.vectors)
        return self._ask(noisy, timesteps, condition, cross_attention_kwargs=made.kwargs)

    def save(self, path: Path, recognisers: Sequence[str]) -> None:
        self.adapter.save(path)
        declare_rewards(path, recognisers)

    def load(self, path: Path) -> None:
        load_strict(self.adapter, load_weights(path), f"{self.adapter.method} adapter from {path}")

    def rebase(self) -> None:
        """The adapter as it is now becomes its own base."""
        self._base[0].load_state_dict(self.adapter.state_dict())


def conditioning(adapter: Adapter, vectors: Tensor) -> Conditioning:
    """An adapter made ready for a batch of embeddings (batch, dim), raw or unit as it wants them; zeros are nobody."""
    known = vectors.abs().sum(1) > 0
    kind = UnitEmbeddings if norm_of(adapter) == "unit" else RawEmbeddings
    # Whatever stands in for nobody is not looked at.
    filled = torch.where(known[:, None], vectors, nn.functional.normalize(torch.ones_like(vectors), dim=1))
    people = [kind(vector, adapter.config.recogniser) for vector in filled]
    both = adapter.condition(people, guidance=True)  # first as many rows of nobody
    rows = torch.arange(len(vectors)) + len(vectors) * known.cpu()
    return Conditioning(tuple(entry.take(rows) for entry in both.entries), len(vectors), False)


def norm_of(adapter: Adapter) -> Norm:
    """At which length an adapter reads embeddings."""
    return getattr(adapter.config, "norm", "raw")


def denoiser(model: Callable[..., Tensor], condition: Condition, *, base: bool = False) -> Denoise:
    """A policy (or what accelerate wrapped it in) for `idgen.rewards.chain`, under one condition."""

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        return model(latents, timestep.expand(len(latents)), condition, base=base)

    return denoise


def guided(
    model: Callable[..., Tensor], condition: Condition, nobody: Condition, scale: float, *, base: bool = False
) -> Denoise:
    """`denoiser` with classifier-free guidance, both halves in one call; scale 1 is without.

    Args:
        nobody: as many rows that ask for nothing.
    """
    if scale == 1:
        return denoiser(model, condition, base=base)
    both = denoiser(model, nobody.join(condition), base=base)

    def denoise(latents: Tensor, timestep: Tensor) -> Tensor:
        without, wanted = both(torch.cat([latents, latents]), timestep).chunk(2)
        return without + scale * (wanted - without)

    return denoise


def declare_rewards(path: Path, recognisers: Sequence[str]) -> None:
    """Adds to the header of a weights file by which recognisers it was rewarded; `idgen evaluate` then refuses them as judges."""
    header: dict[str, str] = load_metadata(path)
    save_weights(path, load_weights(path), header | {REWARDED_BY: json.dumps(list(recognisers))})
