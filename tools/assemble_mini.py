"""Puts the weights of the mini family's stages together as they ship: `python tools/assemble_mini.py RUNS FAMILY`.

RUNS holds one folder a stage (recogniser, judge, detector, probe, base, arc2face; restore if it is there), as the recipes in
configs/mini write them.
FAMILY is made anew; nothing of it is replaced before everything is found and within its limits.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

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
FURTHER = {"restore": "restore"}
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
        for name in KEPT:
            if (family / name).exists():
                shutil.copy(family / name, new / name)
        sizes = {path: path.stat().st_size for path in new.rglob("*") if path.is_file()}
        for path, size in sizes.items():
            if size > LIMIT_FILE:
                sys.exit(f"assemble_mini: {path.relative_to(new)} has {size} bytes, more than {LIMIT_FILE}")
        if sum(sizes.values()) > LIMIT_FAMILY:
            sys.exit(f"assemble_mini: the family has {sum(sizes.values())} bytes, more than {LIMIT_FAMILY}")
        if family.exists():
            shutil.rmtree(family)
        new.rename(family)
    print(f"{family}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tools/assemble_mini.py RUNS FAMILY")
    assemble(Path(sys.argv[1]), Path(sys.argv[2]))
