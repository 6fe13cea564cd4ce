"""What idgen writes into the headers of its own safetensors files, and what each is for: for errors about a wrong file."""

from __future__ import annotations

from collections.abc import Mapping

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
