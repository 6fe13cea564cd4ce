"""FFHQ-Ref: faces with other photos of the same person (Hsiao et al., NeurIPS 2024, arXiv 2412.05043), and its layout elsewhere.

The layout as its authors publish it (github.com/ChiWeiHsiao/ref-ldm): `images512x512/00000.png`, ...;
`reference_mapping/{train,val,test}_references.csv` with the columns gt_image, ref_image (a list as Python writes it) and, for
test pictures, lq_image; `id_based_ffhq_split/{train,val,test}.txt`, one picture a line, no person in two of them.
`idgen synth --format ffhq-ref` writes the same over its own pictures.
"""

from __future__ import annotations

import ast
import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from idgen.checkpoint import sha256
from idgen.data.encoded import encode_identities, encode_latents
from idgen.data.faces import CACHE, FaceFolder
from idgen.data.portraits import embed_portraits
from idgen.errors import IdgenError
from idgen.files import atomic_write
from idgen.imageio import load_image
from idgen.losses.identity import face_region

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
TABLES, LISTS, PICTURES = "reference_mapping", "id_based_ffhq_split", "images512x512"
# Of FFHQ-Ref's 6,523 people, 300 are in val and 150 in test.
SHARES = {"val": 300 / 6523, "test": 150 / 6523}


@dataclass(frozen=True)
class Row:
    """One line of a table: names of a photo, of others of the same person, and of a damaged copy where there is one."""

    target: str
    references: tuple[str, ...]
    degraded: str | None = None


class ReferencePhotos(Protocol):
    """Aligned photos by number, and for some of them which others show the same person.

    Attributes:
        targets: numbers of the photos to restore.
        references: for each of them the numbers of others of the person; none where only single photos are known.
        landmarks: (photos, 5, 2) px, or None: the faces lie as in FFHQ.
    """

    targets: np.ndarray
    references: list[np.ndarray]
    landmarks: np.ndarray | None

    def picture(self, index: int) -> np.ndarray:
        """uint8 (size, size, 3), sRGB."""

    def latents(self, vae: Any, weights: Path, device: torch.device) -> np.ndarray:
        """(photos, channels, h, w) scaled latents of all photos, computed once; `weights` is the file `vae` came from."""

    def identities(self, recogniser: Any, weights: Path, device: torch.device) -> np.ndarray:
        """(photos, dim) unit embeddings of all photos, computed once; `weights` is the file `recogniser` came from."""


class SynthReferences:
    """A folder of `idgen synth`: each photo's references are the person's other shots."""

    def __init__(self, data: FaceFolder, size: int) -> None:
        if data.images.shape[1] != size:
            raise IdgenError(f"the pictures in {data.folder} have {data.images.shape[1]} px, and {size} are asked for")
        self.data = data
        shots = [one for one in data.shots if len(one) > 1]
        self.targets = np.concatenate([*shots, np.zeros(0, np.int64)])
        self.references = [np.delete(one, index) for one in shots for index in range(len(one))]
        self.landmarks: np.ndarray | None = data.landmarks

    def picture(self, index: int) -> np.ndarray:
        return self.data.images[index]

    def latents(self, vae: Any, weights: Path, device: torch.device) -> np.ndarray:
        return encode_latents(self.data, vae, weights, device)

    def identities(self, recogniser: Any, weights: Path, device: torch.device) -> np.ndarray:
        return _unit(encode_identities(self.data, recogniser, weights, device))


