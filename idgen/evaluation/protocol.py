"""Protocols: what is generated from which photos, who judges it, and which figures are taken, as YAML.

The ones that ship lie in configs/protocols and are asked for by name; a file of one's own is asked for by its path.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from idgen.errors import IdgenError
from idgen.settings import assign_text, build, read_yaml, split_assignments

Task = Literal["generate", "restore", "inpaint", "verify"]
Layout = Literal["folders", "photos", "ffhq_ref", "celebahq_idi", "rendered", "bin", "ijb"]
# What can be measured, in the order of the report; measures.py says what each needs.
Measure = Literal[
    "identity",
    "verification",
    "retrieval",
    "nearest_training_person",
    "same_appearance",
    "detection",
    "diversity",
    "sharpness",
    "landmarks",
    "psnr",
    "ssim",
    "fid",
    "kid",
    "lpips",
    "niqe",
    "musiq",
    "clip_t",
    "prompt_words",
]
MEASURES: tuple[str, ...] = get_args(Measure)


class _Typed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RenderedPeople(_Typed):
    """People who are rendered when no photos are given: numbers of seed 0 whom no training of the mini family saw."""

    first: int = Field(300_000, ge=0, description="300000 and up are the test people, 200000 and up validation people")
    count: int = Field(100, ge=2)
    others: int = Field(10, ge=1, description="photos of each person that are not references")
    size: int = Field(128, ge=32, le=1024)
    training: int = Field(1800, ge=0, description="training people among whom the nearest is sought")
    lookalikes: int = Field(3, ge=0, description="people of the same appearance and another head, for each")
    prompts_per_value: int = Field(6, ge=1, description="captions that name each value of an attribute")


class Protocol(_Typed):
    """The rules of one evaluation."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    title: str
    source: str = Field(description="where the rules stand: a paper, a repository, a page")
    task: Task = "generate"
    layout: Layout = "folders"
    person: str | None = Field(None, description="layout photos: regular expression; its first group names the person")
    references: int = Field(4, ge=1, description="the first photos of each person, which the others never are")
    shown: int | None = Field(None, ge=1, description="how many of them the generator sees; all when not given")
    images: int = Field(4, ge=1, description="generated for each person and prompt")
    prompts: list[str] = []
    pipeline: str = Field("Arc2FacePipeline", description="class of idgen.pipelines, where the weights do not tell")
    call: dict[str, Any] = Field(default_factory=dict, description="arguments of the pipeline's call")
    identity_guidance: float = Field(
        0.0, ge=0, le=1, description="how strongly the recogniser that embeds the references guides the later steps"
    )
    masks: str = Field("mask", description="layout celebahq_idi: folder of masks, named after the pictures")
    judge: str = Field("judge", description="the recogniser that measures: as FaceEncoder.from_pretrained takes it")
    measures: list[Measure] = ["identity", "detection", "sharpness"]
    fars: list[float] = [1e-2, 1e-3]
    features: str = Field(
        "judge", description="network of FID and KID: judge, probe, inception, or a transformers folder"
    )
    probe: bool = Field(False, description="pose and expression by the mini family's probe (synthetic people only)")
    rendered: RenderedPeople | None = None
    published: dict[str, dict[str, float]] = Field(default_factory=dict, description="rows of the paper's table")
    notes: list[str] = Field(default_factory=list, description="where this departs from the paper; shown in the report")

    @field_validator("fars")
    @classmethod
    def _rates(cls, rates: list[float]) -> list[float]:
        if not rates or any(not 0 < rate < 1 for rate in rates):
            raise ValueError("false accept rates lie between 0 and 1")
        return rates

    @property
    def seen(self) -> int:
        """How many references the generator sees."""
        return min(self.shown or self.references, self.references)


def protocols_folder() -> Path:
    """Where the protocols that ship lie."""
    import idgen.configs

    return Path(idgen.configs.__file__ or "").parent / "protocols"


def protocol_names() -> list[str]:
    """The protocols that ship."""
    return sorted(path.stem for path in protocols_folder().glob("*.yaml"))


def load_protocol(name: str, settings: list[str] | None = None) -> Protocol:
    """A protocol by name, or of a YAML file.

    Args:
        name: one of `protocol_names()`, or a path that ends in .yaml or .yml.
        settings: `a.b=value` texts that replace single settings, as `--set` gives them.

    Raises:
        IdgenError: an unknown name (with the nearest one), an unknown setting (the same), or a wrong value.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
    elif name in protocol_names():
        path = protocols_folder() / f"{name}.yaml"
    else:
        near = difflib.get_close_matches(name, protocol_names(), 1, 0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(protocol_names())}"
        raise IdgenError(f"unknown protocol {name!r}: {hint} (or name a .yaml file)")
    values = read_yaml(path)
    values.setdefault("name", path.stem)
    for setting, text in split_assignments(settings or []):
        assign_text(values, setting, text)
    return build(Protocol, values, where=f"protocol {path.name}: ")
