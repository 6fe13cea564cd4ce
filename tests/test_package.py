"""The wheel is the whole product: built from the checkout, installed outside it, and used there without a network."""

from __future__ import annotations

import importlib.metadata as metadata
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
# What is mapped where in the wheel (setup.py).
ROOTS = {"idgen": "idgen", "pipelines": "idgen/pipelines", "train": "idgen/train", "configs": "idgen/configs"}

NO_NETWORK = """
import socket
def refuse(self, address):
    if self.family != socket.AF_UNIX:
        raise OSError(f"a test without network connected to {address}")
socket.socket.connect = socket.socket.connect_ex = refuse
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the checkout, so that nothing left in build/ by an earlier one gets in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*ROOTS, "pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def run_installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess]:
    """Run Python in a clean virtual environment, in an empty folder outside the checkout, without a network.

    The environment holds the wheel and what the wheel says it needs (no extras). Only the files of those dependencies are
    shared, by links, with the environment that runs the tests: a second download of torch would take minutes and prove no more.
    """
    home, folder = tmp_path_factory.mktemp("clean"), tmp_path_factory.mktemp("elsewhere")
    venv.create(home, with_pip=False)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip())
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    for entry in _entries_of_dependencies(wheel):
        if not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    (site / "sitecustomize.py").write_text(NO_NETWORK)
    keep = {"PATH", "HOME", "LANG", "TMPDIR", "OMP_NUM_THREADS", "LD_LIBRARY_PATH", "SYSTEMROOT"}
    environment = {name: value for name, value in os.environ.items() if name in keep}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([python, *arguments], cwd=folder, env=environment, capture_output=True, text=True)

    return run


def _entries_of_dependencies(wheel: Path) -> set[Path]:
    """The files and folders in site-packages of everything that the wheel needs, directly or not."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    open_ = [(Requirement(line.split(":", 1)[1]), "") for line in lines if line.startswith("Requires-Dist:")]
    seen: set[tuple[str, str]] = set()
    entries: set[Path] = set()
    while open_:
        requirement, extra = open_.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *requirement.extras):
            if (requirement.name.lower(), wanted) in seen:
                continue
            seen.add((requirement.name.lower(), wanted))
            distribution = metadata.distribution(requirement.name)
            open_ += [(Requirement(line), wanted) for line in distribution.requires or ()]
            tops = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
            entries |= {Path(str(distribution.locate_file(top))) for top in tops}
    return entries


def test_the_wheel_holds_every_module_asset_and_recipe_of_the_checkout(wheel: Path) -> None:
    expected = {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in ROOTS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and (path.suffix in (".py", ".yaml", ".typed") or path.is_relative_to(ROOT / "idgen" / "assets"))
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_the_wheel_is_small_and_no_weights_file_is_over_16_mb(wheel: Path) -> None:
    assert wheel.stat().st_size < 100e6
    weights = [path for path in (ROOT / "idgen" / "assets" / "mini").rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in weights) <= 16 * 2**20
    assert sum(path.stat().st_size for path in weights) <= 90e6


def test_the_wheel_carries_the_licence_and_the_notice(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name for name in archive.namelist() if ".dist-info/licenses/" in name}
    assert names == {"LICENSE", "NOTICE"}


def test_every_module_imports_from_the_wheel_with_only_its_declared_dependencies(
    run_installed: Callable[..., subprocess.CompletedProcess],
) -> None:
    code = """
import importlib, pkgutil, idgen
assert "site-packages" in idgen.__file__, idgen.__file__
names = [module.name for module in pkgutil.walk_packages(idgen.__path__, "idgen.") if not module.name.endswith("__main__")]
assert {"idgen.pipelines", "idgen.train", "idgen.configs", "idgen.synthetic"} <= set(names), names
for name in names:
    importlib.import_module(name)
"""
    done = run_installed("-c", code)
    assert done.returncode == 0, done.stderr


def test_the_demo_runs_from_the_wheel_without_a_network(
    run_installed: Callable[..., subprocess.CompletedProcess], tmp_path: Path
) -> None:
    done = run_installed("-m", "idgen", "demo", "--steps", "2", "--out", str(tmp_path / "demo"), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"id_similarity", "id_score", "seconds_per_image", "images"} <= set(report)
    assert len(report["images"]) >= 4
    assert all(Path(path).stat().st_size > 0 for path in report["images"])
    assert -1 <= report["id_similarity"] <= 1


def test_the_doctor_finds_nothing_wrong_with_an_installed_wheel(
    run_installed: Callable[..., subprocess.CompletedProcess],
) -> None:
    done = run_installed("-m", "idgen", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["problems"] == [] and report["ok"]


@pytest.mark.parametrize("folder", ["pipelines", "train", "configs"])
def test_importing_a_mapped_folder_by_its_name_in_the_checkout_is_refused(folder: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"import idgen.{folder}, not {folder}" in done.stderr


def test_no_training_script_shadows_a_module_of_another_package() -> None:
    """`accelerate launch train/x.py` puts train/ first on sys.path: a file named like a package there would replace it."""
    ours = {path.stem for path in (ROOT / "train").glob("*.py")} - {"__init__", "__main__"}
    assert not ours & set(sys.stdlib_module_names)
    assert not ours & set(metadata.packages_distributions())


def test_the_readme_opens_with_a_picture_and_gives_the_two_commands_as_they_are() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    picture = re.search(r"!\[[^\]]+\]\(([^)]+)\)", readme)
    assert picture and readme.index(picture[0]) < readme.index("```")
    assert (ROOT / picture[1]).is_file()
    assert re.findall(r"^pip install .*$", readme, re.MULTILINE) == [
        "pip install -c constraints.txt -e . && idgen demo",
        'pip install -c constraints.txt -e ".[test]" && pytest',
    ]
