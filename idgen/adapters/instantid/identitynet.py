"""How IdentityNet, a ControlNet, comes to read faces where other ControlNets read the prompt.

diffusers' pipelines hand the prompt to every ControlNet. IdentityNet listens: during a call it takes the faces of that call
instead. They lie in a context variable, which each thread has for itself, so nothing of a call is stored on the network.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor

from idgen.adapters.call import Conditioning
from idgen.adapters.instantid.adapter import face_tokens
from idgen.errors import IdgenError


@dataclass(frozen=True, eq=False, repr=False)
class FaceCall:
    """The faces of one call, for the UNet and for IdentityNet.

        with FaceCall(net, conditioning).speaking():
            net(latents, timestep, encoder_hidden_states=prompt, ...)  # reads the faces, not the prompt

    Attributes:
        net: IdentityNet; other ControlNets of the call are not touched.
        conditioning: made by an InstantID adapter.
    """

    net: ControlNetModel
    conditioning: Conditioning

    @cached_property
    def tokens(self) -> Tensor:
        """(rows, tokens, dim)."""
        return face_tokens(self.conditioning)

    def rows(self, count: int) -> Tensor:
        """The tokens for a batch of so many rows: all, or with guidance the rows with identity alone (guess mode).

        Raises:
            IdgenError: another number of rows.
        """
        if count == len(self.tokens):
            return self.tokens
        if self.conditioning.guided and 2 * count == len(self.tokens):
            return self.tokens[count:]
        raise IdgenError(f"IdentityNet was called with {count} rows, and there are faces for {len(self.tokens)}")

    @contextmanager
    def speaking(self) -> Iterator[FaceCall]:
        """Within, IdentityNet reads these faces; in this thread only."""
        _listen(self.net)
        before = _CALL.set(self)
        try:
            yield self
        finally:
            _CALL.reset(before)


def current_call() -> FaceCall | None:
    """The call that this thread is in."""
    return _CALL.get()


_CALL: ContextVar[FaceCall | None] = ContextVar("idgen_instantid_call", default=None)
_LISTENING = threading.Lock()


def _listen(net: torch.nn.Module) -> None:
    """Once per network; without a call the network is as it was."""
    with _LISTENING:
        if _hear not in net._forward_pre_hooks.values():
            net.register_forward_pre_hook(_hear, with_kwargs=True)


def _hear(net: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    call = _CALL.get()
    if call is None or call.net is not net:
        return None
    sample = kwargs["sample"] if "sample" in kwargs else args[0]
    tokens = call.rows(len(sample)).to(sample)
    if len(args) > 2:
        return (*args[:2], tokens, *args[3:]), kwargs
    return args, {**kwargs, "encoder_hidden_states": tokens}
