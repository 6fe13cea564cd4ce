"""What people hand over by mistake: each is one clear line and exit status 2, and nothing half-written stays behind.

Through the command line, with a family of the mini layout and random weights, and a detector that sees a face in any picture.
tests/test_bad_photos.py has what needs a detector that has learned to look.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from idgen import Identity
from idgen.models.mini_detector import MiniDetector
from tests.renders import Refused
from tests.tiny_family import face_in_the_middle, tiny_family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini family's layout with random weights."""
    return tiny_family(tmp_path_factory.mktemp("mini"))


@pytest.fixture(autouse=True)
def with_family(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDGEN_MINI", str(family))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)


@pytest.fixture
def photo() -> Image.Image:
    return Image.effect_noise((128, 128), 90).convert("RGB")


@pytest.fixture
def broken_mini(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the family, to break."""
    copy = tmp_path / "mini"
    shutil.copytree(family, copy)
    monkeypatch.setenv("IDGEN_MINI", str(copy))
    return copy


def png_of_zeros(width: int, height: int) -> bytes:
    """A well-formed 1-bit PNG of any size, made without holding its pixels: 20,000 x 20,000 px fit in 50 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# Photos that can not be read


def test_no_such_file(refused: Refused, tmp_path: Path) -> None:
    line = refused("embed", tmp_path / "absent.png", "-o", tmp_path / "out.safetensors")
    assert "no such file" in line and "absent.png" in line


@pytest.mark.parametrize("name", ["notes.txt", "notes.png", "notes.jpg"])
def test_not_an_image(name: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / name).write_text("these are notes, not pixels")
    line = refused("embed", tmp_path / name, "-o", tmp_path / "out.safetensors")
    assert "not an image" in line and name in line


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_image(suffix: str, share: float, photo: Image.Image, refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{suffix}"
    photo.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    line = refused("embed", path, "-o", tmp_path / "out.safetensors")
    assert "cut." in line and ("truncated" in line or "not an image" in line)


def test_a_file_of_0_bytes(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    line = refused("embed", tmp_path / "empty.png", "-o", tmp_path / "out.safetensors")
    assert "empty.png" in line and "0 bytes" in line


def test_20_000_by_20_000_pixels_are_refused_before_they_are_decoded(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(png_of_zeros(20_000, 20_000))
    line = refused("embed", tmp_path / "huge.png", "-o", tmp_path / "out.safetensors")
    assert "20000 x 20000" in line and "smaller" in line


def test_the_second_of_two_photos_is_the_one_that_is_named(
    photo: Image.Image, refused: Refused, tmp_path: Path
) -> None:
    photo.save(tmp_path / "good.png")
    (tmp_path / "bad.png").touch()
    line = refused("embed", tmp_path / "good.png", tmp_path / "bad.png", "-o", tmp_path / "out.safetensors")
    assert "bad.png" in line and "good.png" not in line


# Identity files


def test_an_identity_with_nan(refused: Refused, tmp_path: Path) -> None:
    raw = torch.randn(2, 512)
    raw[1, 7] = float("nan")
    path = tmp_path / "person.safetensors"
    save_file({"raw": raw}, path, metadata={"format": "idgen-identity-1", "recogniser": "mini"})
    assert "NaN" in refused("generate", path, "--out", tmp_path / "out")


def test_an_identity_of_another_recogniser(refused: Refused, tmp_path: Path) -> None:
    Identity(torch.randn(1, 512), "buffalo_l").save(tmp_path / "person.safetensors")
    line = refused("generate", tmp_path / "person.safetensors", "--out", tmp_path / "out")
    assert "buffalo_l" in line and "mini" in line


def test_a_weights_file_in_place_of_an_identity(refused: Refused, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "person.safetensors")
    assert "not an identity file" in refused("generate", tmp_path / "person.safetensors", "--out", tmp_path / "out")


# Weights files


class RunsCode:
    """Pickled, this runs a command when it is opened without care."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.trap}'",)


PARTS = ["recogniser", "detector", "arc2face", "encoder", "vae"]


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def use(part: str, photo: Image.Image, tmp_path: Path) -> list[str | Path]:
    """A command that opens the weights of `part`."""
    if part in ("recogniser", "detector"):
        photo.save(tmp_path / "photo.png")
        return ["embed", tmp_path / "photo.png", "-o", tmp_path / "out.safetensors"]
    Identity(torch.randn(1, 512), "mini").save(tmp_path / "person.safetensors")
    return ["generate", tmp_path / "person.safetensors", "--out", tmp_path / "out"]


@pytest.mark.parametrize("part", PARTS)
def test_a_truncated_weights_file(
    part: str, photo: Image.Image, broken_mini: Path, refused: Refused, tmp_path: Path
) -> None:
    path = weights_of(broken_mini / part)
    path.write_bytes(path.read_bytes()[:-1000])
    line = refused(*use(part, photo, tmp_path))
    assert path.name in line or part in line


@pytest.mark.parametrize("part", PARTS)
def test_a_weights_file_with_a_wrong_key(
    part: str, photo: Image.Image, broken_mini: Path, refused: Refused, tmp_path: Path
) -> None:
    path = weights_of(broken_mini / part)
    tensors = load_file(path)
    key = sorted(tensors)[0]
    tensors["surprise.weight"] = tensors.pop(key)
    save_file(tensors, path)
    line = refused(*use(part, photo, tmp_path))
    assert key in line and "surprise.weight" in line


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("keep_the_name", [True, False])
def test_a_pickle_that_would_run_code_never_runs(
    part: str, keep_the_name: bool, photo: Image.Image, broken_mini: Path, refused: Refused, tmp_path: Path
) -> None:
    trap = tmp_path / "it-ran"
    path = weights_of(broken_mini / part)
    path.unlink()
    name = {"arc2face": "diffusion_pytorch_model.bin", "vae": "diffusion_pytorch_model.bin"}.get(
        part, "pytorch_model.bin"
    )
    target = path if keep_the_name else path.with_name(name)
    target.write_bytes(pickle.dumps({"weight": RunsCode(trap)}))
    refused(*use(part, photo, tmp_path))
    assert not trap.exists()


# Output that can not be written, and work that is broken off


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "absent.safetensors"),
        ("demo",),
        ("evaluate", "absent"),
        ("evaluate", "absent", "--protocol", "mini_pairs"),
        ("synth", "--people", "1", "--shots", "1"),
    ],
    ids=" ".join,
)
def test_a_file_in_place_of_a_folder_is_said_first(words: tuple[str, ...], refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    line = refused(*words, "--out", tmp_path / "out")
    assert "is a file" in line and "name a folder" in line


@pytest.mark.parametrize("command", ["embed", "generate", "demo", "synth"])
@pytest.mark.parametrize("place", ["in-the-way/out", "/proc/idgen/out"])
def test_an_output_folder_that_can_not_be_written(
    command: str, place: str, photo: Image.Image, refused: Refused, tmp_path: Path
) -> None:
    """chmod does not stop root, so the folder is one that nobody can write to."""
    (tmp_path / "in-the-way").write_text("a file")
    photo.save(tmp_path / "photo.png")
    out = tmp_path / place  # an absolute place stays as it is
    arguments: dict[str, list[str | Path]] = {
        "embed": [tmp_path / "photo.png", "-o", f"{out}.safetensors"],
        "generate": [tmp_path / "photo.png", "--out", out],
        "demo": ["--out", out],
        "synth": ["--people", "1", "--shots", "1", "--out", out],
    }
    start = time.perf_counter()
    assert "cannot write" in refused(command, *arguments[command])
    assert time.perf_counter() - start < 20, "found out only after the work was done"


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to another process on Windows")
@pytest.mark.parametrize("command", ["generate", "synth"])
def test_ctrl_c_in_the_middle_leaves_only_whole_files(command: str, tmp_path: Path) -> None:
    Identity(torch.randn(1, 512), "mini").save(tmp_path / "person.safetensors")
    out = tmp_path / "out"
    arguments = {
        "generate": [
            "generate",
            str(tmp_path / "person.safetensors"),
            "-n",
            "4000",
            "--steps",
            "50",
            "--out",
            str(out),
        ],
        "synth": ["synth", "--people", "1000", "--shots", "8", "--size", "128", "--out", str(out)],
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "idgen", *arguments[command], "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr
    os.set_blocking(process.stderr.fileno(), False)
    said, deadline = b"", time.monotonic() + 300
    while b"%|" not in said and time.monotonic() < deadline:  # the progress bar is up: the work has begun
        said += process.stderr.read() or b""
        time.sleep(0.05)
    assert b"%|" in said, said
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group gets it
    os.set_blocking(process.stderr.fileno(), True)
    output, rest = process.communicate(timeout=120)
    said += rest
    assert process.returncode == 130, said.decode()
    assert output == b""
    assert b"Traceback" not in said
    assert said.decode().splitlines()[-1] == "idgen: interrupted"
    for path in out.rglob("*.png") if out.exists() else ():
        with Image.open(path) as image:
            image.load()
    assert not [path for path in tmp_path.rglob("*") if "tmp" in path.name.split(".")]
