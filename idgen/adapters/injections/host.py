"""Lets adapters into a UNet, and out again without a trace.

A UNet that adapters share has one host. It stands in for the attention processors and, where a call brings identities, runs
the attention with the parts of that call; without them it runs the processor that was there before. It holds no
weights and nothing of any call: those come through `cross_attention_kwargs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor

from idgen.adapters.call import KEY, Active, Conditioning, Step
from idgen.adapters.injections.joint import joint_attention
from idgen.adapters.injections.parts import DecoupledPart, GatedPart, JointPart, LowRankPart, Projection, follow
from idgen.adapters.injections.products import merge_heads, split_heads
from idgen.adapters.layers import AttentionLayer, attention, attention_layers, transformer_block
from idgen.errors import IdgenError

ATTRIBUTE = "_idgen_host"  # of a UNet with adapters


def enter(unet: UNet2DConditionModel, adapter: object, name: str) -> None:
    """Let an adapter in under a name.

    Raises:
        IdgenError: the name is taken, the adapter is in already, or somebody else's adapter occupies the UNet.
    """
    host = getattr(unet, ATTRIBUTE, None) or Host(unet)
    if name in host.adapters:
        raise IdgenError(f"this UNet already has an adapter named {name!r}: give another name, or eject that one first")
    if not host.adapters:
        host.install()
        setattr(unet, ATTRIBUTE, host)
    host.adapters[name] = adapter


def leave(unet: UNet2DConditionModel, adapter: object) -> None:
    """Let an adapter out; the last one to leave restores the UNet exactly."""
    host: Host = getattr(unet, ATTRIBUTE)
    host.adapters = {name: one for name, one in host.adapters.items() if one is not adapter}
    if not host.adapters:
        host.remove()
        delattr(unet, ATTRIBUTE)


def adapters_of(unet: torch.nn.Module) -> dict[str, object]:
    """The adapters in a UNet by name, in the order they came."""
    host: Host | None = getattr(unet, ATTRIBUTE, None)
    return dict(host.adapters) if host else {}


class Host:
    """What stands in a UNet while it has adapters."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.adapters: dict[str, object] = {}
        self.layers = attention_layers(unet)
        self._remove: list[Callable[[], object]] = []
        self._unet = unet

    def install(self) -> None:
        """Take the place of every attention processor, and of the gate between a block's attentions."""
        unet = self._unet
        foreign = {
            type(processor).__name__
            for processor in unet.attn_processors.values()
            if type(processor) not in (AttnProcessor, AttnProcessor2_0)
        }
        if foreign:
            raise IdgenError(
                f"this UNet has {', '.join(sorted(foreign))}: idgen's adapters need the default attention;"
                " unload_ip_adapter(), or unet.set_default_attn_processor(), then inject again"
            )
        if hasattr(unet, "position_net"):
            raise IdgenError("this is a GLIGEN UNet: its gates are taken, adapters can not enter it")
        self._replace(unet, "position_net", _pass_on, None)
        for layer in self.layers:
            module = attention(unet, layer)
            self._replace(module, "processor", HostProcessor(layer, module.processor), module.processor)
            if layer.cross:
                self._replace(transformer_block(unet, layer), "fuser", HostFuser(layer), None)
        self._remove.append(unet.register_forward_pre_hook(_before_forward, with_kwargs=True).remove)

    def remove(self) -> None:
        """Undo `install`; what somebody else has replaced since is left alone."""
        for undo in reversed(self._remove):
            undo()
        self._remove.clear()

    def _replace(self, owner: torch.nn.Module, name: str, ours: object, before: object | None) -> None:
        """Set an attribute that is no module, and remember how to take it back."""
        setattr(owner, name, ours)

        def undo() -> None:
            if owner.__dict__.get(name) is not ours:
                return
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

        self._remove.append(undo)


class HostProcessor:
    """An attention layer's processor that lets the parts of a call act."""

    def __init__(self, layer: AttentionLayer, original: Callable[..., Tensor]) -> None:
        self.layer, self.original = layer, original

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        idgen: Step | None = None,
    ) -> Tensor:
        if idgen is not None:
            for normed, mask in idgen.norms.pop(self.layer.name, ()):
                hidden_states = normed if mask is None else hidden_states + mask.to(normed) * (normed - hidden_states)
            entries = idgen.active(self.layer.name, hidden_states)
            if entries:
                return _attend_all(attn, hidden_states, encoder_hidden_states, attention_mask, entries)
        return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


