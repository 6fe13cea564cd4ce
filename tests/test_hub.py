"""Files from the hub's cache; the tests run without a network, as HF_HUB_OFFLINE in conftest.py says."""

from __future__ import annotations

from pathlib import Path

import pytest

from idgen.errors import IdgenError
from idgen.hub import fetch, fetch_folder, is_hub_id, split_file

COMMITS = {"main": "a" * 40, "v1": "b" * 40, "refs/pr/3": "c" * 40}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A hub cache that holds the repository `someone/Adapter` in three revisions."""
    repo = tmp_path / "hub" / "models--someone--Adapter"
    for name, commit in COMMITS.items():
        (repo / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / "refs" / name).write_text(commit)
        folder = repo / "snapshots" / commit / "sub folder"
        folder.mkdir(parents=True)
        (folder / "adapter.bin").write_text(name)
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("hub_id", "revision", "holds"),
    [
        ("someone/Adapter", None, "main"),
        ("someone/Adapter@v1", None, "v1"),
        ("someone/Adapter@refs/pr/3", None, "refs/pr/3"),
        ("someone/Adapter@" + "b" * 40, None, "v1"),
        ("someone/Adapter", "v1", "v1"),
        ("someone/Adapter@v1", "v1", "v1"),
    ],
)
def test_the_revision_that_is_named_is_the_one_that_comes(cache, hub_id, revision, holds):
    options = {"cache_dir": cache, "unknown": "is left out"}
    assert fetch(hub_id, "sub folder/adapter.bin", revision, options).read_text() == holds
    folder = fetch_folder(hub_id, ["sub folder/*"], revision, options)
    assert (folder / "sub folder" / "adapter.bin").read_text() == holds


def test_a_file_that_is_not_here_gives_the_command_that_fetches_it(cache):
    for hub_id, wanted, pin in (
        ("someone/Adapter", "other.bin", ""),
        ("someone/Adapter@v2", "sub folder/adapter.bin", " --revision v2"),
        ("else/where", "adapter.bin", ""),
    ):
        with pytest.raises(IdgenError) as error:
            fetch(hub_id, wanted, options={"cache_dir": cache})
        quoted = f"'{wanted}'" if " " in wanted else wanted
        assert str(error.value).endswith(f"with a network run: hf download {hub_id.partition('@')[0]} {quoted}{pin}")
        assert wanted in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_is_not_here_gives_the_command_that_fetches_it(cache):
    with pytest.raises(IdgenError) as error:
        fetch_folder("else/where@v2", ["vae/*", "*.json"], options={"cache_dir": cache})
    command = "hf download else/where --include 'vae/*' --include '*.json' --revision v2"
    assert str(error.value).endswith(f"with a network run: {command}")


def test_two_revisions_at_once_are_refused(cache):
    with pytest.raises(IdgenError, match="names a revision"):
        fetch("someone/Adapter@v1", "adapter.bin", "main", {"cache_dir": cache})


@pytest.mark.parametrize("name", ["Adapter", "a/b/c", "", "a b/c", "a/b@", "a/b:c", "../b/c", "https://hub/x"])
def test_what_is_no_hub_id_is_told_apart(name):
    assert not is_hub_id(name)
    with pytest.raises(IdgenError, match="not a hub id"):
        fetch(name, "adapter.bin")


def test_a_name_that_the_hub_forbids_is_one_line():
    with pytest.raises(IdgenError, match="could not be fetched"):
        fetch("-bad-/..", "adapter.bin")


def test_a_file_of_a_repository_can_be_named_in_one_word():
    assert split_file("someone/Adapter@refs/pr/3:sub/adapter.bin") == ("someone/Adapter@refs/pr/3", "sub/adapter.bin")
    assert split_file("someone/Adapter:adapter.bin") == ("someone/Adapter", "adapter.bin")
    for name in ("folder/adapter.bin", "C:/weights/adapter.bin", "/a/b:c", "a/b:"):
        assert split_file(name) is None
