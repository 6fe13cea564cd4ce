"""What every test runs under: no network, and no more threads than it has cores for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything imports torch or huggingface_hub: a test that reaches for the hub must fail at once, not wait.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What a developer's shell may have set: tests see what ships.
os.environ.pop("IDGEN_MINI", None)
os.environ.pop("IDGEN_DEBUG", None)
os.environ.pop("INSIGHTFACE_HOME", None)
os.environ.pop("WORLD_SIZE", None)
if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each: the workers are the parallelism
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from idgen import cli

if TYPE_CHECKING:
    from PIL import Image

    from tests.renders import Refused


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws does not depend on which tests ran before it in the same process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh_accelerator(request: pytest.FixtureRequest) -> Iterator[None]:
    """accelerate keeps the precision of a process's first training."""
    trains = {"train", "benchmarks"} & set(request.path.parts)
    if trains:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
    yield
    if trains:
        AcceleratorState._reset_state(reset_partial_state=True)


def pytest_configure() -> None:
    # Started in the background by a shell, the suite and its children would be deaf to the Ctrl-C that some tests send.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def portrait() -> Image.Image:
    """A frontal face of 256 px."""
    from tests.renders import portraits

    return portraits(1)[0]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Run a command that must be refused; return the one line that says why."""

    def run(*argv: str | Path) -> str:
        before = _snapshot(tmp_path)
        status = cli.main([str(word) for word in argv])
        out, err = capfd.readouterr()
        said = [line for line in err.splitlines() if line.startswith("idgen: ")]
        assert (status, out, len(said)) == (2, "", 1), err
        assert "Traceback" not in err
        assert _snapshot(tmp_path) == before, "something was left behind"
        return said[0]

    return run


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}
