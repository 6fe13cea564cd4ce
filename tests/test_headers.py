"""A file that idgen wrote, given where another is wanted, is named for what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from idgen.adapters import load_adapter as load_adapter_of_any_method
from idgen.adapters.cachekv.cache import ReferenceCache
from idgen.adapters.pva.person import PersonWeights
from idgen.checkpoint import save_weights
from idgen.errors import IdgenError
from idgen.finetune.files import load_adapter
from idgen.headers import ADAPTER, CACHE, FINETUNE, IDENTITY, MEANINGS, PERSON, check_replaces
from idgen.identity import Identity
from idgen.inspection import inspect_weights
from tests.renders import Refused
from tests.tiny import tiny_unet

READERS: dict[str, Callable[[Path], object]] = {
    CACHE: ReferenceCache.read,
    FINETUNE: lambda path: load_adapter(path, {}),
    IDENTITY: Identity.load,
    PERSON: PersonWeights.load,
}


@pytest.mark.parametrize("given", [ADAPTER, CACHE, FINETUNE, IDENTITY, PERSON])
@pytest.mark.parametrize("wanted", READERS)
def test_another_file_of_ours_is_named(wanted: str, given: str, tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    save_weights(file, {"weight": torch.ones(2)}, {"format": given})
    with pytest.raises(IdgenError) as caught:
        READERS[wanted](file)
    said = str(caught.value)
    assert "\n" not in said and str(file) in said
    # A file of the right format is refused for what it lacks, not for being itself.
    assert (MEANINGS[given] in said) == (given != wanted)


@pytest.mark.parametrize("given", MEANINGS)
@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (IDENTITY, ("embed", "a.png", "-o")),
        (PERSON, ("personalise", "a.png", "-o")),
        (CACHE, ("restore", "a.png", "--ref", "b.png", "--cache")),
    ],
    ids=[IDENTITY, PERSON, CACHE],
)
def test_another_file_of_ours_is_not_replaced(
    wanted: str, words: tuple[str, ...], given: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_weights(Path("file.safetensors"), {"weight": torch.ones(2)}, {"format": given})
    line = refused(*words, "file.safetensors")
    assert ("would be replaced" in line and MEANINGS[given] in line) == (given != wanted)


def test_what_is_not_there_damaged_or_not_ours_may_be_replaced(tmp_path: Path) -> None:
    check_replaces(tmp_path / "new.safetensors", IDENTITY)
    (tmp_path / "half.safetensors").write_bytes(b"{")
    check_replaces(tmp_path / "half.safetensors", IDENTITY)
    save_weights(tmp_path / "theirs.safetensors", {"weight": torch.ones(2)}, {"format": "pt"})
    check_replaces(tmp_path / "theirs.safetensors", IDENTITY)


@pytest.mark.parametrize("given", [ADAPTER, CACHE, FINETUNE, PERSON])
def test_inspection_says_what_a_file_is_for(given: str, tmp_path: Path) -> None:
    save_weights(tmp_path / "file.safetensors", {"weight": torch.ones(2)}, {"format": given})
    assert MEANINGS[given] in inspect_weights(tmp_path / "file.safetensors").notes


def test_an_adapter_of_a_method_that_is_not_here_is_named(tmp_path: Path) -> None:
    file = tmp_path / "newer.safetensors"
    save_weights(file, {"weight": torch.ones(2)}, {"format": ADAPTER, "method": "tomorrow"})
    with pytest.raises(IdgenError, match=rf"{file} is an adapter of the method 'tomorrow', and there are .*wplus"):
        load_adapter_of_any_method(file, tiny_unet(32))
