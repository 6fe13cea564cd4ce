"""No golden goes unchecked, and the checker itself can fail."""

import json
import re
from pathlib import Path

import pytest
import torch

from tests.conformance.golden import DEFAULT_ROOT, Golden, claimed, folders, root

HERE = Path(__file__).parent


def claims() -> list[str]:
    """The computations that the test modules of this folder check."""
    source = "".join(path.read_text() for path in sorted(HERE.glob("test_*.py")) if path != Path(__file__))
    return sorted(set(re.findall(r'goldens\("([^"]+)"\)', source)))


def test_there_are_goldens():
    assert folders(), f"no golden in {root()}"


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: folder.name)
def test_golden_is_known(folder):
    assert claimed(folder, claims()), f"no conformance test knows the golden {folder.name!r}"


@pytest.mark.parametrize("name", claims())
def test_every_computation_has_a_golden_of_its_own(name):
    assert json.loads((DEFAULT_ROOT / name / "README.json").read_text())["name"] == name


def test_an_unknown_folder_is_noticed(tmp_path):
    (tmp_path / "somebody_elses_method").mkdir()
    assert not claimed(tmp_path / "somebody_elses_method", claims())


@pytest.mark.parametrize("change", ["value", "shape", "left out"])
def test_a_wrong_output_is_noticed(change):
    golden = Golden(DEFAULT_ROOT / "arc2face_unet_step")
    name = "eps_cfg"
    golden.meta["outputs"] = {name: golden.meta["outputs"][name]}
    right = torch.from_numpy(golden.stored[name])
    golden.check({name: right})
    wrong = {"value": {name: right + 1e-3}, "shape": {name: right[:1]}, "left out": {}}[change]
    with pytest.raises(AssertionError, match=name):
        golden.check(wrong)
