"""Verification protocols of recognisers: the .bin layout, read without running it; IJB's lists; rendered people."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from idgen.cli import main
from idgen.errors import IdgenError
from idgen.evaluation.bins import read_bin
from idgen.evaluation.ijb import read_ijb
from idgen.metrics import pair_accuracy
from tests.evaluation import toys
from tests.renders import Refused


@pytest.fixture(autouse=True)
def _encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.with_toys(monkeypatch)


def encoded(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def faces(pairs: int = 20) -> tuple[list[bytes], list[bool]]:
    """Pair i shows person i twice, or persons i and i + 100."""
    images, same = [], []
    for index in range(pairs):
        same.append(index % 2 == 0)
        images += [
            encoded(toys.photo(index, 0)),
            encoded(toys.photo(index if same[-1] else index + 100, 1)),
        ]
    return images, same


IMAGES, SAME = faces()


def python2() -> bytes:
    """What Python 2 writes: byte strings as such, and an old list of booleans."""
    strings = b"".join(b"T" + struct.pack("<i", len(image)) + image for image in IMAGES)
    labels = b"".join(b"I01\n" if label else b"I00\n" for label in SAME)
    return b"\x80\x02(" + b"](" + strings + b"e](" + labels + b"et."


@pytest.mark.parametrize(
    "content",
    [
        *(pickle.dumps((IMAGES, SAME), protocol) for protocol in (2, 3, 4, 5)),
        pickle.dumps([IMAGES, np.array(SAME)]),
        pickle.dumps((np.array(IMAGES, dtype=object), [np.bool_(label) for label in SAME])),
        pickle.dumps(([np.frombuffer(image, np.uint8) for image in IMAGES], np.array(SAME, np.int64)), 2),
        pickle.dumps(([bytearray(image) for image in IMAGES], tuple(int(label) for label in SAME)), 4),
        pickle.dumps(([np.frombuffer(image, np.uint8) for image in IMAGES], SAME), 5),
        python2(),
    ],
    ids=lambda content: f"{len(content)} bytes",
)
def test_all_ways_in_which_such_files_were_written(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "set.bin").write_bytes(content)
    pairs = read_bin(tmp_path / "set.bin")
    assert pairs.same.tolist() == SAME and len(pairs.faces) == 40
    assert np.array_equal(pairs.faces[3].pixels(), np.asarray(Image.open(io.BytesIO(IMAGES[3]))))


class Runs:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple:
        return self.call, self.arguments


@pytest.mark.parametrize("kind", ["system", "eval", "exec", "numpy", "getattr", "open", "instance"])
def test_nothing_that_a_file_names_is_run(kind: str, tmp_path: Path) -> None:
    trap = tmp_path / "it-ran"
    hostile: dict[str, Any] = {
        "system": Runs(os.system, f"touch '{trap}'"),
        "eval": Runs(eval, f"open({str(trap)!r}, 'w')"),
        "exec": Runs(exec, f"open({str(trap)!r}, 'w')"),
        "numpy": Runs(np.save, str(trap), np.zeros(3)),
        "getattr": Runs(getattr, os, "system"),
        "open": Runs(open, str(trap), "w"),
        "instance": Path("/"),
    }
    protocols = (2, 4) if kind != "getattr" else (4,)
    for protocol in protocols:
        try:
            content = pickle.dumps(([*IMAGES[:-1], hostile[kind]], SAME), protocol)
        except (TypeError, pickle.PicklingError):
            content = pickle.dumps((Runs(getattr, "x", "upper"), SAME), protocol)
        (tmp_path / "set.bin").write_bytes(content)
        with pytest.raises(IdgenError, match="idgen runs nothing"):
            read_bin(tmp_path / "set.bin")
        assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickle.dumps((IMAGES, SAME))[:-500], "truncated"),
        (b"", "truncated"),
        (b"\x89PNG not a pickle", "truncated"),
        (pickle.dumps({"images": IMAGES}), "no pair of images and labels"),
        (pickle.dumps((IMAGES[:-1], SAME)), "two images for each label"),
        (pickle.dumps((["a"] * 40, SAME)), "image 0"),
        (pickle.dumps((IMAGES, ["x"] * 20)), "not true or false"),
        (pickle.dumps((IMAGES, [True] * 20)), "one label"),
        (pickle.dumps((np.zeros((40, 3)), SAME)), "damaged"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "damaged"),  # asks for a table of 2^31 entries
    ],
)
def test_files_that_are_no_verification_set(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "set.bin").write_bytes(content)
    with pytest.raises(IdgenError, match=says):
        read_bin(tmp_path / "set.bin")


def test_a_picture_that_can_not_be_decoded_is_named(tmp_path: Path) -> None:
    (tmp_path / "set.bin").write_bytes(pickle.dumps(([*IMAGES[:5], b"junk", *IMAGES[6:]], SAME)))
    with pytest.raises(IdgenError, match=r"image 5 of set\.bin can not be decoded"):
        read_bin(tmp_path / "set.bin").faces[5].pixels()


def test_lfw_of_a_recogniser(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((IMAGES, SAME)))
    words = ["evaluate", "judge", "--protocol", "lfw", "--references", tmp_path / "lfw.bin", "--out", tmp_path / "out"]
    assert main([*map(str, words), "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    network = toys.Network("judge")
    crops = torch.stack([torch.from_numpy(face.pixels()) for face in read_bin(tmp_path / "lfw.bin").faces])
    crops = crops.permute(0, 3, 1, 2).float() / 127.5 - 1
    vectors = network.forward(crops) + network.forward(crops.flip(3))
    expected = pair_accuracy(vectors[::2], vectors[1::2], torch.tensor(SAME))
    assert result["metrics"]["accuracy"]["value"] == pytest.approx(expected.accuracy) and expected.accuracy > 0.8
    assert "100 impostor" in result["not_run"]["tar_at_far_1e-02"] and result["metrics"]["auc"]["value"] > 0.9
    assert result["pairs"] == 20 and result["same"] == 10
    page = (tmp_path / "out" / "report.html").read_text()
    assert "One person, least alike" in page and page.count("data:image/png") == 16
    assert len((tmp_path / "out" / "metrics.csv").read_text().splitlines()) == 21


def write_ijb(folder: Path, people: int = 6) -> Path:
    """Two templates of each person: a photo and a video of two frames; and a single photo."""
    meta = folder / "meta"
    meta.mkdir(parents=True)
    points = " ".join(f"{value:.2f}" for value in toys.ARCFACE_TEMPLATE.flatten())
    names, placed = [], []
    for person in range(people):
        for shot, (template, medium) in enumerate(((0, 10), (0, 11), (0, 11), (1, 12))):
            name = f"{person}_{shot}.png"
            toys.save(folder / "loose_crop" / name, toys.photo(person, shot))
            names.append(f"{name} {points} 0.9")
            placed.append(f"{name} {2 * person + template} {medium}")
    pairs = [f"{2 * a} {2 * b + 1} {int(a == b)}" for a in range(people) for b in range(people)]
    for name, lines in (
        ("name_5pts_score", names),
        ("face_tid_mid", placed),
        ("template_pair_label", pairs),
    ):
        (meta / f"ijbc_{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_ijb_of_a_recogniser(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_ijb(tmp_path / "ijbc")
    words = ["evaluate", "judge", "--protocol", "ijbc", "--references", folder, "--out", tmp_path / "out"]
    assert main([*map(str, words), "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pairs"] == 36 and result["same"] == 6
    assert result["metrics"]["tar_at_far_1e-01"]["value"] == 1 and result["metrics"]["auc"]["value"] == 1
    assert "can not tell this rate" in result["metrics"]["tar_at_far_1e-06"]["note"]


def test_ijb_lists_that_do_not_fit_are_named_with_their_line(tmp_path: Path) -> None:
    folder = write_ijb(tmp_path / "ijbc")
    pairs = folder / "meta" / "ijbc_template_pair_label.txt"
    whole = pairs.read_text()
    for content, says in (
        (whole + "1 2\n", "line 37: needs 3 columns"),
        (whole + "1 two 0\n", "line 37: needs 3 whole"),
        (whole + "0 99 0\n", "template 99"),
        ("0 1 1\n", "one label"),
        ("", "is empty"),
    ):
        pairs.write_text(content)
        with pytest.raises(IdgenError, match=says):
            read_ijb(folder, "ijbc")
    with pytest.raises(IdgenError, match=r"no .*ijbb_name_5pts_score.txt"):
        read_ijb(folder, "ijbb")


def test_what_is_missing_is_one_line(refused: Refused, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out", "--device", "cpu"]
    assert "--references FILE.bin" in refused("evaluate", "judge", "--protocol", "lfw", *out)
    assert "no such file" in refused("evaluate", "judge", "--protocol", "lfw", "--references", tmp_path / "a.bin", *out)
    assert "no face encoder" in refused("evaluate", "nobody", "--protocol", "lfw", "--references", tmp_path, *out)


@pytest.mark.parametrize(
    "words",
    [
        ["--references", "people"],
        ["--judge", "judge"],
        ["--measures", "fid"],
        ["--same-judge"],
        ["--training-data", "data"],
        ["--rewarded-by", "mini"],
    ],
)
def test_what_plays_no_part_is_refused(refused: Refused, tmp_path: Path, words: list[str]) -> None:
    out = ["--out", tmp_path / "out", "--device", "cpu"]
    assert f"leave {words[0]} out" in refused("evaluate", "judge", "--protocol", "mini_pairs", *words, *out)
    if words[0] != "--references":
        data = ["--references", tmp_path / "lfw.bin"]
        assert f"leave {words[0]} out" in refused("evaluate", "judge", "--protocol", "lfw", *data, *words, *out)


def test_rendered_people_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from idgen.evaluation import built_in
    from idgen.evaluation.rendered import Photos

    def toy_photos(people: range, shots: range, *, variant: int | None = None, **_: Any) -> Photos:
        shift = 0 if variant is None else 1000
        images = [[toys.photo(person + shift, shot) for shot in shots] for person in people]
        return Photos(torch.from_numpy(np.array(images)), torch.zeros(0), torch.zeros(0))

    monkeypatch.setattr(built_in, "take_photos", toy_photos)
    words = ["evaluate", "judge", "--protocol", "mini_pairs", "--out", tmp_path / "out", "--set", "rendered.count=8"]
    assert main([*map(str, words), "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (
        result["metrics"]["accuracy"]["value"] > 0.95 and result["metrics"]["accuracy_same_appearance"]["value"] > 0.95
    )
    assert result["metrics"]["faces_found"]["value"] == 1 and result["same"] == 8 * 28
