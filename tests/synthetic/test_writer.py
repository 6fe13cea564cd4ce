"""`idgen synth`: the same bytes however it was made, resumable, readable by `datasets`, never a child."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from idgen import cli
from idgen.data.faces import FaceFolder
from idgen.errors import IdgenError
from idgen.synthetic import PARSING_CLASSES, Renderer, samples
from idgen.synthetic.layouts import LAYOUTS, PARTS
from idgen.synthetic.people import ADULT
from idgen.synthetic.samples import PALETTE, render_unit
from idgen.synthetic.settings import SynthSettings, Unit
from idgen.synthetic.workers import run_units
from idgen.synthetic.writer import _describe, write_dataset

SETTINGS = SynthSettings(people=9, shots=2, size=48, seed=3, first_person=40)
ARGUMENTS = ["--people", "9", "--shots", "2", "--size", "48", "--seed", "3", "--first-person", "40"]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def start_synth(out: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "idgen", "synth", *ARGUMENTS, "--out", str(out), *more]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_images(process: subprocess.Popen, out: Path, count: int) -> None:
    give_up = time.monotonic() + 300
    while len(list(out.glob("images/*/*.png"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "finished"
    report = write_dataset(SETTINGS, out)
    assert (report.images, report.people, report.rendered) == (18, 9, 18)
    return out


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "shards"
    write_dataset(replace(SETTINGS, format="webdataset"), out)
    return out


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    for name, content in tree(finished).items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "copy"


def test_the_tree_holds_every_shot_and_nothing_else(finished):
    shots = [f"p{person:06d}/s{shot:03d}.png" for person in range(40, 49) for shot in range(2)]
    expected = {
        "idgen-synth.json",
        "metadata.jsonl",
        *(f"{kind}/{name}" for kind in ("images", "masks") for name in shots),
    }
    assert set(tree(finished)) == expected
    rows = [json.loads(line) for line in (finished / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == [f"images/{name}" for name in shots]


def test_two_workers_write_the_same_bytes_as_one(finished, tmp_path):
    write_dataset(SETTINGS, tmp_path / "two", workers=2)
    assert tree(tmp_path / "two") == tree(finished)


@pytest.mark.parametrize("count", [1, 7])
def test_a_kill_leaves_no_half_written_image_and_the_resumed_tree_is_the_same(finished, tmp_path, count):
    out = tmp_path / "killed"
    process = start_synth(out, "--workers", "2")
    wait_for_images(process, out, count)
    os.kill(process.pid, signal.SIGKILL)  # the workers are left to notice by themselves
    process.communicate()
    assert not (out / "metadata.jsonl").exists()
    for path in out.glob("images/*/*.png"):
        Image.open(path).load()
    report = write_dataset(SETTINGS, out)
    assert report.rendered <= 18
    assert tree(out) == tree(finished)


def test_ctrl_c_ends_with_one_line_and_the_run_can_go_on(finished, tmp_path):
    out = tmp_path / "interrupted"
    process = start_synth(out, "--workers", "2")
    wait_for_images(process, out, 3)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "idgen: interrupted"
    assert "Traceback" not in errors
    write_dataset(SETTINGS, out, workers=2)
    assert tree(out) == tree(finished)


def test_a_finished_tree_is_not_rendered_again(copy, finished):
    assert write_dataset(SETTINGS, copy).rendered == 0
    assert tree(copy) == tree(finished)


@pytest.mark.parametrize("damage", ["metadata cut in a line", "image cut", "mask missing", "row missing"])
def test_what_a_power_cut_damaged_is_made_again(copy, finished, damage):
    metadata = copy / "metadata.jsonl"
    if damage == "metadata cut in a line":
        metadata.write_bytes(metadata.read_bytes()[:-100])
    elif damage == "row missing":
        metadata.write_text("".join(metadata.read_text().splitlines(keepends=True)[:-1]))
    elif damage == "image cut":
        path = copy / "images/p000042/s001.png"
        path.write_bytes(path.read_bytes()[:200])
    else:
        (copy / "masks/p000043/s000.png").unlink()
    assert 0 < write_dataset(SETTINGS, copy).rendered <= 4
    assert tree(copy) == tree(finished)


def test_other_settings_are_refused_and_nothing_is_changed(copy, finished):
    with pytest.raises(IdgenError, match=r"was begun with size 48, not 64; seed 3, not 4"):
        write_dataset(replace(SETTINGS, size=64, seed=4), copy)
    assert tree(copy) == tree(finished)


def test_a_shot_does_not_depend_on_what_else_is_rendered(finished, tmp_path):
    write_dataset(replace(SETTINGS, people=2, first_person=43), tmp_path / "part")
    part, whole = tree(tmp_path / "part"), tree(finished)
    assert {name for name, content in part.items() if content != whole[name]} == {"idgen-synth.json", "metadata.jsonl"}
    assert set(part["metadata.jsonl"].splitlines()) <= set(whole["metadata.jsonl"].splitlines())


def test_masks_hold_class_numbers_and_images_are_pictures(finished):
    assert len(PALETTE) == 3 * len(PARSING_CLASSES)
    seen = set()
    for path in finished.glob("masks/*/*.png"):
        mask = np.asarray(Image.open(path))
        assert mask.shape == (48, 48)
        seen |= set(np.unique(mask).tolist())
    assert {"background", "skin", "lips", "nose", "hair"} <= {PARSING_CLASSES[number] for number in seen}
    pictures = [np.asarray(Image.open(path)) for path in finished.glob("images/*/*.png")]
    assert {picture.shape for picture in pictures} == {(48, 48, 3)}
    assert min(picture.std() for picture in pictures) > 10


def test_datasets_imagefolder_reads_images_masks_and_ground_truth(finished, tmp_path):
    from datasets import load_dataset

    data = load_dataset("imagefolder", data_dir=str(finished), cache_dir=str(tmp_path), split="train")
    assert len(data) == 18
    assert {"image", "mask", "person", "shot", "seed", "caption", "attributes", "landmarks5", "landmarks68"} <= set(
        data.column_names
    )
    assert "label" not in data.column_names
    for row in (data[0], data[17]):
        name = f"p{row['person']:06d}/s{row['shot']:03d}.png"
        assert np.array_equal(row["image"], Image.open(finished / "images" / name))
        assert np.array_equal(row["mask"], Image.open(finished / "masks" / name))
        assert np.shape(row["landmarks5"]) == (5, 2)
        assert np.shape(row["landmarks68"]) == (68, 2)
        assert len(row["pose"]) == 3
        assert len(row["expression"]) == 52
        assert set(row["attributes"]["gender"].split()) <= {"woman", "man"}
        assert row["caption"].isascii()


def test_datasets_and_webdataset_read_the_shards(shards, finished, tmp_path):
    import webdataset
    from datasets import load_dataset

    files = sorted(map(str, shards.glob("*.tar")))
    data = load_dataset("webdataset", data_files=files, cache_dir=str(tmp_path), split="train")
    samples_read = list(webdataset.WebDataset(files, shardshuffle=False, empty_check=False).decode("rgb8"))
    assert [row["__key__"] for row in data] == [row["__key__"] for row in samples_read]
    assert len(samples_read) == 18
    rows = [json.loads(line) for line in (finished / "metadata.jsonl").read_text().splitlines()]
    for row, sample, decoded in zip(rows, data, samples_read, strict=True):
        assert sample["txt"] == row["caption"] == decoded["json"]["caption"]
        assert np.array_equal(decoded["png"], Image.open(finished / row["file_name"]))
        assert np.array_equal(sample["mask.png"], Image.open(finished / row["mask_file_name"]))


def test_shards_are_the_same_bytes_with_two_workers_and_after_a_lost_or_cut_shard(shards, tmp_path):
    settings = replace(SETTINGS, format="webdataset")
    out = tmp_path / "two"
    write_dataset(settings, out, workers=2)
    assert tree(out) == tree(shards)
    (out / "000003.tar").unlink()
    cut = out / "000005.tar"
    cut.write_bytes(cut.read_bytes()[:-700])
    assert write_dataset(settings, out).rendered == 4
    assert tree(out) == tree(shards)


def test_no_child_is_ever_rendered(monkeypatch, tmp_path):
    ages = []
    render = Renderer.render

    def recording(self, people, *args, **kwargs):
        ages.extend(person.age for person in people)
        return render(self, people, *args, **kwargs)

    monkeypatch.setattr(Renderer, "render", recording)
    write_dataset(SynthSettings(people=24, shots=1, size=32), tmp_path / "adults")
    assert len(ages) == 24
    assert min(ages) >= ADULT


def test_a_child_that_slipped_in_stops_the_run(monkeypatch, tmp_path, capsys):
    sample_person = samples.sample_person
    monkeypatch.setattr(samples, "sample_person", lambda seed, number: replace(sample_person(seed, number), age=0.5))
    code = cli.main(["synth", "--people", "1", "--shots", "1", "--workers", "1", "--out", str(tmp_path / "out")])
    assert code == 2
    assert "adult" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.png"))


def test_the_command_prints_the_speed_and_one_json_object(tmp_path, capsys):
    arguments = ["synth", "--people", "2", "--shots", "1", "--size", "32", "--workers", "1", "--json"]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert {"images", "people", "seconds", "images_per_second", "out"} <= set(report)
    assert (report["images"], report["people"], report["out"]) == (2, 2, str(tmp_path / "out"))
    assert report["images_per_second"] == pytest.approx(2 / report["seconds"])
    assert "images/s" in err


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--people", "0", "--people"),
        ("--people", "-3", "--people"),
        ("--people", "many", "--people"),
        ("--people", "1000001", "person numbers end at 999999"),
        ("--shots", "0", "--shots"),
        ("--size", "16", "--size must be 32 to 1024"),
        ("--size", "4096", "--size must be 32 to 1024"),
        ("--supersampling", "9", "--supersampling must be 1 to 4"),
        ("--workers", "0", "--workers"),
        ("--first-person", "-1", "--first-person"),
        ("--format", "zip", "--format"),
        ("--out", "/dev/null", "is a file"),
        ("--out", "/dev/null/deeper", "cannot write"),
        ("--out", "/proc/idgen", "cannot write"),
        ("--out", "/etc", "holds something else"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, capsys, flag, value, said):
    arguments = {"--people": "1", "--shots": "1", "--size": "32", "--workers": "1", "--out": str(tmp_path / "out")}
    arguments[flag] = value
    assert cli.main(["synth", *(word for pair in arguments.items() for word in pair)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("idgen: ")
    assert err.count("\n") == 1
    assert said in err
    assert not (tmp_path / "out").exists()


def test_two_runs_into_one_folder_at_once_are_refused(tmp_path):
    (tmp_path / PARTS).mkdir()
    with FileLock(tmp_path / PARTS / "lock"):
        with pytest.raises(IdgenError, match="is being written by another idgen synth"):
            write_dataset(SETTINGS, tmp_path)


def test_a_worker_that_dies_is_one_error_and_not_a_hang():
    units = [Unit(0, range(1)), Unit(1, range(1, 2))]
    with pytest.raises(IdgenError, match="a worker died"):
        list(run_units(os._exit, (9,), units, workers=2))


def test_an_error_in_a_worker_reaches_the_caller(tmp_path):
    units = [Unit(0, range(1)), Unit(1, range(1, 2))]
    with pytest.raises(FileNotFoundError):
        list(run_units(os.listdir, (tmp_path / "missing",), units, workers=2))


def test_arrays_hold_the_pictures_of_the_folder_and_trainings_read_them(finished, tmp_path):
    out = tmp_path / "arrays"
    write_dataset(replace(SETTINGS, format="arrays"), out, workers=2)
    assert set(tree(out)) == {"idgen-synth.json", "images.npy", "masks.npy", "metadata.jsonl"}
    arrays, folder = FaceFolder.open(out), FaceFolder.open(finished)
    assert np.array_equal(arrays.images, folder.images) and np.array_equal(arrays.masks, folder.masks)
    assert arrays.captions == folder.captions and np.array_equal(arrays.landmarks, folder.landmarks)
    assert write_dataset(replace(SETTINGS, format="arrays"), out).rendered == 0


def test_arrays_go_on_after_a_kill(tmp_path):
    settings, out = replace(SETTINGS, format="arrays"), tmp_path / "killed"
    units = settings.units(LAYOUTS["arrays"].images_per_unit)
    (out / PARTS).mkdir(parents=True)
    layout = LAYOUTS["arrays"](out, settings.shots)
    (out / "idgen-synth.json").write_text(_describe(settings).decode())
    for _ in layout.save(units[1], render_unit(Renderer(), units[1], settings)):
        pass
    assert write_dataset(settings, out).rendered == settings.images - 2 * len(units[1].people)
    write_dataset(settings, tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("harm", ["lost", "cut"])
def test_arrays_that_a_power_cut_spoilt_are_made_again(tmp_path, harm):
    settings = replace(SETTINGS, people=2, format="arrays")
    write_dataset(settings, tmp_path / "whole")
    out = tmp_path / "spoilt"
    write_dataset(settings, out)
    if harm == "lost":
        (out / "images.npy").unlink()
    else:
        (out / "masks.npy").write_bytes((out / "masks.npy").read_bytes()[:-1])
    assert write_dataset(settings, out).rendered == settings.images
    assert tree(out) == tree(tmp_path / "whole")


def test_a_part_that_a_power_cut_emptied_is_made_again(tmp_path):
    settings, out = replace(SETTINGS, format="arrays"), tmp_path / "killed"
    units = settings.units(LAYOUTS["arrays"].images_per_unit)
    (out / PARTS).mkdir(parents=True)
    layout = LAYOUTS["arrays"](out, settings.shots)
    for _ in layout.save(units[0], render_unit(Renderer(), units[0], settings)):
        pass
    assert layout.has(units[0])
    (out / PARTS / "000000.images.npy").write_bytes(b"")
    assert not layout.has(units[0])


def test_a_folder_without_its_arrays_is_named(tmp_path):
    out = tmp_path / "arrays"
    write_dataset(replace(SETTINGS, people=2, format="arrays"), out)
    (out / "images.npy").unlink()
    with pytest.raises(IdgenError, match="lacks the arrays of its 4 pictures"):
        FaceFolder.open(out)