class FFHQRef:
    """One split of FFHQ-Ref, or of a folder in its layout.

    Attributes:
        files: the photos' names, in the order in which they are numbered here.
        cache: a folder for what is computed once.
    """

    def __init__(self, folder: Path, split: Split, size: int, *, alone: bool = False) -> None:
        if alone:
            rows = [Row(name, ()) for name in _read_list(folder / LISTS / f"{split}.txt")]
        else:
            rows = read_table(folder / TABLES / f"{split}_references.csv")
        self.size = size
        self.root = folder / PICTURES if (folder / PICTURES).is_dir() else folder
        numbers: dict[str, int] = {}
        for row in rows:
            for name in (row.target, *row.references):
                numbers.setdefault(name, len(numbers))
        self.files = list(numbers)
        self.targets = np.array([numbers[row.target] for row in rows], np.int64)
        self.references = [np.array([numbers[name] for name in row.references], np.int64) for row in rows]
        self.landmarks: np.ndarray | None = None
        self.cache = folder / CACHE / f"{split}-{size}"

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, index: int) -> np.ndarray:
        image = load_image(self.root / self.files[index])
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return np.asarray(image)

    def latents(self, vae: Any, weights: Path, device: torch.device) -> np.ndarray:
        def encode(pictures: Tensor, _: np.ndarray) -> Tensor:
            return vae.encode(pictures).latents * vae.config.scaling_factor

        return embed_portraits(cast(Any, self), encode, f"latents-{sha256(weights)[:12]}", device)

    def identities(self, recogniser: Any, weights: Path, device: torch.device) -> np.ndarray:
        def embed(pictures: Tensor, _: np.ndarray) -> Tensor:
            return recogniser(face_region(pictures))

        return _unit(embed_portraits(cast(Any, self), embed, f"identities-{sha256(weights)[:12]}", device))


def open_references(folder: str | os.PathLike[str], split: Split, size: int, *, alone: bool = False) -> ReferencePhotos:
    """The photos of a folder in FFHQ-Ref's layout, or else of all people of an `idgen synth` folder.

    Args:
        alone: no references are wanted: FFHQ has more photos than those with references.

    Raises:
        IdgenError: neither, a table that is damaged, or no photo with references where they are to be told from people.
    """
    folder = Path(folder)
    data: ReferencePhotos
    if (folder / TABLES).is_dir():
        data = FFHQRef(folder, split, size, alone=alone)
    else:
        data = SynthReferences(FaceFolder.open(folder), size)
    if not len(data.targets):
        raise IdgenError(f"{folder} has no photo to restore in {split!r}: a person needs two photos or more")
    return data


def read_table(path: Path) -> list[Row]:
    """The rows of a table of references.

    Raises:
        IdgenError: it can not be read, or is something else.
    """
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            return [
                Row(line["gt_image"], _names(line["ref_image"]), line.get("lq_image") or None)
                for line in csv.DictReader(stream)
            ]
    except OSError as error:
        raise IdgenError(f"cannot read {path}: {error.strerror}") from None
    except (KeyError, ValueError, SyntaxError, TypeError, csv.Error) as error:
        raise IdgenError(f"{path} is not FFHQ-Ref's table of gt_image, ref_image ({type(error).__name__})") from None


def write_tables(folder: Path, people: Sequence[Sequence[str]]) -> None:
    """Tables and lists over pictures that are there: the last people are val's and test's, in FFHQ-Ref's shares.

    Args:
        people: for every person the names of the pictures, from the folder.
    """
    counts = {name: max(1, round(share * len(people))) if len(people) > 2 else 0 for name, share in SHARES.items()}
    ends = {"train": len(people) - sum(counts.values()), "val": len(people) - counts["test"], "test": len(people)}
    start = 0
    for split in SPLITS:
        shown, start = people[start : ends[split]], ends[split]
        with atomic_write(folder / LISTS / f"{split}.txt") as temporary:
            temporary.write_text("".join(f"{name}\n" for names in shown for name in names), encoding="utf-8")
        with (
            atomic_write(folder / TABLES / f"{split}_references.csv") as temporary,
            temporary.open("w", newline="") as file,
        ):
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["gt_image", "ref_image"])
            for names in shown:
                table.writerows([name, repr([one for one in names if one != name])] for name in names if len(names) > 1)


def _names(text: str) -> tuple[str, ...]:
    names = ast.literal_eval(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(text)
    return tuple(names)


def _unit(embeddings: np.ndarray) -> np.ndarray:
    raw = np.asarray(embeddings, np.float32)
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def _read_list(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise IdgenError(f"cannot read {path}: {error.strerror}") from None
