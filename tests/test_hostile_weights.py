"""Hostile and broken weights files: nothing in them runs, nothing of them is loaded, and each is one line."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from idgen.checkpoint import load_training_state, load_weights
from idgen.errors import IdgenError
from tests.renders import Refused

WEIGHTS = {"layer.weight": torch.randn(64, 64), "layer.bias": torch.randn(64)}


class RunsCode:
    """Pickled, this runs a command when it is opened without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.marker}'",)


class AsksForMemory:
    """Pickled, this asks for far more memory than there is."""

    def __reduce__(self) -> tuple:
        return bytearray, (10**15,)


class NamespaceOfAnother(Namespace):
    """No argparse.Namespace, whatever it derives from."""


def pickled(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zip_archive(pickle_bytes: bytes) -> bytes:
    """What torch.save writes, made by hand around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def tar_archive(pickle_bytes: bytes) -> bytes:
    """What torch.save wrote in torch 0.1."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(pickle_bytes)
            archive.addfile(member, io.BytesIO(pickle_bytes))
    return buffer.getvalue()


def safetensors(header: dict[str, tuple[int, int]], values: int, length: int | None = None) -> bytes:
    """A safetensors file of float32 with the offsets of a header, however wrong they are."""
    entries = {
        name: {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}
        for name, (start, end) in header.items()
    }
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(values)


def nested(depth: int) -> dict:
    content: dict = dict(WEIGHTS)
    for _ in range(depth):
        content = {"more": content}
    return content


def doubled(times: int) -> dict:
    content: dict = dict(WEIGHTS)
    for _ in range(times):
        content = {"one": content, "other": content}
    return content


def in_itself() -> dict:
    content: dict = dict(WEIGHTS)
    content["state_dict"] = content
    return content


CODE = "would run code"
FILES: dict[str, tuple[str, Callable[[RunsCode], bytes], str]] = {
    # pickles that would run code
    "os.system": (".bin", lambda evil: pickle.dumps(evil, protocol=2), CODE),
    "protocol 0": (".pt", lambda evil: pickle.dumps(evil, protocol=0), CODE),
    "protocol 4": (".pt", lambda evil: pickle.dumps({"w": evil}, protocol=4), CODE),
    "protocol 5 in a zip": (".pth", lambda evil: pickled({"w": evil}, pickle_protocol=5), CODE),
    "deep in dicts": (".ckpt", lambda evil: pickled({"state_dict": WEIGHTS, "opts": {"a": [{"b": evil}]}}), CODE),
    "before the weights": (".ckpt", lambda evil: pickled({"opts": evil, "state_dict": WEIGHTS}), CODE),
    "a zip made by hand": (".pt", lambda evil: zip_archive(pickle.dumps(evil, protocol=2)), CODE),
    "a zip of protocol 4": (".pt", lambda evil: zip_archive(pickle.dumps(evil, protocol=4)), CODE),
    "old torch format": (".pth", lambda evil: pickled({"w": evil}, _use_new_zipfile_serialization=False), CODE),
    "tar of torch 0.1": (".pth", lambda evil: tar_archive(pickle.dumps(evil, protocol=2)), CODE),
    "in a Namespace": (".pt", lambda evil: pickled({"state_dict": WEIGHTS, "opts": Namespace(device=evil)}), CODE),
    "no Namespace": (".pt", lambda _: pickled({"state_dict": WEIGHTS, "opts": NamespaceOfAnother(lr=1)}), CODE),
    "named safetensors": (".safetensors", lambda evil: pickle.dumps(evil), "not a safetensors"),
    "named onnx": (".onnx", lambda evil: pickle.dumps(evil), "not a"),
    # pickles that would fill the memory, or never end
    "too much memory": (".pt", lambda _: pickled({"w": AsksForMemory()}), "not a PyTorch"),
    "one number as 10^9": (".pt", lambda _: pickled({"w": torch.ones(1).expand(10**9)}), "larger than the file"),
    "a dict in itself": (".pt", lambda _: pickled(in_itself()), "too deep"),
    "dicts twice in dicts": (".pt", lambda _: pickled(doubled(40)), "too deep"),
    "dicts deep in dicts": (".pt", lambda _: pickled(nested(200)), "too deep"),
    "no values": (".pt", lambda _: pickled({"w": torch.ones(2, device="meta")}), "not a plain tensor"),
    "sparse": (".pt", lambda _: pickled({"w": torch.eye(3).to_sparse()}), "not a plain tensor"),
    # broken safetensors
    "truncated": (".safetensors", lambda _: save(WEIGHTS)[:-100], "truncated"),
    "huge header": (".safetensors", lambda _: safetensors({"a": (0, 8)}, 8, length=2**60), "truncated"),
    "header beyond the end": (".safetensors", lambda _: safetensors({"a": (0, 8)}, 8, length=4000), "truncated"),
    "overlapping": (".safetensors", lambda _: safetensors({"a": (0, 8), "b": (4, 12)}, 12), "truncated"),
    "a hole": (".safetensors", lambda _: safetensors({"a": (0, 8), "b": (12, 20)}, 20), "truncated"),
    "trailing bytes": (".safetensors", lambda _: safetensors({"a": (0, 8)}, 4096), "truncated"),
    "no tensors": (".safetensors", lambda _: safetensors({}, 0), "no tensors"),
    # what no format forbids, and what downloads leave
    "NaN": (".safetensors", lambda _: save(WEIGHTS | {"b.bad": torch.tensor([1.0, torch.nan])}), "'b.bad' holds NaN"),
    "complex NaN": (".pt", lambda _: pickled({"b.bad": torch.tensor([1j * torch.nan])}), "'b.bad' holds NaN"),
    "float8 NaN": (".pt", lambda _: pickled({"b.bad": torch.tensor([torch.nan]).to(torch.float8_e4m3fn)}), "NaN"),
    "truncated zip": (".ckpt", lambda _: pickled(WEIGHTS)[:-200], "truncated"),
    "git-lfs pointer": (
        ".bin",
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n",
        "git lfs pull",
    ),
    "web page": (".ckpt", lambda _: b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "zero bytes": (".pt", lambda _: b"", "0 bytes"),
}


@pytest.fixture(params=FILES, ids=lambda name: name.replace(" ", "-"))
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A file that must be refused, and words of the line that says why."""
    suffix, content, words = FILES[request.param]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content(RunsCode(tmp_path / "it-ran")))
    return path, words


def test_it_is_refused_in_one_line_and_nothing_runs(hostile: tuple[Path, str], tmp_path: Path) -> None:
    path, words = hostile
    with pytest.raises(IdgenError) as error:
        load_weights(path)
    text = str(error.value)
    assert path.name in text and words in text and "\n" not in text and len(text) < 500
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name], "something was left behind, or ran"


@pytest.mark.parametrize("arguments", [["out.safetensors"], ["--inspect"]])
def test_the_command_line_refuses_it_and_writes_nothing(
    hostile: tuple[Path, str], arguments: list[str], refused: Refused, tmp_path: Path
) -> None:
    path, words = hostile
    line = refused("convert", path, *(word if word.startswith("-") else tmp_path / word for word in arguments))
    assert path.name in line and words in line


def test_the_files_would_run_code_if_they_were_opened_without_care(tmp_path: Path) -> None:
    """The traps above work: otherwise that they do not snap would prove nothing."""
    marker = tmp_path / "it-ran"
    for name in ("os.system", "protocol 4", "protocol 0"):
        pickle.loads(FILES[name][1](RunsCode(marker)))
        assert marker.exists()
        marker.unlink()


def test_a_trainings_state_allows_no_namespace(tmp_path: Path) -> None:
    torch.save({"step": 3, "options": Namespace(lr=1)}, tmp_path / "state.pt")
    with pytest.raises(IdgenError, match=CODE):
        load_training_state(tmp_path / "state.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_a_file_with_damaged_bytes_loads_or_is_refused_in_one_line(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"damaged{suffix}"
    if suffix == ".safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=suffix == ".pt")
    whole, dice, said = path.read_bytes(), random.Random(0), []
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(dice.choice((1, 4, 40))):
            damaged[int(len(whole) * dice.random() ** 4)] = dice.randrange(
                256
            )  # mostly near the start, where the header is
        path.write_bytes(damaged)
        try:
            load_weights(path)
        except IdgenError as error:
            said.append(str(error))
    assert said and not any("\n" in line for line in said)
