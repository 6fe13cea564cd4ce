"""How a synthetic data set lies on disk: a folder of images with metadata.jsonl (and FFHQ-Ref's tables), webdataset shards,
or two arrays.

A layout saves a unit so that it is either there whole or not at all, can tell which, and finishes the tree when all are.
What is under way lies in the folder `PARTS` inside the tree, on the same file system, and goes when all is done.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from .samples import Sample, encode_image, encode_mask
from .settings import Unit

PARTS = ".parts"
METADATA = "metadata.jsonl"


class Layout(Protocol):
    images_per_unit: int

    def __init__(self, out: Path, shots: int) -> None: ...
    def resume(self, units: Iterable[Unit]) -> None:
        """Bring a finished tree back to where units can be asked for and saved again."""

    def has(self, unit: Unit) -> bool:
        """Whether the unit is there whole."""

    def save(self, unit: Unit, batches: Iterable[list[Sample]]) -> Iterator[int]:
        """Write the unit, yielding the count of samples after each batch."""

    def finish(self, units: Iterable[Unit]) -> None:
        """Called once when all units are there."""


class FolderLayout:
    """images/p000012/s003.png, masks/p000012/s003.png and a metadata.jsonl that names both.

    `datasets.load_dataset("imagefolder", data_dir=...)` reads it: `file_name` becomes the column `image`,
    `mask_file_name` the column `mask`. Each unit's rows wait in PARTS until all are there.
    """

    images_per_unit = 64

    def __init__(self, out: Path, shots: int) -> None:
        self.out, self.shots = out, shots

    def resume(self, units: Iterable[Unit]) -> None:
        metadata = self.out / METADATA
        if not metadata.exists():
            return
        with metadata.open(encoding="utf-8") as lines:
            for unit in units:
                put(self._part(unit), "".join(islice(lines, self._count(unit))).encode())
        metadata.unlink()

    def has(self, unit: Unit) -> bool:
        part = self._part(unit)
        if not part.exists():
            return False
        lines = part.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        # A machine that lost its power may leave a part cut short, or images that never reached the disk.
        return len(lines) == self._count(unit) and all(self._has_files(line) for line in lines)

    def save(self, unit: Unit, batches: Iterable[list[Sample]]) -> Iterator[int]:
        rows = []
        for person in unit.people:
            for kind in ("images", "masks"):
                (self.out / kind / f"p{person:06d}").mkdir(parents=True, exist_ok=True)
        for batch in batches:
            for sample in batch:
                name = f"p{sample.person:06d}/s{sample.shot:03d}.png"
                put(self.out / "images" / name, encode_image(sample.image), self.out / PARTS)
                put(self.out / "masks" / name, encode_mask(sample.mask), self.out / PARTS)
                rows.append({"file_name": f"images/{name}", "mask_file_name": f"masks/{name}", **sample.row})
            yield len(batch)
        put(self._part(unit), "".join(json.dumps(row) + "\n" for row in rows).encode())

    def finish(self, units: Iterable[Unit]) -> None:
        temporary = self.out / PARTS / METADATA
        with temporary.open("wb") as file:
            for unit in units:
                file.write(self._part(unit).read_bytes())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.out / METADATA)

    def _count(self, unit: Unit) -> int:
        return len(unit.people) * self.shots

    def _part(self, unit: Unit) -> Path:
        return self.out / PARTS / f"{unit.index:06d}.jsonl"

    def _has_files(self, line: str) -> bool:
        try:
            row = json.loads(line)
            return line.endswith("\n") and all(
                _is_whole_png(self.out / row[k]) for k in ("file_name", "mask_file_name")
            )
        except (ValueError, KeyError, TypeError):
            return False


class ShardLayout:
    """000000.tar, 000001.tar, ...: p000012_s003.png, .mask.png, .txt (the caption) and .json (the row) of each shot."""

    images_per_unit = 1000

    def __init__(self, out: Path, shots: int) -> None:
        self.out = out

    def resume(self, units: Iterable[Unit]) -> None:
        pass  # a shard is complete in itself

    def has(self, unit: Unit) -> bool:
        shard = self._shard(unit)
        # Whole records, the last one ending in the two empty blocks that close a tar file.
        return (
            shard.exists()
            and shard.stat().st_size >= tarfile.RECORDSIZE
            and shard.stat().st_size % tarfile.RECORDSIZE == 0
            and not any(_tail(shard, 2 * tarfile.BLOCKSIZE))
        )

    def save(self, unit: Unit, batches: Iterable[list[Sample]]) -> Iterator[int]:
        temporary = _temporary(self.out / PARTS)
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for batch in batches:
                for sample in batch:
                    self._add(tar, sample)
                yield len(batch)
        temporary.replace(self._shard(unit))

    def finish(self, units: Iterable[Unit]) -> None:
        pass

    def _shard(self, unit: Unit) -> Path:
        return self.out / f"{unit.index:06d}.tar"

    def _add(self, tar: tarfile.TarFile, sample: Sample) -> None:
        key = f"p{sample.person:06d}_s{sample.shot:03d}"  # webdataset: what stands before the first dot
        members = {
            f"{key}.png": encode_image(sample.image),
            f"{key}.mask.png": encode_mask(sample.mask),
            f"{key}.txt": sample.row["caption"].encode(),
            f"{key}.json": json.dumps(sample.row).encode(),
        }
        for name, content in members.items():
            entry = tarfile.TarInfo(name)  # owner, mode and time are constants, so the bytes are too
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


class ReferenceLayout(FolderLayout):
    """The folder layout, and FFHQ-Ref's tables of which photos show the same person (`idgen.data.ffhq_ref`)."""

    def finish(self, units: Iterable[Unit]) -> None:
        from idgen.data.ffhq_ref import write_tables

        super().finish(units)
        people: dict[int, list[str]] = {}
        with (self.out / METADATA).open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                people.setdefault(row["person"], []).append(row["file_name"])
        write_tables(self.out, list(people.values()))


