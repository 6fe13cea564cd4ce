"""Which vertices are the 5 and the 68 landmarks: chosen once, by where they lie on the template head.

The 68 follow the iBUG order (Sagonas et al. 2013): jaw 0-16 from the picture's left to right, brows 17-26, nose 27-35,
eyes 36-47, outer lips 48-59, inner lips 60-67.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from idgen.synthetic.asset import HeadAsset, Material, load_head

_JAW = (
    (0.72, 7.25, 0.62), (0.71, 7.02, 0.62), (0.68, 6.80, 0.66), (0.62, 6.60, 0.75), (0.53, 6.45, 0.90),
    (0.42, 6.33, 1.08), (0.29, 6.24, 1.25), (0.15, 6.19, 1.38), (0.0, 6.17, 1.42),
)  # fmt: skip
_BROW = ((0.52, 7.42), (0.43, 7.48), (0.33, 7.49), (0.22, 7.47), (0.10, 7.43))
_BRIDGE = ((0.0, 7.30), (0.0, 7.17), (0.0, 7.04))
_BASE = ((0.13, 6.84), (0.07, 6.82), (0.0, 6.81))
_LID = ((0.437, 7.290), (0.385, 7.330), (0.25, 7.320), (0.182, 7.272), (0.25, 7.243), (0.375, 7.249))
_LIP_X = (0.15, 0.06, 0.0)
NOSE_TIP, MOUTH_LEFT, MOUTH_RIGHT = 30, 48, 54


@lru_cache(maxsize=1)
def landmark_vertices() -> np.ndarray:
    """Vertex numbers (68,) of the landmarks."""
    head = load_head()
    v, masks = head.vertices, head.masks
    skin = (head.vertex_material == Material.SKIN) & (masks[4] < 0.3)
    face = skin & (masks[3] < 0.3) & (v[:, 2] > 1.05)
    lids = face & (v[:, 2] > 1.33)

    def at(x: float, y: float, among: np.ndarray = face) -> int:
        distance = np.hypot(v[:, 0] - x, v[:, 1] - y) - 0.05 * v[:, 2]  # of two at one place, the front one
        return int(np.where(among, distance, np.inf).argmin())

    def near(point: tuple[float, float, float], side: int) -> int:
        target = np.array(point) * [side, 1, 1]
        among = skin & (masks[3] < 0.3)
        return int(np.where(among, np.linalg.norm(v - target, axis=1), np.inf).argmin())

    jaw = [near(p, -1) for p in _JAW] + [near(p, 1) for p in _JAW[-2::-1]]
    brows = [at(-x, y) for x, y in _BROW] + [at(x, y) for x, y in _BROW[::-1]]
    tip = int(np.where(face & (np.abs(v[:, 0]) < 0.02), v[:, 2], -np.inf).argmax())
    nose = [at(x, y) for x, y in _BRIDGE] + [tip]
    nose += [at(-x, y) for x, y in _BASE] + [at(x, y) for x, y in _BASE[-2::-1]]
    left = [at(-x, y, lids) for x, y in _LID]
    right = [at(_LID[i][0], _LID[i][1], lids) for i in (3, 2, 1, 0, 5, 4)]
    return np.array(jaw + brows + nose + left + right + _mouth(head), np.int64)


def landmarks5_of(head: HeadAsset, flat: np.ndarray) -> np.ndarray:
    """Eye centres, nose tip, mouth corners (5, 2) of projected vertices (V, 2); the picture's left first."""
    eye = head.vertex_material == Material.EYE
    left, right = flat[eye & (head.vertices[:, 0] < 0)].mean(0), flat[eye & (head.vertices[:, 0] > 0)].mean(0)
    marks = landmark_vertices()
    return np.stack([left, right, flat[marks[NOSE_TIP]], flat[marks[MOUTH_LEFT]], flat[marks[MOUTH_RIGHT]]])


def _mouth(head: HeadAsset) -> list[int]:
    """The lips' outer and inner outlines: the lower lip is what the jaw moves."""
    v = head.vertices
    lips = head.masks[0] > 0.5
    jaw_open = len(head.macro_names) + len(head.local_names) + head.action_names.index("jawOpen")
    entries = slice(head.delta_pointer[jaw_open], head.delta_pointer[jaw_open + 1])
    drop = np.zeros(len(v))
    drop[head.delta_vertex[entries]] = -head.delta_value[entries, 1]
    lower = lips & (drop > 0.5 * drop[lips].max())
    upper = lips & (drop < 0.25 * drop[lips].max())

    def edge(among: np.ndarray, x: float, sign: int) -> int:
        column = among & (np.abs(v[:, 0] - x) < 0.03) & (v[:, 2] > 1.40)
        return int(np.where(column, sign * v[:, 1] - 2 * np.abs(v[:, 0] - x), -np.inf).argmax())

    corner_left = int(np.where(lips, -v[:, 0], -np.inf).argmax())
    corner_right = int(np.where(lips, v[:, 0], -np.inf).argmax())
    xs = [-x for x in _LIP_X] + list(_LIP_X[-2::-1])  # from the picture's left to right
    outer = [corner_left, *(edge(upper, x, 1) for x in xs), corner_right, *(edge(lower, x, -1) for x in xs[::-1])]
    inner_xs = (-0.08, 0.0, 0.08)
    inner = [corner_left, *(edge(upper, x, -1) for x in inner_xs), corner_right]
    return outer + inner + [edge(lower, x, 1) for x in inner_xs[::-1]]
