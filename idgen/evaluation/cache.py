"""Rows of numbers per picture, kept on disk: what a network said of a picture's content is asked once.

A row belongs to (what read it, the picture's content): files may be renamed or copied, and a changed network or reader has
rows of its own. Rows are written in whole files, so several processes may fill one cache and a kill loses little. They hold
face embeddings: guard a cache as you guard the photos.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from idgen.console import progress, say
from idgen.evaluation.processes import Processes
from idgen.files import atomic_write

# Rows of one file: what a kill may lose.
KEPT = 256


class Reader(Protocol):
    """Turns pictures into rows of numbers.

    Attributes:
        key: names the reader and everything that its rows depend on; a file name.
        width: numbers of a row.
    """

    key: str
    width: int

    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        """Pictures (height, width, 3) uint8 of any sizes -> (n, width) float32 on the CPU."""


class Picture(Protocol):
    """What a reader reads: a `Photo`, or two of them side by side."""

    def pixels(self) -> np.ndarray: ...

    def digest(self) -> bytes: ...


class RowCache:
    """Rows by content, in a folder or in memory only.

    Args:
        folder: where they are kept; None keeps them in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._rows: dict[str, dict[bytes, np.ndarray]] = {}
        self._digests: dict[Picture, bytes] = {}  # photos compare by identity

    def rows(
        self,
        reader: Reader,
        photos: Sequence[Picture],
        *,
        batch: int = 64,
        what: str = "",
        processes: Processes | None = None,
    ) -> Tensor:
        """(photos, reader.width): every picture's row, read now where it is not kept yet.

        Args:
            batch: pictures given to the reader at once.
            what: named beside the progress bar.
            processes: who else reads a share of them.

        Raises:
            IdgenError: a picture can not be read; names it.
        """
        processes = processes or Processes()
        digests = [self._digest(photo) for photo in photos]
        known = self._load_together(reader, processes)
        missing = {digest: photo for digest, photo in zip(digests, photos, strict=True) if digest not in known}
        if missing:
            share = list(missing.items())[processes.index :: processes.count]
            self._read(reader, share, batch, what)
            known = self._load_together(reader, processes)
        if not photos:
            return torch.zeros(0, reader.width)
        return torch.from_numpy(np.stack([known[digest] for digest in digests]))

    def forget(self, photos: Sequence[Picture]) -> None:
        """Drop what is kept in memory of pictures that nobody will ask for again."""
        for photo in photos:
            digest = self._digests.pop(photo, None)
            for rows in self._rows.values():
                if digest is not None:
                    rows.pop(digest, None)

    def _read(self, reader: Reader, share: list[tuple[bytes, Picture]], batch: int, what: str) -> None:
        known, fresh = self._rows[reader.key], []
        starts = range(0, len(share), batch)
        for start in progress(starts, len(starts), what) if what else starts:
            part = share[start : start + batch]
            rows = reader([photo.pixels() for _, photo in part]).numpy()
            for (digest, _), row in zip(part, rows, strict=True):
                known[digest] = row
                fresh.append(digest)
            if len(fresh) >= KEPT:
                self._store(reader, fresh)
                fresh = []
        self._store(reader, fresh)

    def _store(self, reader: Reader, digests: list[bytes]) -> None:
        if self.folder is None or not digests:
            return
        rows = self._rows[reader.key]
        with atomic_write(self.folder / reader.key / f"{secrets.token_hex(8)}.npz") as temporary:
            with open(temporary, "wb") as stream:
                names = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
                np.savez(stream, digests=names, rows=np.stack([rows[digest] for digest in digests]))

    def _load_together(self, reader: Reader, processes: Processes) -> dict[bytes, np.ndarray]:
        """What is kept, the same for all processes: nobody writes while another one still reads."""
        if processes.count > 1:
            processes.wait()
            self._rows.pop(reader.key, None)
        known = self._load(reader)
        processes.wait()
        return known

    def _load(self, reader: Reader) -> dict[bytes, np.ndarray]:
        if reader.key not in self._rows:
            found = self._rows[reader.key] = {}
            folder = self.folder / reader.key if self.folder else None
            for path in sorted(folder.glob("*.npz")) if folder and folder.is_dir() else ():
                try:
                    with np.load(path, allow_pickle=False) as stored:
                        digests, rows = stored["digests"], stored["rows"]
                    if rows.shape != (len(digests), reader.width):
                        raise ValueError(f"rows of shape {rows.shape}")
                except Exception as error:  # zip, npy and file system each fail in their own way; it is only a cache
                    say(f"{path} is damaged ({type(error).__name__}): its pictures are read again")
                    continue
                found.update(zip((digest.tobytes() for digest in digests), rows, strict=True))
        return self._rows[reader.key]

    def _digest(self, photo: Picture) -> bytes:
        """Asked several times for one picture (judge, probe, features): hashed once."""
        if photo not in self._digests:
            self._digests[photo] = photo.digest()
        return self._digests[photo]