class ArrayLayout:
    """images.npy (n, size, size, 3) and masks.npy (n, size, size), uint8, beside metadata.jsonl: what trainings read fastest.

    No picture is encoded here or decoded there; a picture at 128 px takes 64 kB.
    """

    images_per_unit = 256
    arrays = ("images", "masks")

    def __init__(self, out: Path, shots: int) -> None:
        self.out, self.shots = out, shots

    def resume(self, units: Iterable[Unit]) -> None:
        """A finished tree stays as it is, `has` sees it; one of which an array was lost or cut is made again."""
        total = sum(self._count(unit) for unit in units)
        if any(_rows(self.out / f"{name}.npy") != total for name in self.arrays):
            (self.out / METADATA).unlink(missing_ok=True)

    def has(self, unit: Unit) -> bool:
        if (self.out / METADATA).exists():
            return True
        whole = all(_rows(self._part(unit, f"{name}.npy")) == self._count(unit) for name in self.arrays)
        return whole and self._part(unit, METADATA).exists()

    def save(self, unit: Unit, batches: Iterable[list[Sample]]) -> Iterator[int]:
        samples = []
        for batch in batches:
            samples += batch
            yield len(batch)
        for name, values in (("images", [one.image for one in samples]), ("masks", [one.mask for one in samples])):
            buffer = io.BytesIO()
            np.save(buffer, np.stack(values))
            put(self._part(unit, f"{name}.npy"), buffer.getvalue(), self.out / PARTS)
        # Last: the unit counts as there from now on.
        rows = "".join(json.dumps(one.row) + "\n" for one in samples)
        put(self._part(unit, METADATA), rows.encode(), self.out / PARTS)

    def finish(self, units: Iterable[Unit]) -> None:
        units = list(units)
        if (self.out / METADATA).exists():
            return
        total = sum(self._count(unit) for unit in units)
        for name in self.arrays:
            temporary, start = self.out / PARTS / f"{name}.npy", 0
            whole = None
            for unit in units:
                part = np.load(self._part(unit, f"{name}.npy"), mmap_mode="r")
                if whole is None:
                    whole = np.lib.format.open_memmap(temporary, "w+", part.dtype, (total, *part.shape[1:]))
                whole[start : start + len(part)] = part
                start += len(part)
            if whole is not None:
                whole.flush()
            temporary.replace(self.out / f"{name}.npy")
        temporary = self.out / PARTS / METADATA
        with temporary.open("wb") as file:
            for unit in units:
                file.write(self._part(unit, METADATA).read_bytes())
        temporary.replace(self.out / METADATA)

    def _part(self, unit: Unit, name: str) -> Path:
        return self.out / PARTS / f"{unit.index:06d}.{name}"

    def _count(self, unit: Unit) -> int:
        return len(unit.people) * self.shots


LAYOUTS: dict[str, type[FolderLayout] | type[ShardLayout] | type[ArrayLayout]] = {
    "folder": FolderLayout,
    "webdataset": ShardLayout,
    "ffhq-ref": ReferenceLayout,
    "arrays": ArrayLayout,
}


def put(path: Path, content: bytes, parts: Path | None = None) -> None:
    """Write a file so that it is there whole or not at all; `parts` is the folder for the temporary file."""
    temporary = _temporary(parts or path.parent)
    temporary.write_bytes(content)
    temporary.replace(path)


def _temporary(parts: Path) -> Path:
    return parts / f"{os.getpid()}.tmp"  # one per worker: each writes one file at a time


def _rows(path: Path) -> int:
    """How many rows an array has; -1 where it is not there or cut off."""
    try:
        return len(np.load(path, mmap_mode="r"))
    except (OSError, ValueError, EOFError):
        return -1


def _is_whole_png(path: Path) -> bool:
    return path.exists() and _tail(path, 8) == b"IEND\xaeB`\x82"


def _tail(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(count, path.stat().st_size), os.SEEK_END)
        return file.read()
