"""From the words `auto`, `cuda`, `bf16` to torch's devices and dtypes."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from idgen.errors import IdgenError

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "fp32", "bf16", "fp16")


def usable_cores() -> int:
    """CPU cores that this process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:1` as a device that exists.

    Raises:
        IdgenError: an unknown word, or a CUDA device that this machine lacks.
    """
    import torch

    name = str(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not is_device_name(name):
        raise IdgenError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise IdgenError(
                f"device {name!r} asked for, but torch {torch.__version__} sees no CUDA device: use --device cpu, or install"
                " a CUDA build of torch and check the driver with nvidia-smi"
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise IdgenError(
                f"device {name!r} does not exist: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}"
            )
    return device


def resolve_dtype(name: str | torch.dtype = "auto", device: str | torch.device = "cpu") -> torch.dtype:
    """`fp32`, `bf16`, `fp16`, or for `auto` the fastest one that `device` computes in hardware.

    Raises:
        IdgenError: an unknown word.
    """
    import torch

    if isinstance(name, torch.dtype):
        return name
    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name in names:
        return names[name]
    if name != "auto":
        raise IdgenError(f"unknown dtype {name!r}: use one of {', '.join(DTYPES)}")
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


def is_device_name(name: str) -> bool:
    """Whether `name` is a word that `resolve_device` knows (the device itself may still be absent)."""
    return re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is not None


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AMX, AVX-512 BF16, or Arm's bf16); without it bf16 is slower than fp32."""
    return bool(cpu_features() & {"amx_bf16", "avx512_bf16", "bf16"})


def cpu_features() -> set[str]:
    """The vector and matrix extensions of this CPU that matter here, by the names of torch.cpu.get_capabilities."""
    import torch

    known = (
        "avx2",
        "avx512_f",
        "avx512_bf16",
        "avx512_fp16",
        "amx_tile",
        "amx_bf16",
        "amx_fp16",
        "neon",
        "bf16",
        "sve",
    )
    ask = getattr(torch.cpu, "get_capabilities", None)  # torch >= 2.11; before it, only Linux tells
    if ask is not None:
        return {name for name in known if ask().get(name)}
    try:
        with open("/proc/cpuinfo") as lines:
            words = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    except OSError:
        return set()
    return set(known) & {word.replace("avx512f", "avx512_f") for word in words}
