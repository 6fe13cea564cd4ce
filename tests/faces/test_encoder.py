"""FaceEncoder: which face is meant, what is said when none can be, and embeddings that do not depend on the batch."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from idgen import FaceEncoder, Identity, IdgenError
from idgen.faces import Face, norm_crop
from idgen.faces.torch_backend import LONGEST_SIDE, TorchDetector, TorchRecogniser
from idgen.models.registry import build_detector, build_recogniser, register_recogniser

POINTS = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]], np.float32)


def face(left, top, side, score=0.9):
    box = np.array([left, top, left + side, top + side], np.float32)
    return Face(box, box[:2] + POINTS * side, score)


# Largest, best and nearest to the centre of a 400 x 300 photo are three different faces.
LARGEST, BEST, CENTRAL = face(10, 20, 120, 0.7), face(300, 200, 60, 0.95), face(180, 130, 40, 0.8)


def encoder(*faces, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = torch.nn.Sequential(torch.nn.AvgPool2d(28), torch.nn.Flatten(), torch.nn.Linear(48, 512))
    return FaceEncoder(lambda pixels: list(faces), TorchRecogniser(network), "stub")


def photo(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (300, 400, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("select", "expected"),
    [("largest", LARGEST), ("best", BEST), ("centre", CENTRAL), (0, LARGEST), (1, BEST), (2, CENTRAL)],
)
def test_the_face_that_is_asked_for_is_embedded(select, expected):
    identity = encoder(CENTRAL, BEST, LARGEST)(photo(), select=select)
    assert np.allclose(identity.landmarks[0], expected.landmarks)
    assert identity.scores.tolist() == [pytest.approx(expected.score)]
    assert np.array_equal(identity.crops[0], norm_crop(photo(), expected.landmarks))
    assert identity.recogniser == "stub"


def test_how_near_another_face_comes_is_told_where_nobody_said_who_is_meant():
    crowded, alone = encoder(CENTRAL, BEST, LARGEST), encoder(LARGEST)
    assert crowded([photo(), photo()]).rivals.tolist() == pytest.approx([0.25, 0.25]), "60 px beside 120"
    assert alone(photo()).rivals.tolist() == [0]
    assert crowded(photo(), select=0).rivals.tolist() == [0]


def test_a_photo_with_the_only_face_needs_no_choice():
    assert len(encoder(LARGEST)(photo(), select="only")) == 1


def refused(call, *words):
    with pytest.raises(IdgenError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_several_faces_are_refused_when_one_is_asked_for():
    refused(lambda: encoder(LARGEST, BEST)(photo(), select="only"), "2 faces", "'largest'")


def test_no_face_is_refused_with_the_name_of_the_photo(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "wall.png")
    refused(lambda: encoder()(tmp_path / "wall.png"), "no face", "wall.png")
    refused(lambda: encoder()([tmp_path / "wall.png", photo()]), "wall.png")
    refused(lambda: encoder()(photo()), "the image")


def test_a_face_of_12_px_is_refused_with_its_size():
    refused(lambda: encoder(face(5, 5, 12))(photo()), "too small", "12 x 12 px", "20")
    assert len(encoder(face(5, 5, 20))(photo())) == 1


def test_small_faces_in_the_background_do_not_matter():
    assert len(encoder(LARGEST, face(5, 5, 12))(photo())) == 1


@pytest.mark.parametrize("select", ["smallest", -1, True, 1.5, None, ""])
def test_an_unknown_selection_is_refused_before_anything_is_read(select):
    refused(lambda: encoder(LARGEST)("no-such-photo.png", select=select), "select=", "'largest'")


def test_a_face_number_that_is_not_there_is_refused():
    refused(lambda: encoder(LARGEST, BEST)(photo(), select=2), "face 2", "it shows 2")


def test_no_photo_and_unreadable_photos_are_refused(tmp_path):
    (tmp_path / "bad.png").write_text("no")
    refused(lambda: encoder(LARGEST)([]), "no photo")
    refused(lambda: encoder(LARGEST)([photo(), tmp_path / "bad.png"]), "bad.png", "not an image")


def test_landmarks_that_make_no_face_are_refused_by_photo():
    flat = Face(LARGEST.box, np.ones((5, 2), np.float32), 0.9)
    refused(lambda: encoder(flat)([photo(), photo()]), "image 0", "landmarks")


def test_several_photos_are_several_references_in_their_order():
    one = encoder(LARGEST)
    together = one([photo(1), Image.fromarray(photo(2)), photo(3)])
    apart = Identity.concat([one(photo(seed)) for seed in (1, 2, 3)])
    assert torch.allclose(together.raw, apart.raw, atol=1e-5) and torch.equal(together.crops, apart.crops)


def test_many_photos_pass_in_batches():
    one = encoder(LARGEST)
    many = one([photo(seed % 3) for seed in range(70)])
    assert many.raw.shape == (70, 512)
    assert torch.allclose(many.raw[69], one(photo(0)).raw[0], atol=1e-5)


def test_detect_gives_all_faces_largest_first():
    found = encoder(CENTRAL, BEST, LARGEST).detect(photo())
    assert [f.score for f in found] == [0.7, 0.95, 0.8]
    assert encoder().detect(photo()) == []


def test_encode_aligned_equals_the_call_and_has_gradients():
    one = encoder(LARGEST)
    identity = one(photo())
    crops = (identity.crops.permute(0, 3, 1, 2).float() / 127.5 - 1).requires_grad_()
    raw = one.encode_aligned(crops)
    assert torch.allclose(raw, identity.raw, atol=1e-5)
    raw.sum().backward()
    assert crops.grad.abs().sum() > 0
    refused(lambda: one.encode_aligned(torch.zeros(1, 3, 128, 128)), "(n, 3, 112, 112)")


def test_weights_of_the_recogniser_gather_no_gradients():
    one = encoder(LARGEST)
    assert not any(p.requires_grad for p in one._network.module.parameters())


# The torch detector


class CornerDetector(torch.nn.Module):
    """Says that the face spans the middle half of the picture that it is shown."""

    def detect(self, images):
        (image,) = images
        height, width = image.shape[:2]
        self.seen = image.shape
        box = torch.tensor([[width / 4 - 0.5, height / 4 - 0.5, 3 * width / 4 - 0.5, 3 * height / 4 - 0.5]])
        points = torch.full((1, 5, 2), 0.0) + torch.tensor([width / 2 - 0.5, height / 2 - 0.5])
        return [(box, points, torch.tensor([0.9]))]


@pytest.mark.parametrize(("width", "height"), [(300, 200), (LONGEST_SIDE + 2, 500), (5000, 2500), (30, 6000)])
def test_large_photos_are_searched_small_and_answered_in_their_own_pixels(width, height):
    module = CornerDetector()
    (found,) = TorchDetector(module)(np.zeros((height, width, 3), np.uint8))
    assert max(module.seen[:2]) == min(LONGEST_SIDE, max(width, height))
    expected = [width / 4 - 0.5, height / 4 - 0.5, 3 * width / 4 - 0.5, 3 * height / 4 - 0.5]
    assert np.allclose(found.box, expected, atol=0.01)
    assert np.allclose(found.landmarks, [width / 2 - 0.5, height / 2 - 0.5], atol=0.01)


# Folders


def write_network(folder, network, config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()},
        folder / "model.safetensors",
    )


@pytest.fixture
def family(tmp_path, monkeypatch):
    """A mini family with random weights in $IDGEN_MINI."""
    torch.manual_seed(0)
    for part, config in (
        ("recogniser", {"architecture": "mini_recogniser", "name": "mini", "embedding_dim": 512}),
        ("judge", {"architecture": "judge", "name": "judge"}),
    ):
        write_network(tmp_path / "mini" / part, build_recogniser(config), config)
    config = {"architecture": "mini_detector"}
    write_network(tmp_path / "mini" / "detector", build_detector(config), config)
    monkeypatch.setenv("IDGEN_MINI", str(tmp_path / "mini"))
    return tmp_path / "mini"


@pytest.mark.parametrize("name", ["mini", "judge"])
def test_the_mini_family_loads_by_name(family, name):
    one = FaceEncoder.from_pretrained(name, device="cpu")
    assert one.recogniser == name and str(one.device) == "cpu" and name in repr(one)
    assert one.encode_aligned(torch.zeros(2, 3, 112, 112)).shape == (2, 512)
    assert isinstance(one.detect(photo()), list)


@pytest.mark.parametrize("name", ["arcface", "w600k_r50", "glintr100", "mine"])
def test_a_recogniser_of_ones_own_is_called_as_its_identities_are(tmp_path, family, name):
    config = {"architecture": "judge", "name": name}
    write_network(tmp_path / "own" / "recogniser", build_recogniser(config), config)
    one = FaceEncoder.from_pretrained(tmp_path / "own", device="cpu")
    assert one.recogniser == Identity(torch.ones(1, 512), name).recogniser


def test_a_folder_shaped_like_the_family_loads(family):
    one = FaceEncoder.from_pretrained(family, device="cpu")
    assert one.recogniser == "mini"
    crops = torch.rand(2, 3, 112, 112) * 2 - 1
    assert torch.equal(
        one.encode_aligned(crops), FaceEncoder.from_pretrained("mini", device="cpu").encode_aligned(crops)
    )


@pytest.mark.parametrize("name", ["mini", "judge"])
def test_half_precision_embeddings_are_near_and_float32(family, name):
    crops = torch.rand(2, 3, 112, 112) * 2 - 1
    exact = FaceEncoder.from_pretrained(name, device="cpu").encode_aligned(crops)
    fast = FaceEncoder.from_pretrained(name, device="cpu", dtype="bf16").encode_aligned(crops)
    assert fast.dtype == torch.float32
    assert torch.cosine_similarity(exact, fast).min() > 0.99 and not torch.equal(exact, fast)


def test_a_family_that_is_not_there_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("IDGEN_MINI", str(tmp_path))
    refused(lambda: FaceEncoder.from_pretrained("mini"), "recogniser", str(tmp_path), "train")


def test_names_and_folders_that_are_no_encoder_are_refused(tmp_path):
    refused(lambda: FaceEncoder.from_pretrained("buffalo_xl"), "buffalo_xl", "buffalo_l", "mini")
    refused(lambda: FaceEncoder.from_pretrained(tmp_path), str(tmp_path), "no face encoder")


def test_an_unknown_device_or_dtype_is_refused(family):
    refused(lambda: FaceEncoder.from_pretrained("mini", device="tpu"), "tpu")
    refused(lambda: FaceEncoder.from_pretrained("mini", device="cpu", dtype="int8"), "int8")


def test_broken_configs_are_refused(family):
    path = family / "recogniser" / "config.json"
    for text, words in (
        ("{", "cannot read"),
        ("[]", "not a JSON object"),
        ('{"architecture": "resnet"}', "unknown recogniser architecture 'resnet'"),
        ('{"architecture": "mini_recogniser", "width": 3}', "width"),
        ('{"architecture": "judge"}', "do not fit"),
    ):
        path.write_text(text)
        refused(lambda: FaceEncoder.from_pretrained("mini"), words)
    path.unlink()
    refused(lambda: FaceEncoder.from_pretrained("mini"), "config.json")


def test_registered_recognisers_can_be_built(monkeypatch):
    monkeypatch.setattr("idgen.models.registry.RECOGNISERS", {})
    register_recogniser("flat", lambda size: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(37632, size)))
    assert build_recogniser({"architecture": "flat", "size": 8, "name": "x"})(torch.zeros(1, 3, 112, 112)).shape == (
        1,
        8,
    )


@pytest.mark.parametrize(
    "architecture", ["iresnet18", "iresnet34", "iresnet50", "iresnet100", "mini_recogniser", "judge"]
)
def test_every_recogniser_keeps_the_contract(architecture):
    with torch.device("meta"):
        network = build_recogniser({"architecture": architecture, "embedding_dim": 256}).eval()
        assert network(torch.zeros(2, 3, 112, 112)).shape == (2, 256)
