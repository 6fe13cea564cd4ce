"""`idgen inpaint` with random weights: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from idgen.adapters.pva.person import PersonWeights
from idgen.cli import main
from idgen.faces import FaceEncoder
from idgen.identity import Identity
from idgen.models.mini_detector import Detections, MiniDetector
from idgen.provenance import is_marked
from idgen.rewards.ascent import STRENGTH, WORDS_STRENGTH
from tests.tiny_family import face_in_the_middle
from tests.tiny_inpainting import tiny_inpainting_family

FEW = ("--steps", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return tiny_inpainting_family(tmp_path_factory.mktemp("mini"))


@pytest.fixture(autouse=True)
def with_family(family, monkeypatch):
    monkeypatch.setenv("IDGEN_MINI", str(family))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)


@pytest.fixture
def files(tmp_path):
    """A photo, a mask for it, and two references."""
    for name, seed in (("photo.png", 0), ("a.png", 1), ("b.png", 2)):
        noise = np.random.default_rng(seed).integers(0, 256, (70, 90, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
    mask = np.zeros((70, 90), np.uint8)
    mask[30:50, 35:60] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path


def run(capfd, *words):
    assert main([str(word) for word in (*words, "--json")]) == 0
    out, err = capfd.readouterr()
    return json.loads(out), err


def test_a_mask_is_filled_and_the_rest_is_the_photo(files, capfd):
    refs = ("--ref", files / "a.png", files / "b.png")
    report, _ = run(
        capfd, "inpaint", files / "photo.png", "--mask", files / "mask.png", *refs,
        "-o", files / "out.png", "--compare", files / "sheet.png", *FEW,
    )  # fmt: skip
    before, after = (np.asarray(Image.open(files / name)) for name in ("photo.png", "out.png"))
    hole = np.asarray(Image.open(files / "mask.png")) > 0
    assert np.array_equal(before[~hole], after[~hole]) and not np.array_equal(before[hole], after[hole])
    assert report["filled_share"] == pytest.approx(hole.mean()) and report["references"] == 2
    assert is_marked(files / "out.png") and is_marked(files / "sheet.png")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_seed_decides_and_the_references_act(files, capfd, dtype):
    for seed, name in enumerate("ab"):  # a random recogniser finds all noise alike
        vectors = torch.randn(2, 512, generator=torch.Generator().manual_seed(seed))
        Identity(vectors, "mini").save(files / f"{name}.safetensors")
    anna, bert = (["--ref", files / f"{name}.safetensors"] for name in "ab")
    made = {}
    for name, words in (
        ("one", anna),
        ("again", anna),
        ("other", bert),
        ("words", [*anna, "--prompt", "<new1> smiling", "--guidance", "6", "--text-control"]),
        ("seed", [*anna, "--seed", "1"]),
    ):
        out = files / f"{name}.png"
        run(capfd, "inpaint", files / "photo.png", "--region", "whole", *words, "-o", out, "--dtype", dtype, *FEW)
        made[name] = np.asarray(Image.open(out))
    assert np.array_equal(made["one"], made["again"])
    for name in ("other", "words", "seed"):
        assert not np.array_equal(made["one"], made[name]), name


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_recogniser_guides_the_mini_family_unless_told_not_to(files, capfd, dtype):
    words = ("inpaint", files / "photo.png", "--region", "whole", "--ref", files / "a.png", "--dtype", dtype)
    drawn = []
    for flags in ((), ("--identity-guidance", STRENGTH), ("--identity-guidance", 0)):
        report, _ = run(capfd, *words, *flags, "-o", files / "out.png", "--steps", 10, "--device", "cpu")
        assert report["identity_guidance"] == (flags[1] if flags else STRENGTH)
        drawn.append(np.asarray(Image.open(files / "out.png")))
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_reader_guides_what_is_asked_for_in_words(files, capfd, dtype):
    words = ("inpaint", files / "photo.png", "--region", "whole", "--ref", files / "a.png", "--dtype", dtype)
    drawn = {}
    for name, flags in {
        "usual": ("--prompt", "<new1> smiling"),
        "asked": ("--prompt", "<new1> smiling", "--words-guidance", WORDS_STRENGTH),
        "off": ("--prompt", "<new1> smiling", "--words-guidance", 0),
        "nothing named": ("--prompt", "<new1>"),
        "nothing named, off": ("--prompt", "<new1>", "--words-guidance", 0),
    }.items():
        report, _ = run(capfd, *words, *flags, "-o", files / "out.png", "--steps", 10, "--device", "cpu")
        assert report["words_guidance"] == (flags[3] if len(flags) > 3 else WORDS_STRENGTH)
        drawn[name] = np.asarray(Image.open(files / "out.png"))
    assert np.array_equal(drawn["usual"], drawn["asked"])
    assert not np.array_equal(drawn["usual"], drawn["off"])
    assert np.array_equal(drawn["nothing named"], drawn["nothing named, off"])


def test_an_identity_file_and_weights_of_a_person_serve(files, capfd):
    FaceEncoder.from_pretrained("mini", device="cpu")([files / "a.png"]).save(files / "anna.safetensors")
    words = ("inpaint", files / "photo.png", "--region", "eyes", *FEW)
    for ref in ("a.png", "anna.safetensors"):
        run(capfd, *words, "--ref", files / ref, "-o", files / f"{ref}.png")
    assert (files / "a.png.png").read_bytes() == (files / "anna.safetensors.png").read_bytes()
    PersonWeights("visual", {"modifier": torch.ones(512)}, "another").save(files / "person.safetensors")
    assert main([str(word) for word in (*words, "--person", files / "person.safetensors")]) == 2
    assert "made with another PVA model" in capfd.readouterr().err


def test_without_references_it_says_so(files, capfd):
    report, err = run(capfd, "inpaint", files / "photo.png", "--region", "eyes", "-o", files / "out.png", *FEW)
    assert report["references"] == 0 and report["warnings"] == ["no references: filled with nobody in particular"]
    assert "note: no references" in err


def test_references_of_several_people_are_noted_or_refused(files, capfd, refused, tmp_path):
    several = Identity(torch.eye(512)[:3], "mini")
    several.save(files / "several.safetensors")
    words = ("inpaint", files / "photo.png", "--region", "eyes", "--ref", files / "several.safetensors", *FEW)
    report, _ = run(capfd, *words, "-o", files / "out.png")
    assert "may show different people" in report["warnings"][0]
    assert "different people" in refused(*words, "-o", files / "no.png", "--strict")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "one of the arguments --mask --region is required"),
        (("--region", "ear"), "use one of lowerface, eyes, brows, whole, random"),
        (("--mask", "a.png", "--region", "eyes"), "not allowed with"),
        (("--mask", "small.png"), "small.png has 3 x 3 pixels and the picture 90 x 70"),
        (("--mask", "black.png"), "black.png covers nothing"),
        (("--mask", "no.png"), "no such file"),
        (("--region", "eyes", "--ref", "no.png"), "no such file"),
        (("--region", "eyes", "--ref", "a.png", "i.safetensors"), "not both"),
        (("--region", "eyes", "-o", "out.jpg"), "let the name end in .png"),
        (("--region", "eyes", "--steps", "0"), "not a whole number above 0"),
        (("--region", "eyes", "--steps", "5000"), "num_inference_steps is 5000, expected 1 to 1000"),
        (("--region", "eyes", "--guidance", "nan"), "'nan' is not a number from 0 up"),
        (("--region", "eyes", "--text-control"), "add --guidance 6"),
        (("--region", "eyes", "--model", "nowhere"), "no such folder"),
        (("--region", "eyes", "--encoder", "nowhere"), "no face encoder"),
    ],
)
def test_mistakes_are_one_line(files, refused, words, message, monkeypatch):
    monkeypatch.chdir(files)
    Image.new("L", (3, 3), 255).save("small.png")
    Image.new("L", (90, 70)).save("black.png")
    Identity(torch.ones(1, 512), "mini").save("i.safetensors")
    assert message in refused("inpaint", "photo.png", *words)


def test_no_picture_replaces_a_photo_or_another_picture(files, refused, monkeypatch):
    monkeypatch.chdir(files)
    words = ("inpaint", "photo.png", "--mask", "mask.png", "--ref", "a.png")
    for name in ("photo.png", "mask.png", "a.png"):
        assert f"{name} is a file to read" in refused(*words, "-o", name)
        assert f"{name} is a file to read" in refused(*words, "--compare", name)
    assert "inpainted.png is named for two outputs" in refused(*words, "--compare", "inpainted.png")


def test_no_face_for_a_region_is_one_line(files, refused, monkeypatch):
    empty = Detections(torch.zeros(0, 4), torch.zeros(0, 5, 2), torch.zeros(0))
    monkeypatch.setattr(MiniDetector, "detect", lambda self, images, threshold=0.5: [empty for _ in images])
    assert "no face found in" in refused("inpaint", files / "photo.png", "--region", "eyes", "-o", files / "x.png")


def test_a_mini_family_that_can_not_inpaint_says_so_in_one_line(files, refused, family, monkeypatch, tmp_path):
    monkeypatch.setenv("IDGEN_MINI", str(tmp_path / "elsewhere"))
    line = refused("inpaint", files / "photo.png", "--region", "eyes", "-o", files / "x.png")
    assert "'inpaint' is not at" in line
