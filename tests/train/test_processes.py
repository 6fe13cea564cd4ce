"""Trainings in processes of their own: killed at any instant, in pairs, sharded; and the commands as they are typed."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from idgen.checkpoint import load_weights
from idgen.train.checkpoints import damage, newest_first
from idgen.train.train_log import read_log

REPO = Path(__file__).parents[2]
SHORT = {"max_train_steps": 6, "checkpointing_steps": 3, "validation_steps": 3, "train_batch_size": 4, "log_steps": 1}
PLAIN = {"mixed_precision": "no", "num_threads": 1, "report_to": "none", "learning_rate": 0.05, "lr_warmup_steps": 0}


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO, env=variables, timeout=240)


def train(launcher: list[str], out: Path, module: str = "toy", **more: Any) -> subprocess.CompletedProcess[str]:
    settings = SHORT | PLAIN | {"output_dir": out} | more
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    sharded = {"ACCELERATE_USE_FSDP": "true"} if module == "toy_sharded" else {}
    done = run([*launcher, "-m", f"tests.train.{module}", *words], ACCELERATE_USE_CPU="true", **sharded)
    assert done.returncode == 0, done.stderr
    return done


ONE = [sys.executable]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def losses(folder: Path) -> list[float]:
    rows = [row for row in read_log(folder / "log.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def test_killed_twenty_times_a_training_has_the_loss_curve_of_an_unbroken_one(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = run([sys.executable, "-m", "tests.train.toy", "kill", "20", str(whole), str(broken), "1"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"killed": 20, "while_writing": 10}
    assert losses(whole) == losses(broken) and len(losses(whole)) == 60
    one, other = (load_weights(folder / "weights" / "toy.safetensors") for folder in (whole, broken))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert all(damage(path) is None for path in newest_first(broken)) and len(newest_first(broken)) == 2
    assert not [path for path in broken.iterdir() if path.name.startswith(".checkpoint")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process that makes each step of two batches."""
    out = tmp_path_factory.mktemp("alone")
    train(ONE, out, gradient_accumulation_steps=2, dropout=0)
    return out


@pytest.mark.parametrize("module", ["toy", "toy_sharded"])
def test_two_processes_learn_what_one_does_from_the_same_batches(module: str, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    # In two parts: what two processes wrote, two go on from.
    train(TWO, out, module, dropout=0, max_train_steps=3, lr_decay_share=0)
    assert "resumed at step 3" in train(TWO, out, module, dropout=0, resume_changed=True).stderr
    assert losses(out) == pytest.approx(losses(alone), abs=1e-4)
    one, other = (load_weights(folder / "weights" / "toy.safetensors") for folder in (alone, out))
    for name, value in one.items():
        assert torch.allclose(value, other[name], atol=1e-4), name
    newest = newest_first(out)[0]
    assert damage(newest) is None and json.loads((newest / "manifest.json").read_text())["processes"] == 2


def test_two_processes_train_an_autoencoder_against_its_critic(people_folder: Path, tmp_path: Path) -> None:
    settings = SHORT | PLAIN | {"output_dir": tmp_path, "data": people_folder, "validation": people_folder}
    settings |= {"max_train_steps": 2, "train_batch_size": 1, "adversarial_weight": 0.5, "adversarial_start": 0.4}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    done = run([*TWO, "-m", "idgen.train.autoencoder", *words], ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    critic, both = [row for row in read_log(tmp_path / "log.jsonl") if "loss" in row]
    assert "adversarial" not in critic and all(math.isfinite(both[name]) for name in ("critic", "adversarial"))


def test_two_processes_agree_on_the_clock_and_end_together(tmp_path: Path) -> None:
    done = train(TWO, tmp_path, max_minutes=0.01, max_train_steps=10**6, log_steps=1000, validation_at_start=False)
    assert done.stderr.count("M trained parameters") == 1 and (tmp_path / "weights" / "toy.safetensors").exists()


def test_a_full_disk_is_one_line_and_the_checkpoint_before_it_is_whole(tmp_path: Path) -> None:
    train(ONE, tmp_path, max_train_steps=3)
    assert [path.name for path in newest_first(tmp_path)] == ["checkpoint-3"]
    # A limit on the size of files refuses writes as a full disk does, in the middle of a file.
    script = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000));"
        " sys.argv[0] = 'toy'; runpy.run_module('tests.train.toy', run_name='__main__')"
    )
    settings = SHORT | PLAIN | {"output_dir": tmp_path, "validation_steps": 100}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    done = run([sys.executable, "-c", script, *words])
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("idgen: cannot write ") and "File too large" in last
    assert [path.name for path in newest_first(tmp_path)] == ["checkpoint-3"] and damage(
        newest_first(tmp_path)[0]
    ) is None
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".checkpoint")]
    assert "resumed at step 3" in train(ONE, tmp_path).stderr
    whole = tmp_path / "whole"
    train(ONE, whole)
    assert losses(whole)[3:] == losses(tmp_path)[3:]


@pytest.mark.parametrize("way", [["train/recogniser.py"], ["-m", "idgen.train.recogniser"]])
def test_scripts_and_modules_answer_alike(way: list[str], tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "1"]
    words = ["--config", "configs/mini/recogniser.yaml", "--set", "seed=5", "--learning-rate", "0.5", "--print-config"]
    done = run([*launch, *way, *words])
    assert done.returncode == 0, done.stderr
    assert "seed: 5\n" in done.stdout and "learning_rate: 0.5\n" in done.stdout


def test_no_module_of_a_training_is_named_like_one_that_others_import() -> None:
    names = {path.stem for path in (REPO / "train").glob("*.py")} - {"__init__"}
    assert not names & set(sys.stdlib_module_names)
    assert not names & {path.split(".")[0] for path in _installed()}


def _installed() -> list[str]:
    import site

    return [entry for folder in site.getsitepackages() for entry in os.listdir(folder)]


def test_dry_run_of_a_recipe_by_its_flag(people_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(people_folder, data)
    words = ["--config", "configs/mini/preference.yaml", "--output_dir", str(tmp_path / "out"), "--data", str(data)]
    done = run([sys.executable, "train/preference.py", *words, "--validation", str(data), "--dry-run"])
    assert done.returncode == 0, done.stderr
    assert "step 2 " in done.stderr and "nothing was kept" in done.stderr.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"data"}
