"""The contract that every adapter keeps.

An adapter owns its weights and nothing of the UNet. `inject` and `eject` are exact inverses; `condition` turns people into what
one call needs, once; the call carries it (`Conditioning`), so that threads and pipelines may share a UNet.

    adapter = InstantIDAdapter.from_pretrained("ip-adapter.bin", unet)
    adapter.inject(unet)
    conditioning = adapter.condition(identity, scale=0.8)
    pipe(prompt, cross_attention_kwargs=conditioning.kwargs)
    adapter.eject()
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from idgen.adapters.call import Conditioning, Entry
from idgen.adapters.injections.host import adapters_of, enter, leave
from idgen.adapters.injections.parts import Part, made_ready
from idgen.adapters.layers import AttentionLayer, attention_layers, family
from idgen.adapters.masks import as_mask
from idgen.adapters.schedule import StepScales, layer_scales
from idgen.checkpoint import load_strict, load_weights, save_weights
from idgen.errors import IdgenError
from idgen.families import FAMILIES, text_width
from idgen.headers import ADAPTER, read_header

Scale = float | Sequence[float] | dict[str, float]
Self = TypeVar("Self", bound="Adapter")


@dataclass(frozen=True)
class AdapterConfig:
    """Sizes and habits of an adapter; a method's own config derives from it. Goes into the file beside the weights.

    Attributes:
        recogniser: whose embeddings the weights were trained with, by FaceEncoder's name; others have unrelated spaces.
    """

    recogniser: str


class Adapter(nn.Module, ABC):
    """An identity adapter: a projector, weights per layer, and how they act.

    A method derives from it, names itself, and says three things: what it takes from an identity (`embed`), how that becomes
    tokens (`project`), and what the tokens do at each layer (`parts`).

    Attributes:
        method: the registered name.
        config: as saved with the weights.
        layers: the UNet's attention layers that the weights were made for, in the published order.
    """

    method: ClassVar[str]
    config_class: ClassVar[type[AdapterConfig]]

    def __init__(self, config: AdapterConfig, layers: Sequence[AttentionLayer]) -> None:
        super().__init__()
        self.config: Any = config
        self.layers = list(layers)
        self._unet: list[UNet2DConditionModel] = []  # in a list, so that the UNet does not become a part of the adapter

    # What a method says

    @abstractmethod
    def embed(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """`embed(identity, ...)`: what the projector takes, checked: tensors with one row per person.

        Raises:
            IdgenError: it is not what the method needs.
        """

    @abstractmethod
    def project(self, *inputs: Tensor) -> Tensor:
        """The rows of `embed` -> identity tokens (rows, tokens, dim)."""

    @abstractmethod
    def parts(self, tokens: Tensor) -> dict[str, list[Part]]:
        """Identity tokens (rows, tokens, dim) -> what acts at each layer, by layer or block name."""

    def null(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The projector's input for nobody, with which guidance compares: one row for all, or one for each person.

        Published methods agree on zeros.
        """
        return tuple(torch.zeros_like(one[:1]) for one in inputs)

    def entry(self, tokens: Any, rows: Tensor, **acts: Any) -> Entry:
        """The adapter's share of a call; a method whose tokens are also read elsewhere puts them in.

        Args:
            tokens: what `project` made.
            rows: (rows of the UNet's batch,) which of the tokens each of them has.
            acts: what else an `Entry` holds.
        """
        return Entry(self, **acts)

    @classmethod
    def convert(cls, *args: Any, **kwargs: Any) -> tuple[AdapterConfig, dict[str, Tensor]]:
        """`convert(tensors, layers, source=name, ...)`: a published file's tensors -> our config and state dict, strictly.

        Raises:
            IdgenError: a key that is missing or unknown, or a file of another method or base.
        """
        raise IdgenError(f"{cls.method} has no published files: load one that idgen saved")

    # What every adapter does

    @classmethod
    def for_unet(cls: type[Self], unet: UNet2DConditionModel, config: AdapterConfig) -> Self:
        """A new adapter with fresh weights that fits a UNet; the UNet is only looked at."""
        return cls(config, attention_layers(unet))

    @property
    def unet(self) -> UNet2DConditionModel | None:
        """The UNet that it is in."""
        return self._unet[0] if self._unet else None

    def inject(self: Self, unet: UNet2DConditionModel, name: str | None = None) -> Self:
        """Enter a UNet, beside others that are in it already. Without a conditioning the UNet still computes what it did.

        Args:
            name: its name among the adapters of that UNet; the method's by default.
        Raises:
            IdgenError: it is in a UNet already, its weights were made for another base, the name is taken. The UNet is as it was.
        """
        if self._unet:
            raise IdgenError(f"this {self.method} adapter is in a UNet already: eject() it first")
        theirs = attention_layers(unet)
        if [_shape(layer) for layer in theirs] != [_shape(layer) for layer in self.layers]:
            raise IdgenError(
                f"this {self.method} adapter was made for {family(self.layers)}, and this UNet is"
                f" {family(theirs, unet.config['in_channels'])}: load the file that was published for it"
            )
        enter(unet, self, name or self.method)
        self._unet = [unet]
        return self

    def eject(self: Self) -> Self:
        """Leave the UNet. The last adapter to leave restores it exactly: module tree, state dict, output.

        Raises:
            IdgenError: it is in none.
        """
        if not self._unet:
            raise IdgenError(f"this {self.method} adapter is in no UNet: inject() it first")
        leave(self._unet[0], self)
        self._unet = []
        return self

    def condition(
        self,
        identity: Any,
        *,
        images: int = 1,
        guidance: bool = True,
        scale: Scale = 1.0,
        mask: Any | None = None,
        schedule: StepScales | None = None,
        **inputs: Any,
    ) -> Conditioning:
        """Make people ready for one call, or for many: tokens and their keys and values are computed here and never again.

        Args:
            identity: one person or a list of them (a batch of different people), in a form that the method takes.
            images: pictures per person, next to each other in the batch, as diffusers' num_images_per_prompt.
            guidance: whether the UNet's batch begins with as many rows without identity (classifier-free guidance).
            scale: strength; 0 is exactly the UNet without adapter. Per layer as a list or by the beginning of names.
            mask: where in the picture, (height, width) or (people, height, width) in [0, 1], tensor, array or PIL image.
            schedule: at which steps.
            inputs: what else the method takes.
        Raises:
            IdgenError: any of these does not fit; says which and what would.
        """
        if not isinstance(images, int) or images < 1:
            raise IdgenError(f"images is {images!r}, expected a number of pictures per person from 1")
        given = self.embed(identity, **inputs)
        people = len(given[0])
        rows = torch.arange(people)
        if guidance:
            nobody = self.null(*given)
            count = len(nobody[0])
            given = tuple(torch.cat(pair) for pair in zip(nobody, given, strict=True))
            rows = torch.cat([rows % count, rows + count])
        rows = rows.repeat_interleave(images)
        tokens = self.project(*given)
        parts = self.parts(tokens)
        entry = self.entry(
            tokens,
            rows,
            parts=made_ready(parts, self.layers, rows),
            scales=layer_scales(scale, list(parts), self.method),
            schedule=schedule,
            mask=as_mask(mask, people, images, guidance),
        )
        return Conditioning((entry,), len(rows), guidance)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, config and the layers they fit to one `.safetensors` file, whole or not at all."""
        metadata = {
            "format": ADAPTER,
            "method": self.method,
            "base": family(self.layers),
            "config": asdict(self.config),
            "layers": [asdict(layer) for layer in self.layers],
        }
        save_weights(path, self.state_dict(), metadata)

    @classmethod
    def from_pretrained(
        cls: type[Self],
        path: str | os.PathLike[str],
        unet: UNet2DConditionModel,
        *,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> Self:
        """Load a published file, or one that `save` or `idgen convert` wrote; on the UNet's device, in its dtype.

        Args:
            unet: only looked at: it says which layers there are.
            dtype: other than the UNet's, such as float32 for training.
            options: what a published file does not say of itself; see the method.
        Raises:
            IdgenError: the file is missing, broken, of another method or base, or a key is missing, unknown or misshapen;
                options for a file that `save` wrote, which says all.
        """
        metadata = read_header(path)
        own = metadata.get("format") == ADAPTER
        if own and options:
            raise IdgenError(
                f"{path} was saved with its settings and takes no others: leave {', '.join(map(repr, options))} out"
            )
        tensors = load_weights(path, allow_empty=own)  # a method may have no weights, only settings
        if own:
            if metadata.get("method") != cls.method:
                raise IdgenError(f"{path} holds a {metadata.get('method')} adapter, not {cls.method}")
            config, layers = cls._described(metadata, path)
            state = dict(tensors)
        else:
            layers = attention_layers(unet)
            _require_base(tensors, layers, f"{path} ({cls.method})")
            # A file that `idgen convert` rewrote remembers the name that told variants of a method apart.
            source = metadata.get("source", Path(path).name)
            config, state = cls.convert(tensors, layers, source=source, **options)
        adapter = cls(config, layers)
        load_strict(adapter, state, f"{cls.method} adapter from {path}")
        # Of a UNet that is offloaded layer by layer the weights are nowhere.
        device = "cpu" if unet.device.type == "meta" else unet.device
        return adapter.to(device=device, dtype=dtype or unet.dtype).eval()

    @classmethod
    def _described(cls, metadata: Mapping[str, str], path: Any) -> tuple[AdapterConfig, list[AttentionLayer]]:
        try:
            config = cls.config_class(**_tuples(json.loads(metadata["config"])))
            return config, [AttentionLayer(**layer) for layer in json.loads(metadata["layers"])]
        except (KeyError, ValueError, TypeError) as error:
            raise IdgenError(
                f"{path} was saved by another version of idgen ({error}): convert the published file again"
            ) from error


def adapters_in(unet: UNet2DConditionModel) -> dict[str, object]:
    """The adapters that are in a UNet, by name, in the order they came."""
    return adapters_of(unet)


def _shape(layer: AttentionLayer) -> tuple[str, int, int, int]:
    return layer.name, layer.hidden, layer.context, layer.heads


def _require_base(tensors: Mapping[str, Tensor], layers: Sequence[AttentionLayer], what: str) -> None:
    """In words, ahead of a list of keys that do not fit: a file for one known base is not for another."""
    made_for, width = text_width(tensors), next((layer.context for layer in layers if layer.cross), 0)
    if made_for in FAMILIES and width in FAMILIES and made_for != width:
        raise IdgenError(
            f"{what} was made for {FAMILIES[made_for]}, and this UNet is {FAMILIES[width]}: load the file for this base"
        )


def _tuples(config: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
