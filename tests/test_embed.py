"""`idgen embed`: what it writes, what it says, and what it never says."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from idgen import FaceEncoder, Identity, agreement, cli
from tests.faces.packs import photo, write_pack

FACE = (40, 30, 255)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    write_pack(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    paths = []
    for index in range(3):
        paths.append(str(tmp_path / f"anna{index}.png"))
        Image.fromarray(photo(FACE, seed=index)).save(paths[-1])
    return paths


def run(*argv):
    return cli.main([str(word) for word in argv])


def refused(capfd, *argv):
    assert run(*argv) == 2
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("idgen: ")]
    assert out == "" and len(lines) == 1 and "Traceback" not in err
    return lines[0]


def test_photos_become_the_identity_that_the_encoder_gives(pack, photos, tmp_path, capfd):
    output = tmp_path / "new folder" / "anna.safetensors"
    assert run("embed", *photos, "-o", output, "--encoder", pack, "--device", "cpu", "--json") == 0
    report = json.loads(capfd.readouterr().out)
    identity, expected = Identity.load(output), FaceEncoder.from_pretrained(pack, device="cpu")(photos)
    assert np.allclose(identity.raw, expected.raw, atol=1e-4) and np.array_equal(identity.crops, expected.crops)
    assert report["output"] == str(output)
    assert (report["recogniser"], report["references"]) == ("buffalo_l", 3)
    assert [entry["photo"] for entry in report["photos"]] == photos
    assert np.allclose(report["photos"][1]["landmarks"], expected.landmarks[1], atol=1e-4)
    assert report["lowest_similarity"] == pytest.approx(expected.similarity(expected).min().item(), abs=1e-4)
    assert report["warnings"] == []


def test_photos_of_different_people_raise_a_doubt(pack, photos, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(agreement, "SAME_PERSON", 0.9999)
    assert run("embed", *photos, "-o", tmp_path / "a.safetensors", "--encoder", pack, "--device", "cpu", "--json") == 0
    out, err = capfd.readouterr()
    [doubt] = json.loads(out)["warnings"]
    assert "may show different people" in doubt and f"note: {doubt}" in err.splitlines()


def test_a_photo_with_another_face_raises_a_doubt(pack, photos, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(agreement, "RIVAL", 0)
    assert (
        run("embed", photos[0], "-o", tmp_path / "a.safetensors", "--encoder", pack, "--device", "cpu", "--json") == 0
    )
    out, err = capfd.readouterr()
    [doubt] = json.loads(out)["warnings"]
    assert "another face" in doubt and f"note: {doubt}" in err.splitlines()


def test_embeddings_are_neither_printed_nor_in_the_json(pack, photos, tmp_path, capfd):
    assert run("embed", *photos, "-o", tmp_path / "a.safetensors", "--encoder", pack, "--json") == 0
    out, err = capfd.readouterr()
    for value in Identity.load(tmp_path / "a.safetensors").raw.flatten().tolist():
        assert f"{value:.4f}" not in out + err


def test_a_photo_is_not_replaced(tmp_path, capfd):
    given = tmp_path / "anna.safetensors"  # whatever its name says
    Image.fromarray(photo(FACE)).save(given, "PNG")
    before = given.read_bytes()
    assert "is a file to read" in refused(capfd, "embed", given, "-o", given)
    assert given.read_bytes() == before


def test_an_existing_identity_survives_a_failed_run(pack, photos, tmp_path, capfd):
    output = tmp_path / "a.safetensors"
    assert run("embed", photos[0], "-o", output, "--encoder", pack) == 0
    before = output.read_bytes()
    capfd.readouterr()
    Image.fromarray(photo()).save(tmp_path / "wall.png")
    assert "wall.png" in refused(capfd, "embed", photos[1], tmp_path / "wall.png", "-o", output, "--encoder", pack)
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.safetensors",
        "anna0.png",
        "anna1.png",
        "anna2.png",
        "wall.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "person.bin"], ".safetensors"),
        (["--encoder", "buffalo_xl"], "buffalo_xl"),
        (["--select", "smallest"], "largest"),
        (["--select", "-1"], "--select"),
        (["--select", "7"], "face 7"),
        (["--device", "cuda:77"], "cuda:77"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(pack, photos, tmp_path, capfd, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    encoder = [] if "--encoder" in arguments else ["--encoder", pack]
    assert words in refused(capfd, "embed", photos[0], *encoder, *arguments)
    assert not list(tmp_path.glob("person*"))


def test_which_face_can_be_chosen(pack, tmp_path, capfd):
    Image.fromarray(photo((20, 30, 230), (60, 30, 255))).save(tmp_path / "two.png")
    common = ["embed", tmp_path / "two.png", "-o", tmp_path / "a.safetensors", "--encoder", pack]
    assert "2 faces" in refused(capfd, *common, "--select", "only")
    assert run(*common, "--select", "best") == 0
    assert Identity.load(tmp_path / "a.safetensors").landmarks[0, 2, 0] == pytest.approx(8 * 60 + 3.5, abs=0.1)


def test_it_runs_as_a_command_with_clean_stdout(pack, photos, tmp_path):
    argv = ["embed", photos[0], "-o", str(tmp_path / "a.safetensors"), "--encoder", str(pack), "--json"]
    done = subprocess.run([sys.executable, "-m", "idgen", *argv], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["references"] == 1
    assert "Warning" not in done.stderr
