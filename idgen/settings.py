"""Settings in YAML with types: an unknown name or a wrong value is one line that says which, and the nearest name."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from idgen.errors import IdgenError

Settings = TypeVar("Settings", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The names and values of a YAML file.

    Raises:
        IdgenError: the file can not be read, is not YAML, or holds something else than names and values.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise IdgenError(f"cannot read the config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise IdgenError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise IdgenError(f"{path} must hold names and values, such as `seed: 1`")
    return values


def assign(values: dict[str, Any], name: str, value: Any) -> None:
    """Set `a.b` in nested dicts, making those that are not there.

    Raises:
        IdgenError: `a` is there and holds something else than names.
    """
    *path, last = name.split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise IdgenError(f"setting {name!r}: {part!r} has no settings of its own")
    values[last] = value


def assign_text(values: dict[str, Any], name: str, text: str) -> None:
    """`assign` of a value as it is typed on a command line: YAML.

    Raises:
        IdgenError: the text is not YAML.
    """
    try:
        assign(values, name, yaml.safe_load(text))
    except yaml.YAMLError:
        raise IdgenError(f"setting {name!r}: {text!r} is not a YAML value: quote it") from None


def split_assignments(settings: list[str]) -> list[tuple[str, str]]:
    """`--set name=value` as pairs.

    Raises:
        IdgenError: one without an equals sign.
    """
    for setting in settings:
        if "=" not in setting:
            raise IdgenError(f"--set {setting}: write it as name=value")
    return [(setting.split("=", 1)[0], setting.split("=", 1)[1]) for setting in settings]


def build(kind: type[Settings], values: dict[str, Any], where: str = "") -> Settings:
    """The settings that `values` give.

    Args:
        where: begins the error, for example the file's name and a colon.

    Raises:
        IdgenError: an unknown name (with the nearest one), a missing one, or a wrong value.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        raise IdgenError(where + _explain(error, kind)) from None
    except TypeError:  # a name that is no text: `1: x` in YAML
        raise IdgenError(f"{where}the names of settings are words") from None


def _explain(error: ValidationError, kind: type[BaseModel]) -> str:
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = _nearest(name, list(_names(kind)))
        return f"unknown setting {name!r}" + (f": did you mean {near!r}?" if near else "")
    if problem["type"] == "missing":
        return f"the setting {name!r} is missing: give it in the YAML file or as --{name} VALUE"
    return f"setting {name!r}: {problem['msg'].lower()}, got {problem['input']!r}"


def _nearest(name: str, known: list[str]) -> str | None:
    """The known dotted name whose last part is most like a name's: of several, the one beside it, then the outermost."""
    group, _, last = name.rpartition(".")
    paths = {path.rpartition(".")[2]: path for path in reversed(known)}
    for path in known:
        there, _, end = path.rpartition(".")
        if fnmatchcase(group, there):
            paths[end] = f"{group}.{end}" if group else end
    begins = [one for one in paths if last.startswith(f"{one}_")]  # `resume_from_checkpoint`, where ours is `resume`
    near = difflib.get_close_matches(last, list(paths), 1, 0.5)
    if last in paths or not begins:
        return paths[near[0]] if near else None
    return paths[max(begins, key=len)]


def _names(kind: type[BaseModel], group: str = "") -> Iterator[str]:
    """All names, dotted, with those of settings within settings; a star stands for a name that a user chooses."""
    for name, field in kind.model_fields.items():
        yield group + name
        chosen = "*." if get_origin(field.annotation) is dict else ""
        for part in (field.annotation, *get_args(field.annotation)):  # `Part | None` as well as `Part`
            if isinstance(part, type) and not isinstance(part, types.GenericAlias) and issubclass(part, BaseModel):
                yield from _names(part, f"{group}{name}.{chosen}")
