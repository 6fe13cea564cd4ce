"""The processes that `accelerate launch` started, each of which reads or makes a share of the pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from idgen.devices import resolve_device


@dataclass(frozen=True)
class Processes:
    """This process among `count`; alone by default.

    Attributes:
        state: accelerate's, where there are several.
    """

    index: int = 0
    count: int = 1
    state: Any = None

    @classmethod
    def of_accelerate(cls, device: str = "auto") -> Processes:
        """Join the processes of `accelerate launch` (or torchrun); alone where there is nobody else."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=device == "cpu")
        return cls(state.process_index, state.num_processes, state)

    def device(self, name: str) -> torch.device:
        """The device to compute on: of several processes on GPUs each has its own.

        Raises:
            IdgenError: a device that this machine lacks.
        """
        if self.state is not None and name in ("auto", "cuda"):
            return torch.device(self.state.device)
        return resolve_device(name)

    @property
    def main(self) -> bool:
        """Whether this is the one that scores and writes."""
        return self.index == 0

    def wait(self) -> None:
        """Until all are here: what each wrote can then be read by the others."""
        if self.state is not None:
            self.state.wait_for_everyone()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the first process do what the others then find done."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()
