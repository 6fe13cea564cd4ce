"""The console command `idgen`: finds the sub-commands, parses, runs one, and turns what went wrong into one line."""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from idgen.console import end_progress, say
from idgen.devices import DTYPES, is_device_name
from idgen.errors import IdgenError
from idgen.version import __version__

COMMANDS = Path(__file__).parent / "commands"
# The order in which --help lists them, from the first that one tries; others follow by name.
ORDER = ("demo", "embed", "generate", "restore", "inpaint", "personalise", "evaluate", "synth", "convert", "doctor")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `idgen` and return its exit status: 0 done, 2 the user's mistake, 130 interrupted, 1 a bug."""
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except IdgenError as error:
        end_progress()
        say(f"idgen: {' '.join(str(error).split())}")
        return 2
    except KeyboardInterrupt:
        end_progress()
        say("idgen: interrupted")
        return 130
    except BrokenPipeError:  # the reader of stdout went away: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the flush at exit does not complain either
        return 1
    except Exception as error:
        if os.environ.get("IDGEN_DEBUG"):
            raise
        end_progress()
        line = " ".join(f"{type(error).__name__}: {error}".split())
        say(f"idgen: {line} (this is a bug; rerun with IDGEN_DEBUG=1 for the traceback)")
        return 1


def command_names() -> list[str]:
    """The sub-commands, the modules in idgen/commands, in the order of `ORDER`."""
    names = sorted(path.stem for path in COMMANDS.glob("*.py") if not path.stem.startswith("_"))
    return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        print(f"idgen {__version__}")
        return 0
    name = argv[0]
    if name not in command_names():
        raise IdgenError(_unknown(name))
    with _quiet_libraries():
        command = import_module(f"idgen.commands.{name}")
        parser = _Parser(prog=f"idgen {name}", description=command.HELP, allow_abbrev=False)
        command.add_arguments(parser)
        _add_common_flags(parser)
        args = parser.parse_args(argv[1:])
        with _stdout_to_stderr():
            result = command.run(args)
    if args.json:
        print(json.dumps(_plain(result), allow_nan=False), flush=True)
    return 0


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line and the same exception as every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise IdgenError(f"{message} (see {self.prog} --help)")


def _add_common_flags(parser: argparse.ArgumentParser) -> None:
    common = parser.add_argument_group("common to every command")
    common.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    common.add_argument("--seed", type=_seed, default=0, metavar="INT", help="of everything random (default: 0)")
    common.add_argument("--device", type=_device, default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    common.add_argument("--dtype", choices=DTYPES, default="auto", help="what the networks compute in (default: auto)")


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^63 - 1")
    return int(text)


def _device(text: str) -> str:
    if not is_device_name(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of auto, cpu, cuda, cuda:N")
    return text


def _overview() -> str:
    names = command_names()
    width = max(map(len, names))
    lines = [f"  {name:{width}}  {_help_of(name)}" for name in names]
    return "\n".join(
        [
            "usage: idgen COMMAND [options]   (idgen COMMAND --help tells the options)",
            "",
            *lines,
            "",
            "Every command takes --json, --seed, --device and --dtype. idgen --version prints the version.",
        ]
    )


def _help_of(name: str) -> str:
    """The HELP line of a command, read from its source: importing every command to list them would be slow."""
    for statement in ast.parse((COMMANDS / f"{name}.py").read_text(encoding="utf-8")).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "HELP" for target in targets):
            return str(ast.literal_eval(statement.value))  # type: ignore[attr-defined]
    raise AttributeError(f"idgen/commands/{name}.py has no HELP")


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, command_names(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(command_names())}"
    return f"unknown command {name!r}: {hint}"


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep back what libraries warn of: deprecations and optional packages tell the user of a command nothing."""
    if os.environ.get("IDGEN_DEBUG"):
        yield
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send what a command or a library prints to stderr, C libraries and worker processes included."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: paths as text, numpy and torch scalars as numbers, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


if __name__ == "__main__":
    sys.exit(main())
