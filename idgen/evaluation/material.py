"""What an evaluation is about: people, their references and other photos, and the pictures made of them.

A photo is a file or pixels in memory; `layouts.py` fills this from folders, `rendered.py` from the renderer.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from idgen.errors import IdgenError
from idgen.imageio import load_array

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
# Lie beside pictures in any data set and are none.
BESIDE = frozenset({".md", ".jsonl"})


@dataclass(frozen=True, eq=False)
class Photo:
    """One picture of one person.

    Attributes:
        source: its file, or (height, width, 3) uint8 RGB.
        name: what tables call it.
        person: index in `Material.people` (or in the crowd that it belongs to).
        prompt: what it was asked to show.
        target: the picture that it should have become (restoration, inpainting).
        rival: of several people of the same appearance, which.
    """

    source: Path | np.ndarray
    name: str
    person: int
    prompt: str = ""
    target: Photo | None = None
    rival: int = 0

    def pixels(self) -> np.ndarray:
        """(height, width, 3) uint8 RGB."""
        return load_array(self.source)

    def digest(self) -> bytes:
        """Of its content: two files with the same bytes are one picture.

        Raises:
            IdgenError: the file can not be read.
        """
        if isinstance(self.source, np.ndarray):
            return hashlib.sha256(repr(self.source.shape).encode() + np.ascontiguousarray(self.source).data).digest()
        try:
            return hashlib.sha256(self.source.read_bytes()).digest()
        except OSError as error:
            raise IdgenError(f"cannot read {self.source}: {error.strerror}") from None


@dataclass(frozen=True, eq=False)
class Job:
    """One picture to make from a degraded or masked one, by restoration and inpainting protocols.

    Attributes:
        person: whom it shows.
        image: what it is made from.
        target: what it should become; the result bears its name.
        references: photos for this picture, which may be the targets of others.
        mask: white where it is to be filled.
    """

    person: int
    image: Path
    target: Photo
    references: Sequence[Photo]
    mask: Path | None = None

    @property
    def result(self) -> str:
        """What the result is called, as a path without suffix."""
        return self.target.name.removesuffix(PurePosixPath(self.target.name).suffix)


@dataclass
class Material:
    """The people and all their pictures.

    Attributes:
        people: names.
        references: photos that show the generator who it is.
        others: photos that it never sees; what it makes is compared with these.
        generated: what it made.
        jobs: what there is to make, where the protocol is no plain generation.
        training: photos of people of the training, numbered by themselves.
        lookalikes: photos of people of the same appearance, under the index of the person whom they resemble.
    """

    people: list[str]
    references: list[Photo]
    others: list[Photo]
    generated: list[Photo] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    training: list[Photo] = field(default_factory=list)
    lookalikes: list[Photo] = field(default_factory=list)

    @property
    def photos(self) -> list[Photo]:
        """All real photos of the people, each once: the reference of one picture may be the target of another."""
        return list(dict.fromkeys([*self.references, *self.others]))


def image_files(folder: Path) -> list[Path]:
    """The pictures that lie directly in a folder, by name.

    Raises:
        IdgenError: no such folder, or a file that is not a picture.
    """
    found = []
    for path in listed(folder):
        if path.is_dir() or path.name.startswith(".") or path.suffix.lower() in BESIDE:
            continue
        if path.suffix.lower() not in SUFFIXES:
            raise IdgenError(f"{path} is not an image: keep nothing but images (and .md, .jsonl) in {folder}")
        found.append(path)
    return found


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, by name, hidden ones left out."""
    return [path for path in listed(folder) if path.is_dir() and not path.name.startswith(".")]


def listed(folder: Path) -> list[Path]:
    """Everything in a folder, by name, numbers in their order.

    Raises:
        IdgenError: it is not there, not a folder, or holds a name that is not UTF-8.
    """
    try:
        found = sorted(folder.iterdir(), key=lambda path: (natural(path.name), path.name))
    except FileNotFoundError:
        raise IdgenError(f"no such folder: {folder}") from None
    except NotADirectoryError:
        raise IdgenError(f"{folder} is a file: name the folder of images") from None
    except OSError as error:
        raise IdgenError(f"cannot read {folder}: {error.strerror}") from None
    for path in found:
        check_text(path.name, f"a name in {folder}")
    return found


def check_text(text: str, what: str) -> None:
    """Refuse what no table nor report could be written with: bytes of another encoding than UTF-8 in the name of a file.

    Raises:
        IdgenError: shows the text with these bytes written out.
    """
    shown = text.encode("utf-8", "backslashreplace").decode()
    if shown != text:
        raise IdgenError(f"{what} is not UTF-8 ({shown}): write it anew")


def natural(text: str) -> list[tuple[int, int, str]]:
    """A key that sorts `2.png` before `10.png`."""
    import re

    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def check_one_size(photos: Sequence[Photo]) -> None:
    """Refuse pictures that can not be read, or of different sizes; reads headers only.

    Raises:
        IdgenError: names the picture, or two of different sizes.
    """
    sizes: dict[tuple[int, int], list[str]] = {}
    for photo in photos:
        sizes.setdefault(_size(photo), []).append(photo.name)
    if len(sizes) > 1:
        counts = Counter({size: len(names) for size, names in sizes.items()})
        (usual, many), (odd, _) = counts.most_common(1)[0], counts.most_common()[-1]
        raise IdgenError(
            f"the generated images are of {len(sizes)} sizes: {many} of {usual[0]} x {usual[1]} px, but {sizes[odd][0]} is"
            f" {odd[0]} x {odd[1]}: make them one size, or evaluate them apart"
        )


def _size(photo: Photo) -> tuple[int, int]:
    from idgen.imageio import load_image, open_image

    if isinstance(photo.source, np.ndarray):
        return photo.source.shape[1], photo.source.shape[0]
    try:
        with open_image(photo.source) as image:
            return image.size
    except Exception:
        return load_image(photo.source).size  # says what is wrong in one line
