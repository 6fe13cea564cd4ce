"""CelebAHQ-IDI: CelebA-HQ by identity, with references and pictures to fill (Xu et al., WACV 2024).

The layout as its authors publish it (github.com/AtlantixJJ/PVA-CelebAHQ-IDI): `image/0.jpg`, ...; `annotation/idi-N.json`, in
which every person has N references, for N of 1 to 5, 10, 15, 20; `annotation/region_bbox.pth`, the regions' boxes in pictures of
1024 px; `annotation/dialog/captions_hq.json` of CelebA-Dialog; `mask/*.png`, free-form masks. People are split 60 : 10 : 30.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from idgen.checkpoint import load_weights
from idgen.data.faces import CACHE
from idgen.data.regions import Box, strokes
from idgen.errors import IdgenError
from idgen.imageio import load_image

Split = Literal["train", "val", "test"]
RESOLUTION = 1024  # of the boxes
# The authors' names of the regions that they paint over.
REGIONS = {"lowerface": "lowerface", "brows": "eyebrow", "whole": "wholeface"}


@dataclass(frozen=True)
class IDIPerson:
    """One identity: names of its reference pictures, and of those to fill."""

    name: str
    references: tuple[str, ...]
    targets: tuple[str, ...]


class CelebAHQIDI:
    """One split of the data set, as `idgen.data.portraits.Portraits`.

    Attributes:
        listed: the split's people as the authors divide their pictures.
        files: the pictures' names, in the order in which they are numbered here.
        people: for every person the numbers of all pictures, references first.
        size: side of the pictures that `picture` and `hole` give.
    """

    def __init__(
        self, folder: str | os.PathLike[str], split: Split = "train", references: int = 5, size: int = 512
    ) -> None:
        """
        Raises:
            IdgenError: a file is missing or something else, or there is no such setting of references.
        """
        self.folder, self.size = Path(folder), size
        self.cache = self.folder / CACHE
        self.listed = _read_people(self.folder, split, references)
        self.files = [name for person in self.listed for name in (*person.references, *person.targets)]
        ends = np.cumsum([len(person.references) + len(person.targets) for person in self.listed])
        self.people = np.split(np.arange(len(self.files)), ends[:-1])
        self._boxes = _read_boxes(self.folder)
        self._captions = _read_json(self.folder / "annotation" / "dialog" / "captions_hq.json", {})
        self._masks = sorted((self.folder / "mask").glob("*.png"))

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, index: int) -> np.ndarray:
        image = load_image(self.folder / "image" / self.files[index])
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR))

    def box(self, region: str, index: int) -> Box:
        """The authors' box of a region: top, left, bottom, right at our size."""
        number = _number(self.files[index])
        boxes = self._boxes[REGIONS[region]]
        if number >= len(boxes):
            raise IdgenError(f"annotation/region_bbox.pth of {self.folder} has no box for {self.files[index]}")
        top, left, bottom, right = (int(edge * self.size / RESOLUTION) for edge in boxes[number].tolist())
        return top, left, bottom, right

    def hole(self, index: int, rng: np.random.Generator | None) -> np.ndarray:
        region = str(rng.choice(list(REGIONS))) if rng else "whole"
        top, left, bottom, right = self.box(region, index)
        mask = self._free_form(rng) if rng else np.zeros((self.size, self.size), bool)
        mask[top:bottom, left:right] = True
        return mask

    def caption(self, index: int) -> str:
        entry = self._captions.get(self.files[index], {})
        return str(entry.get("overall_caption", "")) if isinstance(entry, dict) else ""

    def _free_form(self, rng: np.random.Generator) -> np.ndarray:
        if not self._masks:
            return strokes((self.size, self.size), rng).copy()
        image = load_image(self._masks[int(rng.integers(len(self._masks)))])
        return np.asarray(image.convert("L").resize((self.size, self.size), Image.Resampling.NEAREST)) >= 128


def _read_people(folder: Path, split: Split, references: int) -> list[IDIPerson]:
    path = folder / "annotation" / f"idi-{references}.json"
    if not path.is_file():
        there = sorted(int(file.stem[4:]) for file in path.parent.glob("idi-*.json") if file.stem[4:].isdigit())
        hint = f"it has {', '.join(map(str, there))}" if there else "is it the folder of CelebAHQ-IDI?"
        raise IdgenError(
            f"{folder} has no setting of {references} references (annotation/idi-{references}.json): {hint}"
        )
    content = _read_json(path)
    try:
        parts = {str(name): part for name, part in content["id2image"].items()}
        people = [
            IDIPerson(str(name), tuple(map(str, parts[str(name)]["ref"])), tuple(map(str, parts[str(name)]["infer"])))
            for name in content[f"{split}_ids"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise IdgenError(f"{path} is not CelebAHQ-IDI's annotation ({type(error).__name__} {error})") from None
    if not people:
        raise IdgenError(f"{path} has nobody in its {split} split")
    return people


def _read_boxes(folder: Path) -> dict[str, np.ndarray]:
    path = folder / "annotation" / "region_bbox.pth"
    tensors = load_weights(path)
    missing = [name for name in REGIONS.values() if f"bboxes.{name}" not in tensors]
    if missing:
        raise IdgenError(f"{path} has no boxes of {', '.join(missing)}: it is not CelebAHQ-IDI's")
    return {name: tensors[f"bboxes.{name}"].numpy() for name in REGIONS.values()}


def _read_json(path: Path, default: Any = None) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if default is None:
            raise IdgenError(f"no such file: {path}") from None
        return default
    except (OSError, ValueError) as error:
        raise IdgenError(f"{path} is not JSON ({error})") from None


def _number(file: str) -> int:
    """Pictures are named by their number in CelebA-HQ: 17.jpg, or 17_0.jpg."""
    stem = Path(file).stem.split("_")[0]
    if not stem.isdigit():
        raise IdgenError(f"the picture {file!r} is not named by its number in CelebA-HQ")
    return int(stem)
