"""The words for devices and dtypes, and what they mean on this machine."""

from __future__ import annotations

import os

import pytest
import torch

from idgen import devices
from idgen.devices import resolve_device, resolve_dtype, usable_cores
from idgen.errors import IdgenError


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "tpu", "cuda:", "cuda:x", ""])
def test_an_unknown_device_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(IdgenError, match=f"unknown device '{name}'"):
        resolve_device(name)


def test_an_absent_cuda_device_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(IdgenError, match="sees no CUDA device: use --device cpu"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(IdgenError, match="'cuda:2' does not exist: this machine has cuda:0 to cuda:1"):
        resolve_device("cuda:2")


def test_dtypes_by_name_and_by_torch_dtype() -> None:
    words = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert {word: resolve_dtype(word, "cpu") for word in words} == words
    assert resolve_dtype(torch.float64, "cpu") is torch.float64
    with pytest.raises(IdgenError, match="unknown dtype 'int8': use one of auto, fp32, bf16, fp16"):
        resolve_dtype("int8", "cpu")


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        ({"avx2", "avx512_f", "amx_tile", "amx_bf16"}, torch.bfloat16),
        ({"avx512_bf16"}, torch.bfloat16),
        ({"neon", "bf16"}, torch.bfloat16),
        ({"avx2", "avx512_f"}, torch.float32),
        (set(), torch.float32),
    ],
)
def test_auto_on_a_cpu_is_bf16_only_where_the_hardware_has_it(
    features: set[str], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_features", lambda: features)
    assert resolve_dtype("auto", "cpu") is dtype


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds a process to cores")
def test_a_process_that_is_bound_to_one_core_counts_one() -> None:
    before = os.sched_getaffinity(0)
    assert usable_cores() == len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
