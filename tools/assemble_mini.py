"""Puts the weights of the mini family's stages together as they ship: `python tools/assemble_mini.py RUNS FAMILY`.

RUNS holds one folder a stage (recogniser, judge, detector, probe, base, arc2face; restore and inpaint if they are there), as the
recipes in configs/mini write them.
FAMILY is made anew; nothing of it is replaced before everything is found and within its limits.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file

LIMIT_FILE, LIMIT_FAMILY = 16_000_000, 90_000_000
# stage -> folder inside the family; "" spreads the stage's folders at the top
PLACES = {
    "recogniser": "recogniser",
    "judge": "judge",
    "detector": "detector",
    "probe": "probe",
    "base": "",
    "arc2face": "",
}
# Where they have been trained; their copy of the family's autoencoder stays behind.
FURTHER = {"restore": "restore", "inpaint": "inpaint"}
# Made by other commands and kept from the family that is replaced.
KEPT = ("README.md", "judge/statistics.json")


def assemble(runs: Path, family: Path) -> None:
    missing = [stage for stage in PLACES if not (runs / stage / "weights").is_dir()]
    if missing:
        sys.exit(f"assemble_mini: no weights of {', '.join(missing)} in {runs}: train them first (docs/training.md)")
    family.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=family.parent) as temporary:
        new = Path(temporary) / "family"
        for stage, place in PLACES.items():
            shutil.copytree(runs / stage / "weights", new / place, dirs_exist_ok=True)
        for stage, place in FURTHER.items():
            if (runs / stage / "weights").is_dir():
                shutil.copytree(runs / stage / "weights", new / place, ignore=shutil.ignore_patterns("vq"))
                _check_autoencoder(runs / stage / "weights" / "vq", new / "vae")
        for name in KEPT:
            if (family / name).exists():
                shutil.copy(family / name, new / name)
        sizes = {path: path.stat().st_size for path in new.rglob("*") if path.is_file()}
        for path, size in sizes.items():
            if size > LIMIT_FILE:
                sys.exit(f"assemble_mini: {path.relative_to(new)} has {size} bytes, more than {LIMIT_FILE}")
        if sum(sizes.values()) > LIMIT_FAMILY:
            largest = ", ".join(f"{path.relative_to(new)} {size / 1e6:.1f} MB" for path, size in _largest(sizes))
            sys.exit(f"assemble_mini: the family has {sum(sizes.values())} bytes, more than {LIMIT_FAMILY}: {largest}")
        if family.exists():
            shutil.rmtree(family)
        new.rename(family)
    print(f"{family}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB")


def _check_autoencoder(trained_with: Path, ships: Path) -> None:
    """A stage over latents works with the autoencoder alone that made them."""
    name = "diffusion_pytorch_model.safetensors"
    if not (trained_with / name).is_file():
        return
    own, shared = load_file(trained_with / name), load_file(ships / name)
    if own.keys() != shared.keys() or any(not value.half().equal(shared[key].half()) for key, value in own.items()):
        sys.exit(f"assemble_mini: {trained_with.parent} was trained with another autoencoder than {ships.name}/ is")


def _largest(sizes: dict[Path, int], count: int = 8) -> list[tuple[Path, int]]:
    return sorted(sizes.items(), key=lambda one: -one[1])[:count]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tools/assemble_mini.py RUNS FAMILY")
    assemble(Path(sys.argv[1]), Path(sys.argv[2]))
