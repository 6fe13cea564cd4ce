"""What the pipelines have in common, where several of them share networks and the adapter in a UNet."""

from __future__ import annotations

from functools import reduce
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import is_compiled_module
from torch import nn

from idgen.adapters.base import Adapter
from idgen.adapters.call import KEY
from idgen.errors import IdgenError

Self = TypeVar("Self", bound="SharedNetworks")
AnyAdapter = TypeVar("AnyAdapter", bound=Adapter)


class SharedNetworks(DiffusionPipeline):
    """Goes ahead of diffusers' class: `from_pipe` leaves the networks that two pipelines share as they are."""

    # Attributes that another pipeline of the same UNet has too, the adapter's name first; none where there is no adapter.
    _along: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_pipe(cls: type[Self], pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """diffusers' `from_pipe`, in the networks' own dtypes; an adapter that is in its UNet is shared too."""
        own: list[tuple[nn.Module, torch.dtype]] = []
        if "dtype" not in kwargs and "torch_dtype" not in kwargs:
            # diffusers casts all networks, the shared ones too, to one dtype: to the widest, which loses nothing, and back.
            parts = (pipeline.components | kwargs).values()
            own = [(part, next(part.parameters()).dtype) for part in parts if isinstance(part, nn.Module)]
            kwargs["dtype"] = reduce(torch.promote_types, (dtype for _, dtype in own)) if own else pipeline.dtype
        pipe = super().from_pipe(pipeline, **kwargs)
        for part, dtype in own:
            part.to(dtype)
        if cls._along:
            adapter = getattr(pipeline, cls._along[0], None)
            if adapter is not None and adapter.unet is bare(pipe.unet):
                for name in cls._along:
                    setattr(pipe, name, getattr(pipeline, name))
        return pipe


class EndsGuidance(SharedNetworks):
    """Goes ahead of a Stable Diffusion pipeline: a callback may end the guidance before the steps do."""

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        """What diffusers' loop hands to the UNet."""
        return for_guidance(self._cross_attention_kwargs, self.do_classifier_free_guidance)


def for_guidance(kwargs: dict[str, Any] | None, guided: bool) -> dict[str, Any] | None:
    """A call's `cross_attention_kwargs`; where its guidance has ended, with the rows with identity alone.

    The pipeline knows this. The UNet can not tell it from a conditioning that was made for twice as many pictures.
    """
    if not kwargs or KEY not in kwargs or guided or not kwargs[KEY].guided:
        return kwargs
    return kwargs | kwargs[KEY].positive().kwargs


def bare(module: Any) -> Any:
    """A module as it was before torch.compile: that is what an adapter is in."""
    return module._orig_mod if is_compiled_module(module) else module


def inside(adapter: AnyAdapter | None, unet: Any, title: str, load: str) -> AnyAdapter:
    """A pipeline's adapter, which must be in its UNet.

    Args:
        title: what users know it as.
        load: the call that loads one.
    Raises:
        IdgenError: there is none, or another pipeline of the same UNet has taken it out.
    """
    if adapter is None:
        raise IdgenError(f"no {title} in this pipeline: {load}")
    if adapter.unet is not bare(unet):
        raise IdgenError(f"the {title} is not in this pipeline's UNet any more: {load} again")
    return adapter


def take_out(adapter: Adapter | None, unet: Any) -> None:
    """Eject a pipeline's adapter from its UNet, unless another pipeline of the same UNet has done so."""
    if adapter is not None and adapter.unet is bare(unet):
        adapter.eject()
