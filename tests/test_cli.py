"""The promises that every command of `idgen` keeps: one line for a mistake, stdout for JSON alone, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import idgen.commands
from idgen import cli

GREET = '''
"""A command that does a little of everything."""
import argparse, os, sys, warnings
from pathlib import Path
from idgen.errors import IdgenError

HELP: str = "greet " "someone"

def add_arguments(parser):
    parser.add_argument("name")

def run(args):
    print("chatter of a library")
    os.write(1, b"chatter of a C library\\n")
    warnings.warn("a library grumbles")
    if args.name == "in-the-middle":
        from idgen.console import progress
        for _ in progress(range(3), desc="greeting"):
            raise IdgenError("lost the voice")
    if args.name == "nobody":
        raise IdgenError("no one to greet:\\n  name someone")
    if args.name == "bug":
        raise ValueError("first line\\nsecond line")
    if args.name == "ctrl-c":
        raise KeyboardInterrupt
    return {"name": args.name, "seed": args.seed, "device": args.device, "dtype": args.dtype,
            "path": Path("a/b"), "score": float("nan"), "scores": (1.5, float("inf"))}
'''


@pytest.fixture(autouse=True)
def greet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command folder with `greet` and a neighbour that must never be imported."""
    folder = tmp_path / "commands"
    folder.mkdir()
    (folder / "greet.py").write_text(GREET)
    (folder / "broken.py").write_text('HELP = "never imported by others"\nraise RuntimeError("imported")\n')
    monkeypatch.setattr(cli, "COMMANDS", folder)
    monkeypatch.setattr(idgen.commands, "__path__", [str(folder)])
    monkeypatch.delitem(sys.modules, "idgen.commands.greet", raising=False)
    monkeypatch.delenv("IDGEN_DEBUG", raising=False)


def run(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, list[str]]:
    """Exit code, stdout, and what `idgen` itself said on stderr."""
    status = cli.main(list(argv))
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return status, out, [line for line in err.splitlines() if line.startswith("idgen: ")]


def test_json_prints_one_object_and_nothing_else_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, said = run(capfd, "greet", "Ann", "--json", "--seed", "7", "--device", "cpu", "--dtype", "bf16")
    assert (status, said) == (0, [])
    assert json.loads(out) == {
        "name": "Ann",
        "seed": 7,
        "device": "cpu",
        "dtype": "bf16",
        "path": str(Path("a/b")),
        "score": None,
        "scores": [1.5, None],
    }


def test_without_json_stdout_is_empty_and_chatter_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["greet", "Ann"]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "chatter of a library" in err and "chatter of a C library" in err


def test_warnings_of_libraries_are_for_debugging_only(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["greet", "Ann"]) == 0
    assert "grumbles" not in capfd.readouterr().err
    monkeypatch.setenv("IDGEN_DEBUG", "1")
    with pytest.warns(UserWarning, match="grumbles"):
        assert cli.main(["greet", "Ann"]) == 0


def test_the_common_flags_have_defaults(capfd: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capfd, "greet", "Ann", "--json")
    assert {key: json.loads(out)[key] for key in ("seed", "device", "dtype")} == {
        "seed": 0,
        "device": "auto",
        "dtype": "auto",
    }


def test_a_mistake_is_one_line_and_status_2(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "greet", "nobody", "--json") == (2, "", ["idgen: no one to greet: name someone"])


def test_a_mistake_found_in_the_middle_of_the_work_starts_a_new_line(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, said = run(capfd, "greet", "in-the-middle")
    assert (status, out, said) == (2, "", ["idgen: lost the voice"])


def test_a_bug_is_one_line_and_status_1(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, said = run(capfd, "greet", "bug", "--json")
    assert (status, out) == (1, "")
    assert said == [
        "idgen: ValueError: first line second line (this is a bug; rerun with IDGEN_DEBUG=1 for the traceback)"
    ]


def test_idgen_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDGEN_DEBUG", "1")
    with pytest.raises(ValueError, match="first line"):
        cli.main(["greet", "bug"])


def test_an_interrupt_is_one_line_and_status_130(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "greet", "ctrl-c", "--json") == (130, "", ["idgen: interrupted"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["gret"], "unknown command 'gret': did you mean 'greet'?"),
        (["xyz"], "unknown command 'xyz': the commands are broken, greet"),
        (["greet"], "the following arguments are required: name (see idgen greet --help)"),
        (["greet", "Ann", "--sed", "1"], "unrecognized arguments: --sed 1 (see idgen greet --help)"),
        (["greet", "Ann", "--seed", "-1"], "'-1' is not a whole number from 0 to 2^63 - 1"),
        (["greet", "Ann", "--seed", "1e3"], "'1e3' is not a whole number from 0 to 2^63 - 1"),
        (["greet", "Ann", "--device", "tpu"], "'tpu' is not one of auto, cpu, cuda, cuda:N"),
        (["greet", "Ann", "--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_a_typing_mistake_is_one_line_that_names_it(
    argv: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, lines = run(capfd, *argv)
    assert (status, out, len(lines)) == (2, "", 1)
    assert said in lines[0]


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_the_overview_lists_every_command_without_importing_any(
    argv: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capfd, *argv)
    assert status == 0
    assert "greet   greet someone" in out
    assert "broken  never imported by others" in out
    assert "idgen.commands.greet" not in sys.modules


def test_the_overview_begins_with_what_one_tries_first(capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("doctor", "convert", "demo"):
        (cli.COMMANDS / f"{name}.py").write_text('HELP = "does something"\n')
    assert cli.command_names() == ["demo", "convert", "doctor", "broken", "greet"]
    listed = [line.split()[0] for line in run(capfd, "--help")[1].splitlines() if line.startswith("  ")]
    assert listed == cli.command_names()


def test_version_is_that_of_the_package(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "--version")[:2] == (0, f"idgen {idgen.__version__}\n")


def test_help_of_a_command_exits_with_0(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["greet", "--help"])
    assert done.value.code == 0
    assert "--json" in capfd.readouterr().out


def test_import_idgen_takes_under_0_3_s_and_loads_no_framework() -> None:
    code = "import sys, idgen; assert not {'torch', 'numpy', 'diffusers', 'transformers'} & set(sys.modules)"
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3


def test_the_console_command_is_installed_and_survives_a_closed_pipe() -> None:
    idgen_command = Path(sys.executable).with_name("idgen")
    with subprocess.Popen([idgen_command, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