class HostFuser:
    """What a block calls between its two attentions when a call brings gated parts."""

    def __init__(self, layer: AttentionLayer) -> None:
        self.layer = layer

    def __call__(self, hidden: Tensor, step: Step) -> Tensor:
        norms = []
        for entry in step.active(self.layer.block, hidden):
            for active in entry:
                assert isinstance(active.part, GatedPart)
                hidden = _where(active.mask, active.part.act(hidden, active.scale), hidden)
                if active.part.norm is not None:
                    norms.append((active.part.norm, active.mask))
        if norms:  # of what all parts have made, as the block's own norm would see it
            step.norms[self.layer.name] = [(follow(norm, hidden), mask) for norm, mask in norms]
        return hidden


def _before_forward(unet: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Turns a call's conditioning into what it is at this timestep."""
    options = kwargs.get("cross_attention_kwargs")
    if not options or not isinstance(options.get(KEY), Conditioning):
        return None
    conditioning: Conditioning = options[KEY]
    inside = adapters_of(unet).values()
    for entry in conditioning.entries:
        if not any(entry.adapter is one for one in inside):
            raise IdgenError(f"the adapter {entry.adapter.method!r} is not in this UNet: inject() it first")
    sample = kwargs["sample"] if "sample" in kwargs else args[0]
    timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
    step = Step.at(conditioning, sample, timestep)
    options = {**options, KEY: step}
    if any(
        isinstance(part, GatedPart)
        for entry in conditioning.entries
        for parts in entry.parts.values()
        for part in parts
    ):
        options["gligen"] = {"objs": step}
    return args, {**kwargs, "cross_attention_kwargs": options}


def _pass_on(objs: Step) -> Step:
    """In the place of GLIGEN's network for boxes: a UNet passes what it returns to every block."""
    return objs


def _attend_all(
    attn: Attention, hidden: Tensor, context: Tensor | None, mask: Tensor | None, entries: list[list[Active]]
) -> Tensor:
    """All entries that act at a layer.

    Parts that only add to the text attention's result are masked and scaled each by itself. Low-rank and joint parts change
    that result as a whole; under a mask, or a joint one at a scale other than 1, their entry's layer is run beside the plain
    one and blended with it.
    """
    together = [entry for entry in entries if not _needs_blending(entry)]
    out = attend(attn, hidden, context, mask, [active for entry in together for active in entry])
    apart = [entry for entry in entries if _needs_blending(entry)]
    if apart:
        plain = attend(attn, hidden, context, mask, []) if together else out
        for entry in apart:
            joint = next((active for active in entry if isinstance(active.part, JointPart)), None)
            unmasked = [Active(active.part, active.scale, None) for active in entry]
            change = attend(attn, hidden, context, mask, unmasked) - plain
            out = out + _masked(change if joint is None else joint.scale * change, entry[0].mask)
    return out


def _needs_blending(entry: list[Active]) -> bool:
    for active in entry:
        if isinstance(active.part, LowRankPart) and active.mask is not None:
            return True
        plain = isinstance(active.scale, float) and active.scale == 1.0
        if isinstance(active.part, JointPart) and (active.mask is not None or not plain):
            return True
    return False


def attend(
    attn: Attention, hidden: Tensor, context: Tensor | None, mask: Tensor | None, actives: list[Active]
) -> Tensor:
    """diffusers' AttnProcessor2_0 for the attention of a transformer block, with parts."""
    low_ranks = [active for active in actives if isinstance(active.part, LowRankPart)]
    joints = [active.part for active in actives if isinstance(active.part, JointPart)]

    def project(name: Projection, module: torch.nn.Module, x: Tensor) -> Tensor:
        result = module(x)
        for active in low_ranks:
            assert isinstance(active.part, LowRankPart)
            result = active.part.change(name, result, x, active.scale)
        return result

    rows = len(hidden)
    source = hidden if context is None else context
    query = project("q", attn.to_q, hidden)
    key, value = project("k", attn.to_k, source), project("v", attn.to_v, source)
    if mask is not None:
        mask = attn.prepare_attention_mask(mask, source.shape[1], rows).view(rows, attn.heads, -1, source.shape[1])
    if joints:
        text = joint_attention(attn.heads, hidden, query, key, value, mask, joints)
    else:
        apart, keys, values = (split_heads(x, attn.heads) for x in (query, key, value))
        text = merge_heads(F.scaled_dot_product_attention(apart, keys, values, attn_mask=mask))
    total = text
    for active in actives:
        if isinstance(active.part, DecoupledPart):
            total = _where(active.mask, active.part.act(total, query, text, attn.heads, active.scale), total)
    return attn.to_out[1](project("out", attn.to_out[0], total))


def _where(mask: Tensor | None, changed: Tensor, plain: Tensor) -> Tensor:
    """Changed where the mask is white."""
    return changed if mask is None else plain + mask.to(plain) * (changed - plain)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask.to(x)
