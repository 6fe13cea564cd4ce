"""What idgen writes into the headers of its own safetensors files, and what each is for: for errors about a wrong file."""

from __future__ import annotations

import os
from pathlib import Path

from idgen.errors import IdgenError

ADAPTER = "idgen-adapter-1"
CACHE = "idgen reference cache"
FINETUNE = "idgen-finetune-1"
IDENTITY = "idgen-identity-1"
PERSON = "idgen-person-1"

MEANINGS = {
    ADAPTER: "an identity adapter: `idgen.adapters.load_adapter` reads it",
    CACHE: "a cache of references: `idgen restore --cache` takes it",
    FINETUNE: "what a training of LoRA or its like learned: `idgen generate --adapter` takes it",
    IDENTITY: "a face embedding: `idgen generate` takes it instead of photos",
    PERSON: "what `idgen personalise` learned of a person: `idgen inpaint --person` takes it",
}


def read_header(path: str | os.PathLike[str]) -> dict[str, str]:
    """What a safetensors file says of itself, `"format"` where idgen wrote it; {} of files of other kinds.

    Raises:
        IdgenError: it is not there, or damaged.
    """
    from idgen.checkpoint import load_metadata  # not before it is needed: it takes torch along

    return load_metadata(path) if Path(path).suffix == ".safetensors" else {}


def require_format(path: str | os.PathLike[str], wanted: str, otherwise: str) -> dict[str, str]:
    """The header of a file of the format that is wanted.

    Args:
        otherwise: what to say of a file that none of idgen's formats explains.
    Raises:
        IdgenError: as `read_header`, or the file is of another format; it says of which, where idgen wrote it.
    """
    header = read_header(path)
    found = header.get("format")
    if found != wanted:
        raise IdgenError(f"{path} is {MEANINGS[found]}" if found in MEANINGS else otherwise)
    return header


def check_replaces(path: Path, wanted: str) -> None:
    """Check, before any work is done, that a file to be written replaces none of idgen's that is for something else.

    Args:
        path: of a `.safetensors` file, which need not be there.
        wanted: the format that is to be written.

    Raises:
        IdgenError: the file is there, and of another of idgen's formats.
    """
    if not path.is_file():
        return
    try:
        found = read_header(path).get("format")
    except IdgenError:  # damaged: nothing is lost with it
        return
    if found in MEANINGS and found != wanted:
        raise IdgenError(f"{path} is {MEANINGS[found]}, and would be replaced: give the output another name")
