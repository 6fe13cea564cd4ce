"""Several processes share the reading, and one scores: the figures are those of one process alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation import toys

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import pytest
from tests.evaluation import toys
from idgen.cli import main
toys.with_toys(pytest.MonkeyPatch())
sys.exit(main(sys.argv[1:]))
"""


def launch(processes: int, *words: str) -> list[subprocess.CompletedProcess[str]]:
    """What `accelerate launch --cpu --num_processes N` does, without its start-up time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = []
    for rank in range(processes):
        several = {"WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | (several | address if processes > 1 else {}) | {"ACCELERATE_USE_CPU": "true"}
        arguments = [sys.executable, "-c", SCRIPT, *words]
        running.append(
            subprocess.Popen(
                arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    done = []
    for process in running:
        out, err = process.communicate(timeout=240)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    people = toys.write_people(tmp_path / "people", 5, 6)
    made = toys.write_generated(tmp_path / "made", 5, 3)
    settings = ["--set", "probe=false", "--set", "features=judge", "--made-with", "mini", "--device", "cpu", "--json"]
    words = ["evaluate", str(made), "--references", str(people), *settings]
    (alone,) = launch(1, *words, "--out", str(tmp_path / "one"))
    first, second = launch(2, *words, "--out", str(tmp_path / "two"))
    assert (alone.returncode, first.returncode, second.returncode) == (0, 0, 0), first.stderr + second.stderr
    assert json.loads(second.stdout) == {}
    figures, expected = (json.loads(one.stdout)["metrics"] for one in (first, alone))
    assert figures.keys() == expected.keys()
    for name, figure in figures.items():  # batches are cut in other places: equal but for the last bits
        assert figure["value"] == pytest.approx(expected[name]["value"], abs=1e-5), name
    files = list((tmp_path / "two" / "cache" / "readings").rglob("*.npz"))
    assert len(files) > len(list((tmp_path / "one" / "cache" / "readings").rglob("*.npz")))
