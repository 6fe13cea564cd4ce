"""Files from the Hugging Face hub, through its own client and cache: `owner/name`, pinned as `owner/name@revision`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from idgen.errors import IdgenError

# A revision is a commit, a tag or a branch; branches and refs/pr/1 hold slashes.
ID = r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?"
# What callers may pass on to the hub's client.
OPTIONS = ("cache_dir", "force_download", "local_files_only", "token")


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form `owner/name` or `owner/name@revision`; nobody is asked whether it exists."""
    return re.fullmatch(ID, name) is not None


def split_file(name: str) -> tuple[str, str] | None:
    """`owner/name@revision:folder/file.bin` -> hub id and the file in it; None for any other name."""
    match = re.fullmatch(rf"(?P<id>{ID}):(?P<file>[^:]+)", name)
    return (match["id"], match["file"]) if match else None


def fetch(hub_id: str, filename: str, revision: str | None = None, options: Mapping[str, Any] | None = None) -> Path:
    """One file of a repository, from the cache or else from the hub.

    Args:
        hub_id: `owner/name` or `owner/name@revision`.
        filename: its path in the repository.
        revision: in the place of `@revision`.
        options: `cache_dir`, `token`, `local_files_only`, `force_download`.

    Raises:
        IdgenError: it is not in the cache and can not be fetched; gives the command that fetches it.
    """
    from huggingface_hub import hf_hub_download

    repo, revision = _split(hub_id, revision)
    what = f"{filename} of {repo} is not in the hub's cache"
    return Path(_ask(hf_hub_download, repo, revision, options, what, quote(filename), filename=filename))


def fetch_folder(
    hub_id: str, patterns: Sequence[str], revision: str | None = None, options: Mapping[str, Any] | None = None
) -> Path:
    """The folder with a repository's files that match `patterns`, from the cache or else from the hub.

    Args:
        patterns: as in a shell, such as `"vae/*.safetensors"`.

    Raises:
        IdgenError: as `fetch`.
    """
    from huggingface_hub import snapshot_download

    repo, revision = _split(hub_id, revision)
    what = f"{repo} is neither a folder nor in the hub's cache"
    include = " ".join(f"--include '{pattern}'" for pattern in patterns)
    return Path(_ask(snapshot_download, repo, revision, options, what, include, allow_patterns=list(patterns)))


def _split(hub_id: str, revision: str | None) -> tuple[str, str | None]:
    match = re.fullmatch(ID, hub_id)
    if match is None:
        raise IdgenError(f"{hub_id!r} is not a hub id: write owner/name or owner/name@revision")
    if revision is not None and match["revision"] not in (None, revision):
        raise IdgenError(f"{hub_id} names a revision, and revision={revision!r} another: give one of them")
    return match["repo"], revision if revision is not None else match["revision"]


def _ask(
    download: Callable[..., str],
    repo: str,
    revision: str | None,
    options: Mapping[str, Any] | None,
    what: str,
    wanted: str,
    **arguments: Any,
) -> str:
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    passed = {key: value for key, value in (options or {}).items() if key in OPTIONS}
    try:
        return download(repo, revision=revision, **arguments, **passed)
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        pin = f" --revision {revision}" if revision else ""
        raise IdgenError(
            f"{what}, and could not be fetched ({type(error).__name__});"
            f" with a network run: hf download {repo} {wanted}{pin}"
        ) from error
