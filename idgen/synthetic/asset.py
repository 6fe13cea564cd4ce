"""The head that every person is a variation of: a mesh, its shape targets and its facial actions.

The file idgen/assets/head.npz is made by tools/export_head_asset.py from MakeHuman data (CC0, see NOTICE).
Lengths are in decimetres; x points to the picture's right for a head that faces the camera, y up, z to the camera.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from idgen.errors import IdgenError

ASSET = Path(__file__).parent.parent / "assets" / "head.npz"
UNIT = 2000.0  # stored int16 offsets per decimetre
MASKS = ("lips", "eyelids", "face", "ears", "inside_mouth")
HEAD_CENTRE = np.array([0.0, 7.45, 0.6], np.float32)  # the middle of the skull, from which directions are measured


class Material(IntEnum):
    """What a triangle is made of."""

    SKIN = 0
    EYE = 1
    TEETH = 2
    TONGUE = 3
    LASH = 4
    HAIR = 5


@dataclass(frozen=True, eq=False)
class HeadAsset:
    """The template head with V vertices, T triangles and D targets (macro, local, then the 52 actions)."""

    vertices: np.ndarray  # (V, 3) float32
    triangles: np.ndarray  # (T, 3) int32
    triangle_material: np.ndarray  # (T,) uint8, Material
    vertex_material: np.ndarray  # (V,) uint8
    masks: np.ndarray  # (5, V) float32 in [0, 1], rows as MASKS
    occlusion: np.ndarray  # (V,) float32: the share of the surroundings that the vertex sees
    lash_root: np.ndarray  # (V,) int32: a lash vertex's root on the lid; every other vertex is its own
    macro_names: tuple[str, ...]
    local_names: tuple[str, ...]
    action_names: tuple[str, ...]
    delta_pointer: np.ndarray  # (D + 1,) int32: target d moves the entries [pointer[d], pointer[d + 1]) below
    delta_vertex: np.ndarray  # (E,) int32
    delta_value: np.ndarray  # (E, 3) float32

    @cached_property
    def sides(self) -> tuple[tuple[str, int, int | None], ...]:
        """The local shape parameters: (name, target for positive values, target for negative ones or None)."""
        found: list[tuple[str, int, int | None]] = []
        index, names = 0, self.local_names
        shapes = ("diamond", "invertedtriangular", "oval", "rectangular", "round", "square", "triangular")
        single = ("asym-", *(f"head-{shape}" for shape in shapes))
        while index < len(names):
            alone = names[index].startswith(single)
            found.append((names[index], index, None if alone else index + 1))
            index += 1 if alone else 2
        return tuple(found)


@lru_cache(maxsize=1)
def load_head() -> HeadAsset:
    """Read the shipped head once per process. Raises IdgenError when the installation has lost it."""
    try:
        with np.load(ASSET, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise IdgenError(f"{ASSET} can not be read ({error}): reinstall idgen-diffusion") from None
    macros, locals_, actions = (int(n) for n in data["counts"])
    names = [str(name) for name in data["names"]]
    return HeadAsset(
        vertices=data["vertices"],
        triangles=data["triangles"].astype(np.int32),
        triangle_material=data["triangle_material"],
        vertex_material=data["vertex_material"],
        masks=data["masks"].astype(np.float32) / 255,
        occlusion=data["occlusion"].astype(np.float32) / 255,
        lash_root=data["lash_root"].astype(np.int32),
        macro_names=tuple(names[:macros]),
        local_names=tuple(names[macros : macros + locals_]),
        action_names=tuple(names[macros + locals_ : macros + locals_ + actions]),
        delta_pointer=data["delta_pointer"],
        delta_vertex=data["delta_vertex"].astype(np.int32),
        delta_value=np.ascontiguousarray(data["delta_value"].T.astype(np.float32) / UNIT),
    )
