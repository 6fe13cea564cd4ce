"""Every command that the README and the docs show is one that idgen takes: flags, settings, recipes, protocols."""

from __future__ import annotations

import argparse
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from idgen import cli
from idgen.evaluation.protocol import load_protocol
from idgen.train.config import parse_config
from tests.recipes import config_class

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "examples" / "README.md", *(ROOT / "docs").glob("*.md")])
LINE = re.compile(
    r"^(?: {4})?(?:[A-Z_]+=\S+ )?(idgen|accelerate launch|python -m idgen\.train\.\w+) (.*)$", re.MULTILINE
)


def commands() -> list[Any]:
    """Lines that begin like a command, in a fenced block or an indented one; a `\\` joins the next line."""
    return [
        pytest.param(
            program, shlex.split(re.sub(r" >.*", "", words), comments=True), id=f"{page.stem}-{program} {words}"[:90]
        )
        for page in PAGES
        for program, words in LINE.findall(re.sub(r" *\\\n *", " ", page.read_text()))
    ]


def test_the_docs_show_commands() -> None:
    programs = [command.values[0].split(".")[0] for command in commands()]
    assert programs.count("idgen") >= 25
    assert programs.count("accelerate launch") >= 12
    assert programs.count("python -m idgen") >= 15


@pytest.mark.parametrize(("program", "words"), commands())
def test_a_command_of_the_docs_is_one_that_idgen_takes(
    program: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    if "..." in words:  # accelerate launch -m idgen evaluate ...
        assert words[words.index("idgen") + 1] in cli.command_names()
    elif program == "idgen":
        parsed = idgen_arguments(words, monkeypatch)
        if words[0] == "evaluate":
            load_protocol(parsed.protocol, parsed.set)
    else:
        script = words.pop(0) if program == "accelerate launch" else f"train/{program.rpartition('.')[2]}.py"
        assert (ROOT / script).is_file()
        parse_config(config_class(Path(script).stem), words)


def idgen_arguments(words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What the command's own parser makes of a line."""
    given: list[argparse.Namespace] = []
    monkeypatch.setattr(import_module(f"idgen.commands.{words[0]}"), "run", given.append)
    assert cli._main(words) == 0
    return given[0]
