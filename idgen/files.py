"""Writing files so that a crash, a kill or a full disk never leaves half of one."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from idgen.errors import IdgenError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it takes the place of `path` only when the block ends well.

    Missing parent folders are made. The temporary name keeps the suffix, so that writers which choose a format by it
    (PIL, for one) work: `with atomic_write("out.png") as tmp: image.save(tmp)`.

    Raises:
        IdgenError: the folder can not be written to, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # O_EXCL and the usual mode: the file gets the permissions that open() would have given it.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = stat.S_IMODE(temporary.stat().st_mode)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield temporary
        temporary.chmod(mode)  # some writers (safetensors') replace the file by one that only its owner may read
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        # Only what the file system said about our own file is the user's to mend; other errors of the block pass through.
        if error.filename in (None, str(temporary), str(path)):
            raise _cannot_write(path, error) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_output(path: str | os.PathLike[str], *, folder: bool = False) -> Path:
    """Check, before any work is done, that `path` (a file or folder to come) can be written; nothing stays behind.

    Args:
        folder: files are to be written into `path`.

    Raises:
        IdgenError: its nearest existing parent is not a folder, or is read-only; or it is a file and is to be a folder.
    """
    path = Path(path)
    if folder and path.exists() and not path.is_dir():
        raise IdgenError(f"cannot write into {path}: it is a file; name a folder for the output")
    # A file that exists is replaced through its folder; a folder that exists is written into.
    parent = path if path.is_dir() else path.parent
    try:
        while not parent.exists():
            parent = parent.parent
        # Asked by doing: permission bits do not tell of read-only mounts, nor do they bind root.
        probe = parent / f".idgen-{secrets.token_hex(4)}.tmp"
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        probe.unlink()
    except OSError as error:
        raise _cannot_write(path, error) from error
    return path


def check_apart(outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Check, before any work is done, that no file to be written would replace one that is read, nor another one.

    Raises:
        IdgenError: an output is an input, by whatever name or link, or is named twice.
    """
    read, written = {_place(path) for path in inputs}, set()
    for path in outputs:
        place = _place(path)
        if place in read:
            raise IdgenError(f"{path} is a file to read, and would be replaced: give the output another name")
        if place in written:
            raise IdgenError(f"{path} is named for two outputs: give each a name of its own")
        written.add(place)


def _place(path: str | os.PathLike[str]) -> tuple[int, int] | str:
    """The same for all names of a file; of one that is not there yet, where its name leads."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def _cannot_write(path: Path, error: OSError) -> IdgenError:
    reason = error.strerror or str(error)
    return IdgenError(f"cannot write {path}: {reason}; choose another place for the output, or free this one")


def flush(path: str | os.PathLike[str]) -> None:
    """Wait until a file, or where the system allows opening one the names in a folder, are on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # folders on Windows
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
