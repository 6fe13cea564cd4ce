"""Captioned photos of people from where they usually lie: a folder, tar shards (webdataset), or a Hugging Face data set.

    folder        anna/1.jpg, anna/1.txt, ben/1.jpg; or metadata.jsonl with file_name, text, person (Hugging Face's imagefolder)
    webdataset    shards of 0001.jpg, 0001.txt, 0001.json ({"person": ..., "text": ...})
    datasets      a hub id, or a folder of `Dataset.save_to_disk`, with columns for image, text and person

A source is read once, from the beginning to the end; nothing is decoded here, so that a damaged file harms nobody but itself.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from idgen.errors import IdgenError
from idgen.imageio import load_array, open_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
METADATA = "metadata.jsonl"
# What a column or key may be called where it is not given; the names of the field's data sets.
CAPTIONS, PEOPLE = ("text", "caption", "prompt", "txt"), ("person", "identity", "label", "id", "cls")


class UnreadablePhotoError(IdgenError):
    """A photo whose file can not be read, is no image or is damaged, or whose face can not be aligned: the others can be used
    without it."""


class SourceConfig(BaseModel):
    """Where photos come from. Names follow diffusers' training flags where there is one."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(
        description="a folder, shards (a folder of .tar, or names such as shards/{000..003}.tar), or a hub id"
    )
    kind: Literal["auto", "folder", "webdataset", "datasets"] = Field("auto", description="auto looks at the path")
    split: str = Field("train", description="datasets: the split")
    image_column: str = "image"
    caption_column: str | None = Field(None, description="by default text, caption, prompt or txt")
    person_column: str | None = Field(None, description="by default person, identity, label, id or cls")
    caption: str = Field("", description="of photos that have none")


@dataclass(frozen=True)
class Photo:
    """One photo, unread.

    Attributes:
        name: in reports.
        caption: what it shows.
        person: who; photos of the same name show the same person. Its own name where nobody says.
        read: its file's bytes.
    """

    name: str
    caption: str
    person: str
    read: Callable[[], bytes]


def open_photos(config: SourceConfig) -> Iterator[Photo]:
    """The photos of a source, in an order that does not change.

    Raises:
        IdgenError: no such source, nothing in it, or a package that it needs is not installed.
    """
    kind = config.kind if config.kind != "auto" else _guess(config.path)
    found = {"folder": _folder, "webdataset": _shards, "datasets": _dataset}[kind](config)
    first = next(found, None)
    if first is None:
        raise IdgenError(f"no photos in {config.path}: {_wanted(kind)}")
    yield first
    yield from found


def decode(data: bytes, name: str) -> np.ndarray:
    """(height, width, 3) uint8 RGB, upright.

    Raises:
        UnreadablePhotoError: it is no image, or damaged.
    """
    if not data:
        raise UnreadablePhotoError(f"{name} is empty (0 bytes)")
    try:
        image = open_image(io.BytesIO(data))
    except Exception as error:  # each of Pillow's decoders fails in its own way
        raise UnreadablePhotoError(f"{name} is not an image that can be read") from error
    try:
        return load_array(image)
    except IdgenError as error:
        raise UnreadablePhotoError(str(error).replace("the image", name, 1)) from error


def _guess(path: str) -> str:
    folder = Path(path)
    if path.endswith(".tar") or (folder.is_dir() and any(folder.glob("*.tar"))):
        return "webdataset"
    if folder.is_dir():
        saved = (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()
        return "datasets" if saved else "folder"
    # `name` alone is a folder that is missing; `owner/name` may be either, and the hub is asked last.
    looks_like_hub = path.count("/") == 1 and not path.startswith((".", "/", "~", "data/", "runs/"))
    return "datasets" if looks_like_hub else "folder"


def _folder(config: SourceConfig) -> Iterator[Photo]:
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise IdgenError(f"no folder {root}: give a folder of photos, shards or a data set as data.path")
    listed = root / METADATA
    if listed.exists():
        yield from _listed(root, listed, config)
        return
    for file in sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()):
        name = file.relative_to(root)
        person = str(name.parent) if name.parent != Path(".") else str(name)
        side = file.with_suffix(".txt")
        try:
            words = " ".join(side.read_text(encoding="utf-8").split()) if side.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise IdgenError(f"cannot read the caption {side}: {error}") from None
        yield Photo(str(name), words or config.caption, person, file.read_bytes)


