"""A small folder of synthetic people, rendered once for all tests of the trainings."""

from __future__ import annotations

from pathlib import Path

import pytest

from idgen import cli


@pytest.fixture(scope="session")
def people_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six people, four shots each, 128 px."""
    folder = tmp_path_factory.mktemp("people") / "data"
    arguments = [
        "synth",
        "--people",
        "6",
        "--shots",
        "4",
        "--out",
        str(folder),
        "--workers",
        "1",
        "--first-person",
        "950000",
    ]
    assert cli.main(arguments) == 0
    return folder
