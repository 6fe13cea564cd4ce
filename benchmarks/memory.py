"""How much memory a piece of work takes at its most."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """Bytes that a block held at its most, beyond what was held before it; known after the block."""

    bytes: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the block: on a GPU its tensors, else this process."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    _give_back()
    if CLEAR.exists():
        CLEAR.write_text("5")  # the largest size so far is forgotten
    before = largest_size()
    yield peak
    peak.bytes = max(0, largest_size() - before)  # the kernel counts by processor, and rounds


def _give_back() -> None:
    """What was freed goes back to the system, where the C library (glibc) can: used again by the block it would not be seen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def largest_size() -> int:
    """Of this process so far, in bytes. (What `resource` says includes the process that started it.)"""
    if STATUS.exists():
        return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
