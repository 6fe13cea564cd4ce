"""`idgen doctor`: what is here, what is missing and how to get it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from idgen import cli
from idgen.commands import doctor


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of weights that hold nothing but what a test puts there."""
    monkeypatch.setenv("INSIGHTFACE_HOME", str(tmp_path / "insightface"))
    monkeypatch.setenv("IDGEN_MINI", str(tmp_path / "mini"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def report(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert cli.main(["doctor", "--json", *arguments]) == 0
    return json.loads(capfd.readouterr().out)


def test_it_reports_versions_device_and_dtype(capfd: pytest.CaptureFixture[str]) -> None:
    told = report(capfd, "--device", "cpu", "--dtype", "fp32")
    assert told["packages"]["torch"] == torch.__version__
    assert (told["device"], told["dtype"]) == ("cpu", "float32")
    assert told["cpu"]["cores"] >= 1 and isinstance(told["cpu"]["bf16_in_hardware"], bool)
    assert len(told["cuda"]["devices"]) == torch.cuda.device_count()


def test_it_finds_weights_where_they_lie(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    places = {
        ("mini", "unet"): home / "mini" / "unet",
        ("insightface", "buffalo_l"): home / "insightface" / "models" / "buffalo_l",
        ("insightface", "arc2face"): home / "insightface" / "models" / "arc2face",
        ("hub", "FoivosPar/Arc2Face"): home / "hub" / "models--FoivosPar--Arc2Face" / "snapshots" / "abc",
    }
    for folder in places.values():
        folder.mkdir(parents=True)
        (folder / "weights.onnx").write_bytes(b"x")
    told = report(capfd)
    for (family, name), folder in places.items():
        assert told["weights"][family].pop(name) == str(folder)
    assert not any(path for family in told["weights"].values() for path in family.values())


def test_what_is_missing_comes_with_the_way_to_get_it(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = report(capfd)
    assert set(told["missing"]) == {*doctor.INSIGHTFACE, *doctor.HUB}
    assert str(home / "insightface" / "models" / "antelopev2") in told["missing"]["antelopev2"]
    recipe = told["missing"]["arc2face"]
    assert "copy antelopev2 to " + str(home / "insightface" / "models" / "arc2face") in recipe
    assert "arcface.onnx of FoivosPar/Arc2Face in place of its glintr100.onnx" in recipe
    assert not told["ok"]
    assert {problem["what"] for problem in told["problems"]} >= {
        f"the mini family lacks {name}" for name in doctor.MINI
    }
    assert all(problem["mend"] for problem in told["problems"])


def test_a_missing_libgl_comes_with_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_libgl(name: str) -> object:
        raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(doctor, "import_module", without_libgl)
    (problem,) = doctor._opencv()
    assert "libGL.so.1" in problem["what"]
    assert "apt-get install libgl1" in problem["mend"]


def test_a_package_that_is_absent_or_too_old_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "peft":
            raise doctor.metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "diffusers" else "2.0"

    monkeypatch.setattr(
        doctor.metadata, "requires", lambda name: ["peft>=0.18", "diffusers>=0.42", "tqdm", "x; extra == 'y'"]
    )
    monkeypatch.setattr(doctor.metadata, "version", version)
    found, problems = doctor._packages()
    assert found == {"diffusers": "0.0.1", "tqdm": "2.0"}
    assert problems == [
        {"what": "peft is not installed", "mend": "pip install 'peft>=0.18'"},
        {"what": "diffusers 0.0.1 is not >=0.42", "mend": "pip install 'diffusers>=0.42'"},
    ]


def test_every_training_that_the_doctor_names_exists_and_makes_the_component() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in guide.splitlines() if line.startswith("| ") and "`train/" in line]
    for component, training in doctor.MINI.items():
        assert importlib.util.find_spec(training)
        makers = [command for *_, command, _, made, _ in rows if f" {component}/" in made]
        # What no row names is a part of the base, a whole StableDiffusionPipeline.
        assert any(f"train/{training.split('.')[-1]}.py" in command for command in makers) or (
            not makers and training == "idgen.train.base"
        ), component
