"""insightface packs through the real package, with small models of the same shape."""

import os
import shutil
import sys
import zipfile

import numpy as np
import onnx
import pytest
import torch

from idgen import FaceEncoder, IdgenError
from idgen.faces import norm_crop
from tests.faces.packs import BOX_SIDE, LANDMARKS, export, photo, scrfd, write_pack

CENTRE = (40, 30, 255)  # a bright cell


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs") / "buffalo"
    return folder, write_pack(folder)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty place for insightface's models, and a network that must not be used."""
    monkeypatch.setenv("INSIGHTFACE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


def nose(column, row):
    return np.array([8 * column + 3.5, 8 * row + 3.5])


def refused(call, *words):
    with pytest.raises(IdgenError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_faces_are_found_where_they_are(pack):
    encoder = FaceEncoder.from_pretrained(pack[0], device="cpu")
    (face,) = encoder.detect(photo(CENTRE))
    assert np.allclose(face.landmarks, nose(40, 30) + LANDMARKS, atol=0.01)
    assert np.allclose(face.size, BOX_SIDE, atol=0.01)
    assert 0.9 < face.score <= 1


def test_embeddings_are_those_of_insightface_itself(pack):
    from insightface.app import FaceAnalysis

    app = FaceAnalysis(
        name=str(pack[0]), allowed_modules=["detection", "recognition"], providers=["CPUExecutionProvider"]
    )
    app.prepare(ctx_id=-1, det_size=(640, 640))
    picture = photo(CENTRE)
    (expected,) = app.get(picture[..., ::-1])
    identity = FaceEncoder.from_pretrained(pack[0], device="cpu")(picture)
    assert torch.cosine_similarity(identity.raw[0], torch.from_numpy(expected.embedding), dim=0) > 0.9999
    assert identity.raw[0].norm().item() == pytest.approx(np.linalg.norm(expected.embedding), rel=1e-2)
    assert np.allclose(identity.landmarks[0], expected.kps, atol=1e-3)


def test_embeddings_are_those_of_the_network_in_the_file(pack):
    folder, network = pack
    encoder = FaceEncoder.from_pretrained(folder, device="cpu")
    picture = photo(CENTRE)
    crop = torch.from_numpy(norm_crop(picture, (nose(40, 30) + LANDMARKS).astype(np.float32)))
    with torch.no_grad():
        expected = network(crop.permute(2, 0, 1)[None].float() / 127.5 - 1)
    assert torch.allclose(encoder(picture).raw, expected, atol=1e-3)


def test_encode_aligned_has_gradients_and_equals_onnxruntime(pack):
    encoder = FaceEncoder.from_pretrained(pack[0], device="cpu")
    identity = encoder([photo(CENTRE), photo(CENTRE, seed=1)])
    crops = (identity.crops.permute(0, 3, 1, 2).float() / 127.5 - 1).requires_grad_()
    raw = encoder.encode_aligned(crops)
    assert torch.allclose(raw, identity.raw, atol=1e-3)
    raw.square().sum().backward()
    assert crops.grad.abs().sum() > 0


@pytest.mark.parametrize(("select", "cell"), [("best", (60, 20)), ("centre", (40, 38))])
def test_one_of_several_faces_is_selected(pack, select, cell):
    encoder = FaceEncoder.from_pretrained(pack[0], device="cpu")
    picture = photo((40, 38, 230), (60, 20, 255), (15, 60, 240))
    assert len(encoder.detect(picture)) == 3
    assert np.allclose(encoder(picture, select=select).landmarks[0, 2], nose(*cell))
    refused(lambda: encoder(picture, select="only"), "3 faces")


def test_a_photo_without_a_face_is_refused(pack):
    refused(lambda: FaceEncoder.from_pretrained(pack[0], device="cpu")(photo()), "no face")


def test_a_face_that_fills_the_photo_is_found_at_a_smaller_size(pack):
    # Light in the middle of every 4 x 4 block: too dim when 1280 px are averaged to 640, bright when sampled at 320.
    picture = np.zeros((1280, 1280, 3), np.uint8)
    block = np.zeros((4, 4, 1), np.uint8)
    block[1:3, 1:3] = 255
    column, row = 20, 15  # the cell of 8 px at 320 px
    picture[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = np.tile(block, (8, 8, 1))
    encoder = FaceEncoder.from_pretrained(pack[0], device="cpu")
    assert len(encoder._detector.model.detect(picture, input_size=(640, 640))[0]) == 0
    (face,) = encoder.detect(picture)
    assert np.allclose(face.landmarks, (nose(column, row) + LANDMARKS) * 4, atol=0.01)
    assert np.allclose(face.size, BOX_SIDE * 4, atol=0.01)


def test_only_detection_and_recognition_are_loaded(tmp_path):
    write_pack(tmp_path)
    # What buffalo_l has besides: landmarks by a network of 192 px, gender and age by one of 96.
    for name, size in (("2d106det", 192), ("genderage", 96)):
        network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
        torch.onnx.export(network, (torch.zeros(1, 3, size, size),), str(tmp_path / f"{name}.onnx"), dynamo=False)
    encoder = FaceEncoder.from_pretrained(tmp_path, device="cpu")
    assert encoder.recogniser == "buffalo_l" and len(encoder(photo(CENTRE))) == 1


@pytest.mark.parametrize(
    ("file", "name"),
    [("w600k_r50", "buffalo_l"), ("glintr100", "antelopev2"), ("arcface", "arc2face"), ("mine", "mine")],
)
def test_the_recognisers_file_says_who_made_an_embedding(tmp_path, file, name):
    write_pack(tmp_path, recogniser=f"{file}.onnx")
    assert FaceEncoder.from_pretrained(tmp_path, device="cpu").recogniser == name


def test_a_recogniser_exported_for_a_fixed_batch_takes_any_number(tmp_path):
    network = write_pack(tmp_path, batch=2)
    encoder = FaceEncoder.from_pretrained(tmp_path, device="cpu")
    pictures = [photo(CENTRE, seed=seed) for seed in range(5)]
    identity = encoder(pictures)
    with torch.no_grad():
        expected = network(identity.crops.permute(0, 3, 1, 2).float() / 127.5 - 1)
    assert torch.allclose(identity.raw, expected, atol=1e-3)


# Names, nesting and what is missing


def test_a_named_pack_is_found_in_insightfaces_folder(home, pack):
    shutil.copytree(pack[0], home / "buffalo_l")
    assert FaceEncoder.from_pretrained("buffalo_l", device="cpu").recogniser == "buffalo_l"


def test_the_folder_that_antelopev2_unpacks_too_deep_is_found(home, tmp_path):
    write_pack(home / "antelopev2" / "antelopev2", recogniser="glintr100.onnx")
    assert FaceEncoder.from_pretrained("antelopev2", device="cpu").recogniser == "antelopev2"
    assert FaceEncoder.from_pretrained(home / "antelopev2", device="cpu").recogniser == "antelopev2"


def test_a_pack_that_is_fetched_nested_works_at_once(home, tmp_path, monkeypatch, capsys):
    write_pack(tmp_path / "antelopev2", recogniser="glintr100.onnx")

    def fake_download(url, path, overwrite):
        print("Downloading", url)
        assert url.endswith("/antelopev2.zip")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for file in (tmp_path / "antelopev2").iterdir():
                archive.write(file, f"antelopev2/{file.name}")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("insightface.utils.storage.download_file", fake_download)
    assert FaceEncoder.from_pretrained("antelopev2", device="cpu").recogniser == "antelopev2"
    assert capsys.readouterr().out == "", "stdout belongs to --json"


def test_offline_says_what_to_fetch_and_where_to_put_it(home):
    refused(
        lambda: FaceEncoder.from_pretrained("buffalo_l"),
        "HF_HUB_OFFLINE",
        "https://github.com/deepinsight/insightface/releases/download/model-zoo/buffalo_l.zip",
        str(home / "buffalo_l"),
    )


@pytest.mark.parametrize("damage", ["no network", "bad zip"])
def test_a_failed_download_says_how_to_fetch_and_leaves_nothing_that_looks_whole(home, monkeypatch, damage):
    def fail(url, path, overwrite):
        if damage == "no network":
            raise ConnectionError("no route")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"PK half a zip")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("insightface.utils.storage.download_file", fail)
    for _ in range(2):
        refused(lambda: FaceEncoder.from_pretrained("buffalo_l"), "could not be fetched", "buffalo_l.zip", str(home))
    assert not (home / "buffalo_l").exists()


def test_arc2faces_recogniser_says_where_it_comes_from(home):
    refused(lambda: FaceEncoder.from_pretrained("arc2face"), "arcface.onnx", "Arc2Face", str(home / "arc2face"))


def test_incomplete_and_damaged_packs_are_refused(tmp_path):
    network = write_pack(tmp_path / "whole")
    for name in ("no-detector", "no-recogniser", "no-landmarks", "cut", "text"):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
    (tmp_path / "no-detector" / "det_10g.onnx").unlink()
    (tmp_path / "no-recogniser" / "w600k_r50.onnx").unlink()
    onnx.save(scrfd(outputs=6), tmp_path / "no-landmarks" / "det_10g.onnx")
    path = tmp_path / "cut" / "w600k_r50.onnx"
    path.write_bytes(path.read_bytes()[:-5000])
    (tmp_path / "text" / "det_10g.onnx").write_text("not a model")
    for name, words in (
        ("no-detector", "no detector"),
        ("no-recogniser", "no recogniser"),
        ("no-landmarks", "no landmarks"),
        ("cut", "damaged"),
        ("text", "damaged"),
    ):
        refused(lambda name=name: FaceEncoder.from_pretrained(tmp_path / name, device="cpu"), name, words)
    (tmp_path / "two" / "a").mkdir(parents=True)
    (tmp_path / "two" / "b").mkdir()
    for part in ("a", "b"):
        export(network, tmp_path / "two" / part / "r.onnx")
    refused(lambda: FaceEncoder.from_pretrained(tmp_path / "two"), "several model packs")


def test_a_recogniser_of_another_size_is_refused(tmp_path):
    onnx.save(scrfd(), tmp_path / "det.onnx")
    network = torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten()).eval()
    torch.onnx.export(network, (torch.zeros(1, 3, 128, 128),), str(tmp_path / "r.onnx"), dynamo=False)
    refused(lambda: FaceEncoder.from_pretrained(tmp_path, device="cpu"), "r.onnx", "112")


def test_a_network_that_is_no_iresnet_embeds_but_has_no_gradients(tmp_path):
    onnx.save(scrfd(), tmp_path / "det.onnx")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 7, 7), torch.nn.Flatten(), torch.nn.Linear(2048, 512)).eval()
    export(network, tmp_path / "w600k_mbf.onnx")
    encoder = FaceEncoder.from_pretrained(tmp_path, device="cpu")
    identity = encoder(photo(CENTRE))
    assert identity.recogniser == "buffalo_s" and identity.raw.shape == (1, 512)
    refused(lambda: encoder.encode_aligned(torch.zeros(1, 3, 112, 112)), "not an IResNet", "no gradients")


def test_opencv_without_libgl_is_one_line(tmp_path, monkeypatch):
    write_pack(tmp_path)

    class NoLibGL:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "insightface":
                raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")

    for name in [name for name in sys.modules if name.partition(".")[0] == "insightface"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoLibGL(), *sys.meta_path])
    refused(lambda: FaceEncoder.from_pretrained(tmp_path), "libGL.so.1", "apt-get install libgl1")


def test_the_mini_family_needs_neither_insightface_nor_opencv():
    import subprocess

    code = (
        "import sys, idgen; idgen.FaceEncoder; import idgen.faces.align_torch, idgen.models.mini_detector;"
        "sys.exit(any(name.partition('.')[0] in ('insightface', 'cv2', 'onnxruntime', 'onnx') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
