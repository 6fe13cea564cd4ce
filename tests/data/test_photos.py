"""Photos from a folder, shards and data sets, and what becomes of them: readers, buckets, the cache, damaged ones."""

from __future__ import annotations

import builtins
import io
import json
import multiprocessing
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from idgen.data.buckets import bucket_sizes, nearest_bucket
from idgen.data.disk_cache import DiskCache
from idgen.data.photo_sources import SourceConfig, decode, open_photos
from idgen.data.prepared import PhotoConfig, Preparer
from idgen.errors import IdgenError
from idgen.faces.detection import Face

PEOPLE = {"anna": ("a woman smiling", "a woman"), "ben": ("a man", "a man with a beard")}


def jpeg(seed: int, size: tuple[int, int] = (96, 128)) -> bytes:
    """A picture (height, width) of smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(out, "JPEG", quality=95)
    return out.getvalue()


def rows() -> list[dict[str, Any]]:
    return [
        {"person": person, "text": text, "jpg": jpeg(10 * number + place)}
        for number, (person, texts) in enumerate(PEOPLE.items())
        for place, text in enumerate(texts)
    ]


def as_folder(root: Path) -> str:
    for number, row in enumerate(rows()):
        file = root / row["person"] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(row["jpg"])
        file.with_suffix(".txt").write_text(row["text"])
    return str(root)


def as_listed(root: Path) -> str:
    root.mkdir(parents=True)
    lines = []
    for number, row in enumerate(rows()):
        (root / f"{number}.jpg").write_bytes(row["jpg"])
        lines.append(json.dumps({"file_name": f"{number}.jpg", "text": row["text"], "person": row["person"]}))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return str(root)


def as_shards(root: Path) -> str:
    root.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for number, row in list(enumerate(rows()))[2 * shard : 2 * shard + 2]:
                parts = {
                    "jpg": row["jpg"],
                    "txt": row["text"].encode(),
                    "json": json.dumps({"person": row["person"]}).encode(),
                }
                for suffix, data in parts.items():
                    info = tarfile.TarInfo(f"{number}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return str(root)


def as_dataset(root: Path) -> str:
    import datasets

    images = [{"bytes": row["jpg"], "path": None} for row in rows()]
    columns = {"image": images, "text": [row["text"] for row in rows()], "label": [row["person"] for row in rows()]}
    made = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    made.save_to_disk(str(root))
    return str(root)


@pytest.mark.parametrize("write", [as_folder, as_listed, as_shards, as_dataset])
def test_every_kind_of_source_gives_the_same_photos(tmp_path: Path, write: Any) -> None:
    found = list(open_photos(SourceConfig(path=write(tmp_path / "data"))))
    assert [(photo.person, photo.caption) for photo in found] == [(row["person"], row["text"]) for row in rows()]
    for photo, row in zip(found, rows(), strict=True):
        assert photo.read() == row["jpg"] and decode(photo.read(), photo.name).shape == (96, 128, 3)


@pytest.mark.parametrize(("name", "write"), [("webdataset", as_shards), ("datasets", as_dataset)])
def test_a_package_that_is_not_there_is_named(tmp_path: Path, monkeypatch: Any, name: str, write: Any) -> None:
    path, real = write(tmp_path / "data"), builtins.__import__

    def without(module: str, *more: Any, **options: Any) -> Any:
        if module == name:
            raise ImportError(module)
        return real(module, *more, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(IdgenError, match=f"pip install {name}"):
        next(open_photos(SourceConfig(path=path)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"path": "/nowhere/photos"}, r"no folder /nowhere/photos: give a folder of photos"),
        (
            {"caption_column": "titel"},
            r"has no column 'titel': set data\.caption_column to one of file_name, text, person",
        ),
        ({"kind": "datasets"}, r"cannot open the data set .*, split 'train': "),
        ({"kind": "webdataset", "path": "/nowhere/1.tar"}, r"cannot read the shards /nowhere/1\.tar: "),
    ],
)
def test_sources_that_are_not_as_said_are_one_line(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    settings = {"path": as_listed(tmp_path / "data")} | changes
    with pytest.raises(IdgenError, match=says) as caught:
        list(open_photos(SourceConfig(**settings)))
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_cut_off_is_one_line(tmp_path: Path) -> None:
    shard = Path(as_shards(tmp_path / "data")) / "1.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(IdgenError, match=rf"cannot read the shard {shard}: it is cut off"):
        list(open_photos(SourceConfig(path=str(tmp_path / "data"))))


def test_an_empty_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(IdgenError, match=r"no photos in .*: put images there"):
        next(open_photos(SourceConfig(path=str(tmp_path))))


def test_buckets_have_about_the_area_of_the_square_and_every_photo_finds_a_near_one() -> None:
    sizes = bucket_sizes(512)
    assert (512, 512) in sizes and all(side % 64 == 0 for size in sizes for side in size)
    assert all(0.75 * 512**2 <= height * width <= 512**2 for height, width in sizes)
    assert all((width, height) in sizes for height, width in sizes)
    assert nearest_bucket(1000, 1000, sizes) == (512, 512)
    assert nearest_bucket(800, 600, sizes)[0] > nearest_bucket(800, 600, sizes)[1]
    assert nearest_bucket(100, 1000, sizes) == sizes[-1]


class FakeEncoder:
    """A face in the middle of pictures that are not dark; its weights are only told apart."""

    recogniser = "fake"
    calls = 0

    def __init__(self, recogniser: float = 0.0, detector: float = 0.0) -> None:
        self._network, self._detector = (torch.nn.ParameterList([torch.tensor(one)]) for one in (recogniser, detector))

    def detect(self, image: np.ndarray) -> list[Face]:
        height, width = image.shape[:2]
        if image.mean() < 30:
            return []
        box = np.array([0.3 * width, 0.2 * height, 0.6 * width, 0.7 * height], np.float32)
        points = np.array([[0.38, 0.4], [0.52, 0.4], [0.45, 0.5], [0.4, 0.6], [0.5, 0.6]], np.float32)
        return [Face(box, points * np.array([width, height], np.float32), 1.0)]

    def embed_aligned(self, crops: np.ndarray) -> torch.Tensor:
        FakeEncoder.calls += 1
        return torch.from_numpy(crops.astype(np.float32).mean((1, 2))).repeat(1, 2)


def encode(images: np.ndarray) -> torch.Tensor:
    """An autoencoder that keeps every eighth pixel."""
    return torch.from_numpy(images[:, ::8, ::8].astype(np.float32) / 255).permute(0, 3, 1, 2)


def preparer(
    folder: str, cache: Path, encoder: FakeEncoder | None = None, resolution: int = 64, **changes: Any
) -> Preparer:
    config = PhotoConfig(path=folder, cache=cache, **changes)
    return Preparer(config, encode, "weights", encoder or FakeEncoder(), resolution, 16)


def test_what_was_made_ready_is_found_again_by_its_content_under_any_name(tmp_path: Path) -> None:
    folder = Path(as_folder(tmp_path / "data"))
    first, report = preparer(str(folder), tmp_path / "cache")()
    assert (report.photos, report.people, report.from_cache) == (4, 2, 0)
    (folder / "anna" / "0.jpg").rename(folder / "anna" / "renamed.jpg")
    (folder / "anna" / "0.txt").rename(folder / "anna" / "renamed.txt")
    calls = FakeEncoder.calls
    second, report = preparer(str(folder), tmp_path / "cache")()
    assert report.from_cache == 4 and FakeEncoder.calls == calls
    assert {one.key for one in first} == {one.key for one in second}
    # Other sizes or crops are another cache, and no mistake.
    assert preparer(str(folder), tmp_path / "cache", crops=2)()[1].from_cache == 0
    # So is a recogniser or a detector that was trained anew and kept its name.
    for retrained in (FakeEncoder(recogniser=1.0), FakeEncoder(detector=1.0)):
        assert preparer(str(folder), tmp_path / "cache", retrained)()[1].from_cache == 0


def test_several_crops_lie_around_the_face_and_are_the_same_every_time(tmp_path: Path) -> None:
    folder = as_folder(tmp_path / "data")
    ready = preparer(folder, tmp_path / "cache", crops=3)
    photos, _ = ready()
    again = preparer(folder, tmp_path / "other", crops=3, cache_latents=False)
    uncached, _ = again()
    for one, other in zip(photos, uncached, strict=True):
        assert one.latents is not None and one.latents.shape == (3, 3, 8, 8) and other.latents is None
        for crop in range(3):
            latents, landmarks = ready.draw(one, crop)
            fresh, points = again.draw(other, crop)
            assert torch.allclose(latents, fresh, atol=1e-3) and torch.equal(landmarks, points)
            assert bool((landmarks > 0).all()) and bool((landmarks < 64).all())
        assert not torch.equal(one.latents[0], one.latents[1])


def test_buckets_keep_the_shapes_of_photos(tmp_path: Path) -> None:
    folder = Path(as_folder(tmp_path / "data"))
    (folder / "anna" / "tall.jpg").write_bytes(jpeg(9, (160, 80)))
    photos, _ = preparer(str(folder), tmp_path / "cache", aspect_ratio_buckets=True)()
    shapes = {one.name: one.size for one in photos}
    assert (
        shapes["anna/tall.jpg"][0] > 1.5 * shapes["anna/tall.jpg"][1]
        and shapes["ben/2.jpg"][0] < shapes["ben/2.jpg"][1]
    )
    for one in photos:
        assert one.latents is not None and one.latents.shape[2:] == (one.size[0] // 8, one.size[1] // 8)


def spoil(folder: Path) -> None:
    (folder / "anna" / "broken.jpg").write_bytes(jpeg(5)[:300])
    (folder / "anna" / "empty.jpg").write_bytes(b"")
    (folder / "anna" / "words.jpg").write_text("not a picture")
    dark = io.BytesIO()
    Image.new("RGB", (96, 96), "black").save(dark, "JPEG")
    (folder / "ben" / "dark.jpg").write_bytes(dark.getvalue())


@pytest.mark.parametrize(("policy", "kept"), [("skip", 4), ("mask", 5)])
def test_damaged_and_faceless_photos_end_nothing_and_are_named(tmp_path: Path, policy: str, kept: int) -> None:
    folder = Path(as_folder(tmp_path / "data"))
    spoil(folder)
    photos, report = preparer(str(folder), tmp_path / "cache", faceless=policy)()
    assert len(photos) == report.photos == kept
    assert set(report.unreadable) == {"anna/broken.jpg", "anna/empty.jpg", "anna/words.jpg"}
    assert report.faceless == ["ben/dark.jpg"] and report.captionless == (["ben/dark.jpg"] if kept == 5 else [])
    lines = report.lines()
    assert "3 photos could not be read and are left out" in lines and any(
        "1 photos show no face" in one for one in lines
    )


class Squinting(FakeEncoder):
    """Finds faces whose landmarks lie on one spot in bright pictures."""

    def detect(self, image: np.ndarray) -> list[Face]:
        found = super().detect(image)
        return (
            [replace(face, landmarks=np.zeros_like(face.landmarks)) for face in found] if image.mean() > 250 else found
        )


def test_a_face_that_can_not_be_aligned_ends_nothing_and_is_named(tmp_path: Path) -> None:
    folder = Path(as_folder(tmp_path / "data"))
    Image.new("RGB", (96, 96), "white").save(folder / "anna" / "bright.jpg")
    _, report = preparer(str(folder), tmp_path / "cache", Squinting())()
    assert report.photos == 4 and set(report.unreadable) == {"anna/bright.jpg"}
    assert report.lines()[0].startswith("anna/bright.jpg is left out: the five landmarks lie on one spot")


def test_a_faceless_photo_is_an_error_where_that_is_wanted(tmp_path: Path) -> None:
    folder = Path(as_folder(tmp_path / "data"))
    spoil(folder)
    with pytest.raises(IdgenError, match=r"no face found in ben/dark\.jpg: take it away, or set photos\.faceless"):
        preparer(str(folder), tmp_path / "cache", faceless="error")()


def test_no_face_anywhere_and_nothing_readable_are_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "ben"
    (tmp_path / "data" / "anna").mkdir(parents=True)
    folder.mkdir()
    spoil(tmp_path / "data")
    with pytest.raises(IdgenError, match=r"no face found in any of the 1 photos"):
        preparer(str(tmp_path / "data"), tmp_path / "cache")()
    (folder / "dark.jpg").unlink()
    with pytest.raises(IdgenError, match=r"none of the 3 photos in .* can be read \(anna/broken\.jpg: "):
        preparer(str(tmp_path / "data"), tmp_path / "cache")()


def test_a_damaged_entry_of_the_cache_is_made_anew(tmp_path: Path, capsys: Any) -> None:
    folder = as_folder(tmp_path / "data")
    photos, _ = preparer(folder, tmp_path / "cache")()
    file = next((tmp_path / "cache").rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:40])
    again, report = preparer(folder, tmp_path / "cache")()
    assert report.from_cache == 3 and "made anew" in capsys.readouterr().err
    for one, other in zip(photos, again, strict=True):
        assert one.latents is not None and other.latents is not None and torch.equal(one.latents, other.latents)


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_photos(tmp_path: Path) -> None:
    folder, made = as_folder(tmp_path / "data"), preparer(str(tmp_path / "data"), tmp_path / "cache")
    (tmp_path / "cache").write_text("in the way")  # as a full or read-only disk, also for root
    with pytest.raises(IdgenError, match=rf"cannot write {tmp_path}/cache/.*\.safetensors: "):
        made()
    (tmp_path / "cache").unlink()
    assert made()[1].photos == len(list(Path(folder).rglob("*.jpg")))


def test_a_resolution_that_buckets_do_not_divide_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(IdgenError, match=r"resolution 72 is no multiple of 16, .*: take 64 or 80"):
        preparer(as_folder(tmp_path / "data"), tmp_path / "cache", resolution=72, aspect_ratio_buckets=True)


def _fill(folder: Path, start: int) -> None:
    cache = DiskCache(folder, {"version": 1})
    for key in range(start, start + 40):
        cache.get(f"{key % 40:064x}", lambda key=key: ({"value": torch.full((1000,), float(key % 40))}, {}))


def test_workers_that_fill_one_cache_at_once_leave_whole_entries(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(tmp_path, start)) for start in (0, 10)]
    for worker in workers:
        worker.start()
    # One that is killed in the middle harms nothing.
    victim = context.Process(target=_fill, args=(tmp_path, 20))
    victim.start()
    victim.join(timeout=4)
    victim.kill()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    cache = DiskCache(tmp_path, {"version": 1})
    for key in range(40):
        tensors, _ = cache.get(f"{key:064x}", lambda: pytest.fail("it is not there"))
        assert torch.equal(tensors["value"], torch.full((1000,), float(key)))
