"""Puts the weights of the mini family's stages together as they ship: `python tools/assemble_mini.py RUNS FAMILY`.

RUNS holds one folder a stage (recogniser, judge, detector, probe, base, arc2face; restore, inpaint, reader and decoder if they
are there), as the recipes in configs/mini write them. A decoder that was trained on takes the place of the base's.
FAMILY is made anew; nothing of it is replaced before everything is found and within its limits.
"""

from __future__ import annotations

import json
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
FURTHER = {"restore": "restore", "inpaint": "inpaint", "reader": "reader"}
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
        if (runs / "decoder" / "weights").is_dir():
            _check_latents(runs / "decoder" / "weights", new / "vae")
            shutil.copytree(runs / "decoder" / "weights", new / "vae", dirs_exist_ok=True)
        for stage, place in FURTHER.items():
            if (runs / stage / "weights").is_dir():
                shutil.copytree(runs / stage / "weights", new / place, ignore=shutil.ignore_patterns("vq"))
                _check_latents(runs / stage / "weights" / "vq", new / "vae")
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


def _check_latents(trained_with: Path, ships: Path) -> None:
    """A stage over latents works with the encoder alone that made them, and with their scale; decoders may differ."""
    name, settings = "diffusion_pytorch_model.safetensors", "config.json"
    if not (trained_with / name).is_file():
        return
    own, shared = (
        {key: value.half() for key, value in load_file(folder / name).items() if not key.startswith("decoder.")}
        for folder in (trained_with, ships)
    )
    scales = [json.loads((folder / settings).read_text())["scaling_factor"] for folder in (trained_with, ships)]
    if own.keys() != shared.keys() or any(not value.equal(shared[key]) for key, value in own.items()):
        sys.exit(f"assemble_mini: {trained_with} makes other latents than the autoencoder of the base does")
    if scales[0] != scales[1]:
        sys.exit(
            f"assemble_mini: {trained_with} scales its latents by {scales[0]}, the autoencoder of the base by {scales[1]}"
        )


def _largest(sizes: dict[Path, int], count: int = 8) -> list[tuple[Path, int]]:
    return sorted(sizes.items(), key=lambda one: -one[1])[:count]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tools/assemble_mini.py RUNS FAMILY")
    assemble(Path(sys.argv[1]), Path(sys.argv[2]))
