"""Where weights are looked for."""

from pathlib import Path

import pytest

import idgen
from idgen.errors import IdgenError
from idgen.weights import find_mini, insightface_root, mini_root


def test_the_mini_family_lies_inside_the_package(monkeypatch):
    monkeypatch.delenv("IDGEN_MINI", raising=False)
    assert mini_root() == Path(idgen.__file__).parent / "assets" / "mini"


def test_weights_in_training_are_found_through_the_environment(tmp_path, monkeypatch):
    (tmp_path / "unet").mkdir()
    monkeypatch.setenv("IDGEN_MINI", str(tmp_path))
    assert find_mini("unet") == tmp_path / "unet"
    with pytest.raises(IdgenError, match=r"'vae' is not at .*IDGEN_MINI"):
        find_mini("vae")


def test_insightface_models_lie_in_the_home_folder_or_where_it_says(tmp_path, monkeypatch):
    monkeypatch.delenv("INSIGHTFACE_HOME", raising=False)
    assert insightface_root() == Path.home() / ".insightface"
    monkeypatch.setenv("INSIGHTFACE_HOME", str(tmp_path))
    assert insightface_root() == tmp_path
