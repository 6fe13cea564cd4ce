"""What every test runs under: no network, and no more threads than it has cores for."""

from __future__ import annotations

import os

# Before anything imports torch or huggingface_hub: a test that reaches for the hub must fail at once, not wait.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each: the workers are the parallelism
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


def pytest_configure() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
