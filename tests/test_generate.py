"""`idgen generate` with random weights: what it writes, what it says, and that nothing is half-written."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from idgen import provenance
from idgen.cli import main
from idgen.commands._guidance import identity_guidance
from idgen.commands.demo import EXAMPLE
from idgen.finetune import FinetuneConfig, add_adapter, save_adapter
from idgen.identity import Identity
from idgen.models.mini_detector import MiniDetector
from idgen.pipelines import Arc2FacePipeline
from idgen.provenance import is_marked, save_png
from idgen.rewards.ascent import STRENGTH
from tests.tiny_family import face_in_the_middle, tiny_family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_family(tmp_path_factory.mktemp("mini"))


@pytest.fixture(autouse=True)
def with_family(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDGEN_MINI", str(family))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)


@pytest.fixture
def anna(tmp_path: Path) -> Path:
    """An identity of two references, saved to a file."""
    generator = torch.Generator().manual_seed(1)
    path = tmp_path / "anna.safetensors"
    crops = torch.randint(0, 255, (2, 112, 112, 3), dtype=torch.uint8, generator=generator)
    Identity(torch.randn(2, 512, generator=generator), "mini", crops).save(path)
    return path


@pytest.fixture
def photo() -> Path:
    return EXAMPLE / "reference_1.png"


def generate(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    words = ["generate", "--json", "--steps", "2", "--device", "cpu", "--dtype", "fp32", *map(str, arguments)]
    assert main(words) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["generate", "--json", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("idgen: ")]
    assert out == "" and len(lines) == 1 and "Traceback" not in err
    return lines[0]


def pixels(paths: list[str]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def test_it_writes_the_images_asked_for_and_says_where(anna, tmp_path, capsys):
    report = generate(capsys, anna, "-n", 3, "-o", tmp_path / "new" / "out")
    assert [Path(path).name for path in report["images"]] == ["anna_01.png", "anna_02.png", "anna_03.png"]
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == {f"anna_0{n}.png" for n in (1, 2, 3)}
    assert pixels(report["images"]).shape == (3, 32, 32, 3)
    assert report["seconds_per_image"] > 0 and report["recogniser"] == "mini"
    assert report["people"] == [{"name": "anna", "references": 2, "images": report["images"]}]
    assert [line[:47] for line in report["warnings"]] == ["anna: the references may show different people "]


def test_photos_are_embedded_by_the_models_own_recogniser(photo, tmp_path, capsys):
    report = generate(capsys, photo, photo, "-n", 1, "-o", tmp_path / "out")
    assert report["people"][0]["references"] == 2 and report["warnings"] == []
    assert [Path(path).name for path in report["images"]] == ["person_01.png"]


def test_several_identity_files_are_several_people(anna, tmp_path, capsys):
    other = tmp_path / "other" / "anna.safetensors"
    Identity(torch.randn(1, 512), "mini").save(other)
    report = generate(capsys, anna, other, "-n", 2, "-o", tmp_path / "out")
    names = [Path(path).name for path in report["images"]]
    assert names == ["anna-1_01.png", "anna-1_02.png", "anna-2_01.png", "anna-2_02.png"]
    assert [person["references"] for person in report["people"]] == [2, 1]
    assert not np.array_equal(*pixels([report["images"][0], report["images"][2]]))


def test_the_batch_size_changes_no_image(anna, tmp_path, capsys):
    one, many = (
        pixels(generate(capsys, anna, "-n", 3, "-o", tmp_path / str(batch), "--batch", batch, "--steps", 10)["images"])
        for batch in (1, 3)
    )
    assert np.abs(one.astype(int) - many).max() <= 1


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(anna, tmp_path, capsys):
    first, again, other = (
        generate(capsys, anna, "-n", 2, "-o", tmp_path / name, "--seed", seed)["images"]
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert [Path(path).read_bytes() for path in first] == [Path(path).read_bytes() for path in again]
    assert not np.array_equal(pixels(first), pixels(other))
    assert not np.array_equal(*pixels(first))


def test_the_recogniser_guides_the_mini_family_unless_told_not_to(anna, tmp_path, capsys):
    usual, asked, plain = (
        generate(capsys, anna, "-n", 2, "-o", tmp_path / name, "--steps", 10, *flags)
        for name, flags in (
            ("a", ()),
            ("b", ("--identity-guidance", STRENGTH)),
            ("c", ("--identity-guidance", 0)),
        )
    )
    assert [report["identity_guidance"] for report in (usual, asked, plain)] == [STRENGTH, STRENGTH, 0]
    assert np.array_equal(pixels(usual["images"]), pixels(asked["images"]))
    assert not np.array_equal(pixels(usual["images"]), pixels(plain["images"]))


def test_other_models_are_guided_when_asked_only():
    assert identity_guidance(Namespace(model="FoivosPar/Arc2Face", identity_guidance=None)) == 0
    assert identity_guidance(Namespace(model="FoivosPar/Arc2Face", identity_guidance=0.02)) == 0.02


@pytest.mark.parametrize("strength", ["-0.1", "strong", "nan", "2"])
def test_a_strength_that_is_none_is_one_line(anna, strength, capsys):
    assert "is not a number from 0 to 1" in refused(capsys, anna, f"--identity-guidance={strength}")


@pytest.mark.parametrize("kind", ["lora", "oft"])
def test_an_adapter_changes_the_pictures_as_strongly_as_asked(kind, anna, family, tmp_path, capsys):
    file = tmp_path / "learned.safetensors"
    pipe = Arc2FacePipeline.from_pretrained(str(family))
    for parameter in add_adapter(pipe, FinetuneConfig(kind=kind)).values():
        torch.nn.init.normal_(parameter.data, std=0.3)
    save_adapter(file, pipe)

    def drawn(*words: Any) -> np.ndarray:
        report = generate(capsys, anna, "-n", 1, "-o", tmp_path / "out", *words)
        assert (report["adapter"], report["strength"]) == (
            (str(file) if words else None),
            words[3] if words[2:] else None,
        )
        return pixels(report["images"]).astype(float)

    without = drawn()
    whole, half, none = (drawn("--adapter", file, *words) for words in ((), ("--strength", 0.5), ("--strength", 0)))
    assert (none == without).all()
    assert 0 < np.abs(half - without).mean() < np.abs(whole - without).mean()


def test_a_prompt_leads_the_pictures_as_far_as_asked(anna, tmp_path, capsys):
    def drawn(*words: Any) -> np.ndarray:
        report = generate(capsys, anna, "-n", 1, "-o", tmp_path / "out", "--identity-guidance", 0, "--steps", 5, *words)
        assert report["prompt"] == (words[1] if words else None)
        return pixels(report["images"]).astype(float)

    prompt = ("--prompt", "a photo of a smiling person")
    without, led, read = (
        drawn(*words) for words in ((), (*prompt, "--words-guidance", 0), (*prompt, "--words-guidance", 1))
    )
    assert (drawn(*prompt, "--text-guidance", 0, "--words-guidance", 0) == without).all()
    assert (led != without).any() and (read != led).any()
    (doubt,) = generate(capsys, anna, "-n", 1, "-o", tmp_path, "--prompt", "a smiling knight")["warnings"][1:]
    assert doubt.startswith("--prompt: the mini family knows") and doubt.endswith("and not knight")
    assert "--prompt" in refused(capsys, anna, "--text-guidance", 2)
    assert "--prompt" in refused(capsys, anna, "--words-guidance", 0.02)
    assert "--prompt is empty" in refused(capsys, anna, "--prompt", " ")
    assert "from 0 up" in refused(capsys, anna, *prompt, "--text-guidance", -1)


def test_what_is_no_adapter_is_one_line(anna, tmp_path, capsys):
    assert refused(capsys, anna, "--adapter", anna, "-o", tmp_path / "out").startswith(
        f"idgen: {anna} is a face embedding: `idgen generate` takes it"
    )
    assert "no such weights file" in refused(capsys, anna, "--adapter", "none.safetensors", "-o", tmp_path / "out")
    assert "--adapter" in refused(capsys, anna, "--strength", 0.5, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_largest_seed_works(anna, tmp_path, capsys):
    generate(capsys, anna, "-n", 2, "-o", tmp_path / "out", "--seed", 2**63 - 1)


def test_the_sheet_shows_references_and_results(anna, tmp_path, capsys):
    report = generate(capsys, anna, "-n", 2, "-o", tmp_path / "out", "--sheet")
    sheet = Image.open(report["sheet"])
    assert sheet.width >= 2 * 160 and sheet.height >= 2 * 160
    assert report["sheet"] not in report["images"] and len(list((tmp_path / "out").iterdir())) == 3


def test_every_picture_says_that_it_was_generated(anna, tmp_path, capsys):
    report = generate(capsys, anna, "-n", 1, "-o", tmp_path / "out", "--sheet")
    for path in [*report["images"], report["sheet"]]:
        assert is_marked(path)
        with Image.open(path) as image:
            assert image.info["idgen"] == "AI-generated"
            assert provenance.SOURCE_TYPE in image.info["XML:com.adobe.xmp"]


def test_a_photo_is_not_marked(photo):
    assert not is_marked(photo)


def test_a_mark_needs_a_png(tmp_path):
    from idgen.errors import IdgenError

    with pytest.raises(IdgenError, match=r"end in \.png"):
        save_png(tmp_path / "a.jpg", Image.new("RGB", (4, 4)))


def test_no_report_holds_an_embedding(anna, tmp_path, capsys):
    report = json.dumps(generate(capsys, anna, "-n", 1, "-o", tmp_path / "out"))
    # Six digits: with four, one of 512 numbers now and then begins as the seconds do.
    assert not any(f"{value:.6f}" in report for value in Identity.load(anna).raw.flatten().tolist())


def test_mistakes_are_one_line_and_leave_nothing(anna, photo, tmp_path, capsys):
    out = tmp_path / "out"
    stranger = tmp_path / "stranger.safetensors"
    Identity(torch.randn(1, 512), "buffalo_l").save(stranger)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(anna.read_bytes()[:100])
    file = tmp_path / "file"
    file.touch()
    for arguments, message in (
        ([tmp_path / "nobody.png"], "nobody.png"),
        ([tmp_path / "nobody.safetensors"], "nobody.safetensors"),
        ([broken], "broken.safetensors"),
        ([stranger], "'buffalo_l'"),
        ([anna, photo], "not both"),
        ([anna, "-n", "0"], "above 0"),
        ([anna, "--model", "foivospar/Arc2Face"], "hf download"),
        ([anna, "--model", "nonsense"], "no such folder"),
        ([photo, "--encoder", "nonsense"], "nonsense"),
        ([], "PERSON"),
    ):
        assert message in refused(capsys, *arguments, "-o", out)
        assert not out.exists(), arguments
    assert f"{file}: it is a file; name a folder" in refused(capsys, anna, "-o", file, "--model", "nonsense")


def test_no_picture_replaces_a_photo_or_another_picture(anna, photo, tmp_path, capsys):
    for name in ("person_02.png", "sheet.png"):
        given = tmp_path / name
        given.write_bytes(photo.read_bytes())
        words = (given, "--sheet", "--model", "nonsense", "-o", tmp_path)
        assert f"{given} is a file to read" in refused(capsys, *words, "-n", 2)
        assert given.read_bytes() == photo.read_bytes()
    twice = tmp_path / "other" / "anna.safetensors"
    third = tmp_path / "anna-1.safetensors"
    for file in (twice, third):
        Identity.load(anna).save(file)
    assert "anna-1_01.png is named for two outputs" in refused(capsys, anna, twice, third, "-o", tmp_path)


def test_an_interruption_leaves_whole_pictures_only(anna, tmp_path, capsys, monkeypatch):
    from idgen.pipelines import Arc2FacePipeline

    calls = []

    def interrupted(self, *arguments, **options):
        calls.append(options)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    original = Arc2FacePipeline.__call__
    monkeypatch.setattr(Arc2FacePipeline, "__call__", interrupted)
    out = tmp_path / "out"
    assert main(["generate", str(anna), "-n", "4", "--batch", "1", "--steps", "2", "-o", str(out)]) == 130
    assert sorted(path.name for path in out.iterdir()) == ["anna_01.png", "anna_02.png"]
    assert pixels([str(path) for path in out.iterdir()]).shape == (2, 32, 32, 3)
