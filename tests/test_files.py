"""Nothing is ever half-written: atomic_write and check_output."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from idgen.errors import IdgenError
from idgen.files import atomic_write, check_apart, check_output


def test_the_file_appears_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "out.txt"
    with atomic_write(path) as temporary:
        assert temporary.suffix == ".txt" and temporary.parent == path.parent
        temporary.write_text("all of it")
        assert not path.exists()
    assert path.read_text() == "all of it"
    assert os.listdir(path.parent) == ["out.txt"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_keeps_the_old_file_and_leaves_no_temporary_one(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(failure), atomic_write(path) as temporary:
        temporary.write_text("ne")
        raise failure
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_file_gets_the_permissions_that_open_would_give_it(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "ours") as temporary:
        temporary.unlink()
        temporary.touch(mode=0o600)  # as a writer does that makes a new file
    (tmp_path / "theirs").write_bytes(b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "theirs")}
    assert len(modes) == 1


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(IdgenError, match=r"cannot write .*No space left on device"), atomic_write(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_an_error_about_another_file_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a"):
        (tmp_path / "input.txt").read_text()


@pytest.mark.parametrize("write", ["atomic_write", "check_output"])
@pytest.mark.parametrize("place", ["a-file/out.png", "/proc/idgen/out.png"])
def test_a_place_that_can_not_be_written_is_one_clear_error(tmp_path: Path, write: str, place: str) -> None:
    (tmp_path / "a-file").write_text("in the way")
    path = tmp_path / place  # an absolute place stays as it is
    with pytest.raises(IdgenError, match=r"cannot write .*out\.png: .*; choose another place"):
        if write == "check_output":
            check_output(path)
        else:
            with atomic_write(path) as temporary:
                temporary.write_text("never")


def test_check_output_leaves_nothing_behind(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "folder" / "out.png")
    check_output(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_file_is_no_folder_to_write_into(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    check_output(file)
    check_output(tmp_path, folder=True)
    check_output(tmp_path / "new", folder=True)
    with pytest.raises(IdgenError, match="file: it is a file; name a folder"):
        check_output(file, folder=True)


@pytest.mark.parametrize("name", ["photo.png", "folder/../photo.png", "hard.png", "soft.png"])
def test_an_output_that_is_an_input_by_any_name_is_refused(tmp_path: Path, name: str) -> None:
    photo = tmp_path / "photo.png"
    photo.touch()
    (tmp_path / "folder").mkdir()
    os.link(photo, tmp_path / "hard.png")
    (tmp_path / "soft.png").symlink_to(photo)
    with pytest.raises(IdgenError, match=f"{name} is a file to read"):
        check_apart([tmp_path / "new.png", tmp_path / name], [tmp_path / "other.png", photo])


def test_two_outputs_have_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_apart(["a.png", "b.png"], ["c.png", "c.png"])
    with pytest.raises(IdgenError, match=r"a\.png is named for two outputs"):
        check_apart(["a.png", tmp_path / "a.png"], [])
