"""CacheKV (Hsiao et al., NeurIPS 2024, arXiv 2412.05043, section 3.2): self-attention reads references as it reads itself.

The references' latents pass through the UNet once, at timestep 0 and without noise; every self-attention layer's keys and
values of that pass are kept, and join the layer's own in every later pass. Nothing is trained for it and no weight is added.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Lock

import torch
import torch.nn.functional as F
from accelerate.utils import align_module_device
from diffusers import UNet2DModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor

from idgen.adapters.cachekv.attention import (
    CacheProcessor,
    Complete,
    Reading,
    SelfAttention,
    Writing,
    calling,
    self_attention_layers,
)
from idgen.adapters.cachekv.cache import CachedLayer, MergedCache, ReferenceCache
from idgen.errors import IdgenError

SIGNATURE_VALUES = 64
# A model in half precision still knows its caches; a retrained one does not.
SIGNATURE_TOLERANCE = 0.02

_ENTERING = Lock()


class CacheKV:
    """Lets a UNet2DModel read references.

        kv = CacheKV(unet)
        kv.inject()
        cache = kv.build(latents)            # (people, references, channels, h, w)
        with kv.attend(cache):
            noise = unet(torch.cat([noisy, lq], 1), t).sample
        kv.eject()

    Building this object changes nothing; `inject` and `eject` are exact inverses. What a call reads travels with the call (a
    context variable), so threads that share the UNet never see each other's people.

    Args:
        unet: takes the noisy latents and, after them on the channels, those of the photo to restore.

    Raises:
        IdgenError: the UNet has no self-attention.
    """

    def __init__(self, unet: UNet2DModel) -> None:
        self.unet = unet
        self.layers = self_attention_layers(unet)
        if not self.layers:
            raise IdgenError("this UNet has no self-attention: CacheKV needs a UNet2DModel with AttnDownBlock2D")
        self._originals: dict[str, Callable[..., Tensor]] = {}
        self._nulls: dict[tuple[object, ...], tuple[object, ReferenceCache]] = {}

    @classmethod
    def of(cls, unet: UNet2DModel) -> CacheKV:
        """The one that is in a UNet; a new one enters where there is none.

        Raises:
            IdgenError: the UNet has no self-attention, or processors other than diffusers' own.
        """
        with _ENTERING:
            owners = (getattr(getattr(one, "processor", None), "owner", None) for one in unet.modules())
            inside = next((owner for owner in owners if isinstance(owner, cls) and owner.unet is unet), None)
            if inside is None:
                inside = cls(unet)
                inside.inject()
            return inside

    @property
    def levels(self) -> tuple[int, ...]:
        """The resolutions that have self-attention, as divisors of the latents'."""
        return tuple(sorted({layer.level for layer in self.layers}))

    def inject(self) -> None:
        """Take the place of the attention processors.

        Raises:
            IdgenError: already in, or the UNet has processors other than diffusers' own.
        """
        if self._originals:
            raise IdgenError("this CacheKV is in its UNet already: eject() it first")
        processors = {name: self.unet.get_submodule(name).processor for name in (layer.name for layer in self.layers)}
        foreign = {
            type(one).__name__ for one in processors.values() if type(one) not in (AttnProcessor, AttnProcessor2_0)
        }
        if foreign:
            raise IdgenError(
                f"this UNet has {', '.join(sorted(foreign))}: CacheKV needs the default attention; eject what is in it first"
            )
        for layer in self.layers:
            self.unet.get_submodule(layer.name).processor = CacheProcessor(self, layer, processors[layer.name])
        self._originals = processors

    def eject(self) -> None:
        """Put the processors back that were there.

        Raises:
            IdgenError: it is not in, or others have taken its place since.
        """
        self._require_injected()
        modules = {name: self.unet.get_submodule(name) for name in self._originals}
        if any(getattr(module.processor, "owner", None) is not self for module in modules.values()):
            raise IdgenError(
                "other attention processors came after this CacheKV: take those out first, then eject() it"
            )
        for name, module in modules.items():
            module.processor = self._originals[name]
        self._originals = {}

    def build(self, latents: Tensor, levels: Iterable[int] | None = None) -> ReferenceCache:
        """The references' keys and values: one pass for all of them, which ends at the last layer that is asked for.

        Gradients flow if they are enabled.

        Args:
            latents: (people, references, channels, h, w), see `encode_references`.
            levels: resolutions at which the references are to be read, as divisors of the latents'; all by default.

        Raises:
            IdgenError: no references, more channels than the UNet takes, or a level without self-attention.
        """
        self._require_injected()
        if latents.ndim != 5 or 0 in latents.shape:
            raise IdgenError(
                f"reference latents have the shape {list(latents.shape)}, expected (people, references, channels, h, w)"
            )
        people, references, channels = latents.shape[:3]
        room = self.unet.config.in_channels - channels
        if room < 0:
            raise IdgenError(f"latents of {channels} channels do not fit a UNet of {self.unet.config.in_channels}")
        wanted = self._at(levels)
        writing = Writing(self, last=wanted[-1])
        sample = F.pad(latents.flatten(0, 1), (0, 0, 0, 0, 0, room))  # zeros in the place of the photo
        with calling(writing), suppress(Complete):
            self.unet(sample, 0)
        layers = {}
        for layer in wanted:
            key, value = (x.unflatten(0, (people, references)).flatten(1, 2) for x in writing.kept[layer.name])
            layers[layer.name] = CachedLayer(layer.level, key, value)  # (people, references * tokens, channels) each
        return ReferenceCache(layers, references, 1, self._signature())

    def null(
        self,
        size: tuple[int, int],
        references: int = 1,
        levels: Iterable[int] | None = None,
        device: torch.device | None = None,
    ) -> ReferenceCache:
        """The cache of references whose latents are zero, which guidance compares with: one row, computed once per model.

        Equal references have equal keys, so n of them weigh in the softmax as one with log(n) added to its logits.

        Args:
            size: (h, w) of the latents.
            references: how many of them there are to be.
            levels: as for `build`.
            device: where the UNet computes, which under offloading is not where its weights are.

        Raises:
            IdgenError: none, or a level without self-attention.
        """
        if references < 1:
            raise IdgenError(f"{references} null references: expected at least 1")
        unet = self.unet
        # Weights that changed since (a training step, other weights) have another version or another place.
        weights = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in unet.parameters()]
        device = device or unet.device
        key = (size, unet.dtype, device)
        known, cache = self._nulls.get(key, (None, None))
        if cache is None or known != weights:
            # Kept for later calls, which may train or compute in full precision.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
                zeros = torch.zeros(1, 1, unet.config.out_channels, *size, dtype=unet.dtype, device=device)
                cache = self.build(zeros)
            self._nulls[key] = (weights, cache)
        wanted = {layer.level for layer in self._at(levels)}
        return replace(cache.select(wanted), copies=references)

    @contextmanager
    def attend(self, cache: ReferenceCache | MergedCache) -> Iterator[None]:
        """Within the block, this thread's calls of the UNet read the references.

        A cache of one row serves a batch of any size, any other a batch of as many rows.

        Raises:
            IdgenError: the cache is of a UNet with other layers.
        """
        self._require_injected()
        for part in cache.parts if isinstance(cache, MergedCache) else (cache,):
            self._check_layers(part)
        with calling(Reading(self, cache)):
            yield

    def load(self, path: str | os.PathLike[str]) -> ReferenceCache:
        """A cache that `ReferenceCache.save` wrote, on the UNet's device.

        Raises:
            IdgenError: missing or damaged, or made by another model.
        """
        return self.check(ReferenceCache.read(path), str(path)).to(device=self.unet.device)

    def check(self, cache: ReferenceCache, what: str = "this cache") -> ReferenceCache:
        """The cache, if this model made it.

        Raises:
            IdgenError: another model did.
        """
        self._check_layers(cache)
        own = self._signature()
        if cache.signature.shape != own.shape or (cache.signature - own).norm() > SIGNATURE_TOLERANCE * own.norm():
            raise IdgenError(f"{what} was made by a model with other weights: build it again from the references")
        return cache

    def _at(self, levels: Iterable[int] | None) -> list[SelfAttention]:
        """The layers at some resolutions, in the order in which they run."""
        if levels is None:
            return self.layers
        wanted = set(levels)
        if not wanted or not wanted <= set(self.levels):
            raise IdgenError(
                f"this UNet has self-attention at the levels {self.levels}, not at all of {sorted(wanted)}"
            )
        return [layer for layer in self.layers if layer.level in wanted]

    def _check_layers(self, cache: ReferenceCache) -> None:
        widths = {layer.name: self.unet.get_submodule(layer.name).inner_kv_dim for layer in self.layers}
        for name, layer in cache.layers.items():
            if widths.get(name) != layer.key.shape[-1]:
                raise IdgenError(f"this cache is of another UNet ({name} differs): build it again with this one")

    def _signature(self) -> Tensor:
        """Some values of the weights, (64,) float32 on the CPU."""
        with align_module_device(self.unet.conv_in):  # its weights may be offloaded
            return self.unet.conv_in.weight.detach().flatten()[:SIGNATURE_VALUES].float().cpu()

    def _require_injected(self) -> None:
        if not self._originals:
            raise IdgenError("this CacheKV is not in its UNet: inject() it first")
