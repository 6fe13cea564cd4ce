"""Which training of train/ a recipe of configs/ is for."""

from __future__ import annotations

from pathlib import Path

import idgen.configs
from idgen.train.config import TrainConfig
from tools.train_mini import stage_of

CONFIGS = Path(idgen.configs.__file__).parent
# Recipes that are not named like their training.
TRAININGS = {
    "decoder": "autoencoder",
    "encoder": "autoencoder",
    "held_out": "recogniser",
    "judge": "recogniser",
    "perceptual": "probe",
    "personalise": "lora",
    "pva": "inpaint",
    "reader": "probe",
    "refldm": "restore",
    "reward_adapter": "reward",
}


def config_class(training: str) -> type[TrainConfig]:
    """The settings of train/NAME.py."""
    return stage_of(training)[1]


def plans() -> list[Path]:
    """Plans of tools/train_mini.py."""
    return sorted((CONFIGS / "mini").glob("plan_*.yaml"))


def recipes() -> list[Path]:
    """Every other YAML file of configs/ but the protocols, which belong to `idgen evaluate`."""
    files = set(CONFIGS.rglob("*.yaml")) - set((CONFIGS / "protocols").glob("*.yaml"))
    return sorted(files - set(plans()))


def training_of(recipe: Path) -> str:
    return TRAININGS.get(recipe.stem, recipe.stem)
