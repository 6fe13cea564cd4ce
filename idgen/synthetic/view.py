"""What a shader starts from: a posed mesh, the numbers of the picture, and the mesh as the key light sees it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from idgen.synthetic import parameters as P
from idgen.synthetic.asset import Material, load_head
from idgen.synthetic.geometry import PIVOT, Scene, build_scene, neutral_head, triangles
from idgen.synthetic.people import Person
from idgen.synthetic.shots import Shot

SHADOW_SIZE = 192
SHADOW_WIDTH = 3.8  # decimetres that the shadow map covers


@dataclass(frozen=True, eq=False)
class View:
    """One picture before shading; the meaning of `parameters` is in parameters.py."""

    scene: Scene
    parameters: np.ndarray  # (COUNT,) float64
    lit_xy: np.ndarray  # (V, 2) float32: vertices in the shadow map, columns and rows
    lit_depth: np.ndarray  # (V,) float32: how far from the light they are
    light: np.ndarray  # (3, 4): from a point to column, row and depth in the shadow map


def view_of(person: Person, shot: Shot) -> View:
    scene = build_scene(person, shot)
    flat, place = _seen_from(scene, shot.light.key)
    return View(
        scene=scene,
        parameters=P.pack(person, shot, scene.camera, scene.head_rotation, _eye_centres(), _frame_place(person)),
        lit_xy=np.ascontiguousarray(flat[:, :2]),
        lit_depth=np.ascontiguousarray(flat[:, 2]),
        light=place,
    )


@lru_cache(maxsize=1)
def shadow_casters() -> np.ndarray:
    """The triangles (T, 3) int32 that throw shadows."""
    corners, materials = triangles()
    return corners[(materials == Material.SKIN) | (materials == Material.HAIR)]


@lru_cache(maxsize=1)
def one_sided() -> np.ndarray:
    """Which triangles (T,) bool can only be seen from outside."""
    _, materials = triangles()
    return materials == Material.SKIN


@lru_cache(maxsize=1)
def _eye_centres() -> np.ndarray:
    head = load_head()
    left, right = _eyes()
    return np.stack([head.vertices[left].mean(0), head.vertices[right].mean(0)])


@lru_cache(maxsize=1)
def _eyes() -> tuple[np.ndarray, np.ndarray]:
    head = load_head()
    eye, x = head.vertex_material == Material.EYE, head.vertices[:, 0]
    return eye & (x < 0), eye & (x > 0)


def _frame_place(person: Person) -> np.ndarray:
    """Where glasses sit on this head: (4,), see FRAME_PLACE."""
    head, bare = load_head(), neutral_head(person)
    left, right = (bare[eye].mean(0) for eye in _eyes())
    x, y, z = head.vertices.T
    skin = head.vertex_material == Material.SKIN
    bridge = skin & (np.abs(x) < 0.25) & (y > 7.12) & (y < 7.45)
    temple = skin & (np.abs(y - 7.3) < 0.12) & (z > 0.6) & (head.masks[3] < 0.3)
    return np.array(
        [
            (right[0] - left[0]) / 2 + 0.015,
            (right[1] + left[1]) / 2 - PIVOT[1],
            bare[bridge, 2].max() - PIVOT[2] + 0.045,
            np.abs(bare[temple, 0]).max() + 0.015,
        ]
    )


def _seen_from(scene: Scene, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) in the shadow map of a light that shines from the direction `key`, and the map itself (3, 4)."""
    across = np.cross([0.0, 1.0, 0.0], key)
    across /= np.linalg.norm(across)
    up = np.cross(key, across)
    centre = np.array([0.0, 0.5, 0.1])
    scale = SHADOW_SIZE / SHADOW_WIDTH
    rows = np.stack([across * scale, -up * scale, -key])
    shift = np.array([SHADOW_SIZE / 2, SHADOW_SIZE / 2, 8.0]) - rows @ centre
    place = np.concatenate([rows, shift[:, None]], 1)
    flat = (scene.points @ rows.T.astype(np.float32) + shift.astype(np.float32)).astype(np.float32)
    return flat, place