def _listed(root: Path, listed: Path, config: SourceConfig) -> Iterator[Photo]:
    for number, line in enumerate(listed.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            file = root / row["file_name"]
        except (ValueError, KeyError, TypeError):
            raise IdgenError(f"{listed}, line {number}: write one JSON object a line, with file_name") from None
        caption, person = _said(row, config)
        yield Photo(str(row["file_name"]), caption, person or str(row["file_name"]), file.read_bytes)


def _shards(config: SourceConfig) -> Iterator[Photo]:
    try:
        import webdataset
    except ImportError:
        raise IdgenError("shards are read by the package webdataset: pip install webdataset") from None
    folder = Path(config.path).expanduser()
    shards: Any = sorted(str(path) for path in folder.glob("*.tar")) if folder.is_dir() else config.path
    pipeline = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    try:
        for sample in pipeline:
            suffix = next((name for name in sample if f".{name.lower()}" in SUFFIXES), None)
            if suffix is None:
                continue
            row = {key: value for key, value in sample.items() if key in (*CAPTIONS, *PEOPLE)}
            if "json" in sample:
                row |= _object(sample["json"])
            caption, person = _said(row, config)
            name = str(sample["__key__"])
            yield Photo(f"{name}.{suffix}", caption, person or name, partial(bytes, sample[suffix]))
    except tarfile.TarError as error:  # webdataset adds the shard's name at the end
        raise IdgenError(
            f"cannot read the shard {error.args[-1]}: it is cut off or no tar file, copy it again"
        ) from error
    except (OSError, ValueError) as error:
        raise IdgenError(f"cannot read the shards {config.path}: {' '.join(str(error).split())[:200]}") from error


def _dataset(config: SourceConfig) -> Iterator[Photo]:
    try:
        import datasets
    except ImportError:
        raise IdgenError("data sets of the hub are read by the package datasets: pip install datasets") from None
    saved = Path(config.path).expanduser()
    try:
        found: Any = datasets.load_from_disk(str(saved)) if saved.is_dir() else datasets.load_dataset(config.path)
        data = found[config.split] if isinstance(found, datasets.DatasetDict) else found
        data = data.cast_column(config.image_column, datasets.Image(decode=False))
    except Exception as error:  # the package raises errors of its own for every way in which this can fail
        reason = " ".join(str(error).split())[:200]
        raise IdgenError(f"cannot open the data set {config.path}, split {config.split!r}: {reason}") from error
    for number in range(len(data)):
        row = data[number]
        image = row.pop(config.image_column)
        caption, person = _said(row, config)
        name = f"{config.split} {number}"

        def read(image: Any = image) -> bytes:
            return image["bytes"] if image.get("bytes") is not None else Path(image["path"]).read_bytes()

        yield Photo(name, caption, person or name, read)


def _said(row: dict[str, Any], config: SourceConfig) -> tuple[str, str]:
    """The caption and the person of a row; empty where it says neither.

    Raises:
        IdgenError: a column that is named in the settings and is not there.
    """
    out = []
    for wanted, usual, setting in (
        (config.caption_column, CAPTIONS, "caption_column"),
        (config.person_column, PEOPLE, "person_column"),
    ):
        if wanted is not None and wanted not in row:
            raise IdgenError(f"{config.path} has no column {wanted!r}: set data.{setting} to one of {', '.join(row)}")
        key = wanted or next((name for name in usual if name in row), None)
        value = None if key is None else row[key]
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)
        out.append(" ".join(text.split()))
    return out[0] or config.caption, out[1]


def _object(value: Any) -> dict[str, Any]:
    try:
        made = json.loads(value) if isinstance(value, bytes | str) else value
    except ValueError:
        return {}
    return made if isinstance(made, dict) else {}


def _wanted(kind: str) -> str:
    return {
        "folder": f"put images there ({', '.join(SUFFIXES)}), those of one person in a folder of their own",
        "webdataset": "shards hold NAME.jpg, NAME.txt and NAME.json",
        "datasets": "the split is empty",
    }[kind]
