"""What idgen writes into the headers of its own safetensors files, and what each is for: for errors about a wrong file."""

from __future__ import annotations

from collections.abc import Mapping
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


def require_format(path: object, metadata: Mapping[str, str], wanted: str, otherwise: str) -> None:
    """
    Args:
        metadata: the file's header; empty for a file without one.
        wanted: the format that is needed.
        otherwise: what to say of a file that none of idgen's formats explains.
    Raises:
        IdgenError: the file is of another format; it says of which, where idgen wrote it.
    """
    found = metadata.get("format")
    if found != wanted:
        raise IdgenError(f"{path} is {MEANINGS[found]}" if found in MEANINGS else otherwise)


def check_replaces(path: Path, wanted: str) -> None:
    """Check, before any work is done, that a file to be written replaces none of idgen's that is for something else.

    Args:
        path: of a `.safetensors` file, which need not be there.
        wanted: the format that is to be written.

    Raises:
        IdgenError: the file is there, and of another of idgen's formats.
    """
    from idgen.checkpoint import load_metadata

    if not path.is_file():
        return
    try:
        found = load_metadata(path).get("format")
    except IdgenError:  # damaged: nothing is lost with it
        return
    if found in MEANINGS and found != wanted:
        raise IdgenError(f"{path} is {MEANINGS[found]}, and would be replaced: give the output another name")
