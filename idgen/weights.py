"""Where weights lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from idgen.errors import IdgenError


def mini_root() -> Path:
    """The folder of the mini family: the one inside the package, or $IDGEN_MINI (weights still in training)."""
    chosen = os.environ.get("IDGEN_MINI")
    return Path(chosen).expanduser() if chosen else Path(__file__).parent / "assets" / "mini"


def find_mini(component: str) -> Path:
    """The folder of one component of the mini family, such as `"recogniser"` or `"unet"`.

    Raises:
        IdgenError: it is not there; says how to make it.
    """
    folder = mini_root() / component
    if not folder.exists():
        raise IdgenError(
            f"the mini family's {component!r} is not at {folder}: reinstall idgen-diffusion,"
            " or train it (the scripts in train/ write it) and let $IDGEN_MINI name the folder above it"
        )
    return folder


def insightface_root() -> Path:
    """The folder in which insightface keeps its model packs, `~/.insightface` or $INSIGHTFACE_HOME."""
    return Path(os.environ.get("INSIGHTFACE_HOME", "~/.insightface")).expanduser()
