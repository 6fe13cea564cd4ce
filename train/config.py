"""Typed settings of a training: defaults < YAML < `--set a.b=c` and `--field value`."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from idgen.errors import IdgenError
from idgen.settings import assign_text, build, read_yaml, split_assignments

Config = TypeVar("Config", bound="TrainConfig")


class TrainConfig(BaseModel):
    """What every stage has; a stage adds its own fields. Names follow diffusers' training flags where there is one."""

    model_config = ConfigDict(extra="forbid")

    output_dir: Path = Field(description="checkpoints, grids, log and the finished weights go here")
    seed: int = 0
    max_train_steps: int = Field(1000, ge=1)
    max_minutes: float | None = Field(
        None, gt=0, description="stop after so many minutes of training; the schedule then follows the clock"
    )
    train_batch_size: int = Field(64, ge=1, description="per process and backward pass")
    gradient_accumulation_steps: int = Field(1, ge=1, description="backward passes per step")
    gradient_checkpointing: bool = Field(
        False, description="keep fewer activations and compute them again for the gradients"
    )
    learning_rate: float = Field(6e-4, gt=0)
    lr_warmup_steps: int = Field(100, ge=0)
    lr_decay_share: float = Field(
        0.3, ge=0, le=1, description="the last part of the training, over which the rate falls to 0"
    )
    adam_weight_decay: float = Field(0.01, ge=0)
    adam_beta2: float = Field(0.99, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    mixed_precision: str = Field("bf16", pattern="^(no|bf16|fp16)$")
    num_threads: int | None = Field(
        None, ge=1, description="CPU threads; all cores that the process may use by default"
    )
    checkpointing_steps: int = Field(500, ge=1)
    checkpoints_total_limit: int = Field(2, ge=1)
    validation_steps: int = Field(500, ge=1)
    validation_at_start: bool = Field(True, description="also before the first step")
    log_steps: int = Field(20, ge=1)
    report_to: str = Field(
        "auto", description="accelerate's trackers, with commas; none; auto is TensorBoard where it is installed"
    )
    max_skipped_steps: int = Field(100, ge=0, description="end after more steps that were not finite")
    start_from: Path | None = Field(
        None, description="finished weights of the same stage to go on from, such as those that ship"
    )
    resume: bool = Field(True, description="go on from the newest whole checkpoint in output_dir")
    resume_changed: bool = Field(False, description="also with other settings than it was written with")
    dry_run: bool = Field(False, description="two real steps of few samples, in a folder that is thrown away")

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no(cls, value: Any) -> Any:
        return "no" if value is False else value  # what YAML reads `no` as

    def shrunk(self: Config) -> Config:
        """The settings of a dry run: as they are, with less of everything."""
        sizes = {
            "max_train_steps": 2,
            "max_minutes": None,
            "train_batch_size": min(self.train_batch_size, 4),
            "log_steps": 1,
            "validation_steps": 2,
            "checkpointing_steps": 2,
            "validation_at_start": False,
            "report_to": "none",
            "resume": False,
            "dry_run": False,
            "num_inference_steps": 2,
            "num_validation_images": 1,
        }
        return self.model_copy(update={name: value for name, value in sizes.items() if name in type(self).model_fields})


def parse_config(kind: type[Config], arguments: list[str] | None = None) -> Config:
    """Builds the settings of a stage from the command line.

    Raises:
        IdgenError: an unknown name (with the nearest one), a wrong value, or an unreadable file.
    """
    parser = argparse.ArgumentParser(description=kind.__doc__, allow_abbrev=False)
    parser.add_argument(
        "--config", type=Path, help="YAML file, or a recipe that ships, such as configs/mini/base.yaml or mini/base"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", help="one setting, dotted for nested ones"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings and stop")
    parser.add_argument("--dry-run", action="store_true", help="two real steps at tiny size, and nothing is kept")
    known, rest = parser.parse_known_args(arguments)
    values: dict[str, Any] = read_yaml(find_recipe(known.config)) if known.config else {}
    for name, text in [*split_assignments(known.set), *_flags(rest)]:
        assign_text(values, name, text)
    if known.dry_run:
        values["dry_run"] = True
    config = build(kind, values)
    if known.print_config:
        print(dump(config), end="")
        sys.exit(0)
    return config


def find_recipe(path: Path) -> Path:
    """The file that is asked for; where there is none, the recipe that ships under that name, with or without `configs/`
    before it and `.yaml` behind it. Any other path comes back as it is.

    Raises:
        IdgenError: there is none, but a recipe of nearly that name.
    """
    import idgen.configs

    root = Path(idgen.configs.__file__ or "").parent
    shipped = {file.relative_to(root).with_suffix("").as_posix(): file for file in root.rglob("*.yaml")}
    name = path.as_posix().removeprefix("configs/").removesuffix(".yaml")
    if path.exists() or name in shipped:
        return path if path.is_file() else shipped.get(name, path)
    near = difflib.get_close_matches(name, shipped, 1, 0.8)
    if near:
        raise IdgenError(f"there is no config {path}: did you mean {near[0]}?")
    return path


def dump(config: BaseModel) -> str:
    """The settings as YAML, in the order of their declaration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _flags(rest: list[str]) -> list[tuple[str, str]]:
    pairs = []
    words = iter(rest)
    for word in words:
        if not word.startswith("--"):
            raise IdgenError(f"unexpected argument {word!r}: settings are written as --name value")
        name, equals, value = word[2:].partition("=")
        if not equals:
            following = next(words, None)
            if following is None:
                raise IdgenError(f"--{name} lacks a value")
            value = following
        pairs.append((name.replace("-", "_"), value))
    return pairs
