"""From a person and a shot to a posed mesh before the camera. Small per-image arrays: numpy and numba, on the CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np

from idgen.synthetic.asset import HeadAsset, Material, load_head
from idgen.synthetic.hair import HAIR_TRIANGLES, hair_field, hair_lift, strands
from idgen.synthetic.landmarks import landmark_vertices, landmarks5_of
from idgen.synthetic.people import Person
from idgen.synthetic.shots import Shot

PIVOT = np.array([0.0, 6.6, 0.55], np.float32)  # the head turns about the top of the neck
CAMERA_HEIGHT = 0.45  # above the pivot: about the nose
# Where the five landmarks fall in the 112 px ArcFace crop (Deng et al. 2019): framing aims at a zoomed-out copy.
ARCFACE = np.array([[38.29, 51.70], [73.53, 51.50], [56.03, 71.74], [41.55, 92.37], [70.73, 92.20]], np.float32)
ZOOM = 0.78
DROP = 0.02  # the face lies a little below the middle: hair needs room


@dataclass(frozen=True, eq=False)
class Scene:
    """The mesh of one picture: head vertices first, then the hair strands. Positions in world axes, decimetres."""

    points: np.ndarray  # (V, 3) float32, relative to PIVOT
    normals: np.ndarray  # (V, 3) float32
    attributes: np.ndarray  # (V, 9) float32: what the shader interpolates, see `surface_attributes`
    xy: np.ndarray  # (V, 2) float32: place in the picture, 0 .. 1 from its left and top edges
    depth: np.ndarray  # (V,) float32: distance to the camera plane
    camera: np.ndarray  # (3,) where the camera stands
    head_rotation: np.ndarray  # (3, 3)
    landmarks5: np.ndarray  # (5, 2) as xy
    landmarks68: np.ndarray  # (68, 2) as xy


def build_scene(person: Person, shot: Shot) -> Scene:
    head = load_head()
    field = hair_field(person, shot.style)
    vertices = neutral_head(person).copy()
    first = len(head.macro_names) + len(head.local_names)
    _add_targets(vertices, first, shot.actions, head.delta_pointer, head.delta_vertex, head.delta_value)
    # Some mixtures of shapes press the lips into the teeth: keep the teeth a little behind.
    teeth = head.vertex_material == Material.TEETH
    vertices[teeth] = vertices[teeth] * np.array([0.94, 1, 1], np.float32) - np.array([0, 0, 0.055], np.float32)
    roots = vertices[head.lash_root]
    vertices = roots + (vertices - roots) * np.where(_is_lash(head), shot.style.lashes, 1)[:, None].astype(np.float32)
    bare = vertices.copy()
    vertices += hair_lift(field, shot.style)
    hair = strands(person, shot.style, field, vertices)
    normals = np.zeros_like(vertices)
    _accumulate_normals(vertices, head.triangles, normals)
    attributes = np.concatenate([surface_attributes(head), hair.attributes])
    attributes[: len(vertices), 5] = field
    attributes[: len(vertices), 8] *= hair_shade(field)
    rotation = rotation_of(shot.yaw, shot.pitch, shot.roll)
    points, turned = _pose(np.concatenate([vertices, hair.points]), np.concatenate([normals, hair.normals]), rotation)
    attributes[len(vertices) :, 3:6] = attributes[len(vertices) :, 3:6] @ rotation.T
    marks, _ = _pose(bare, normals, rotation)  # landmarks lie on the skin, not on the hair
    camera = np.array([0, CAMERA_HEIGHT, shot.distance + 0.6], np.float32)
    flat, depth = _project(points, camera)
    flat_marks, _ = _project(marks, camera)
    frame = _framing(landmarks5_of(head, flat_marks), shot)
    return Scene(
        points=points,
        normals=turned,
        attributes=attributes,
        xy=(flat @ frame[:, :2].T + frame[:, 2]).astype(np.float32),
        depth=depth,
        camera=camera,
        head_rotation=rotation,
        landmarks5=landmarks5_of(head, flat_marks) @ frame[:, :2].T + frame[:, 2],
        landmarks68=flat_marks[landmark_vertices()] @ frame[:, :2].T + frame[:, 2],
    )


@lru_cache(maxsize=64)
def neutral_head(person: Person) -> np.ndarray:
    """The person's bare head without expression, (V, 3); kept for the next shots of the same person."""
    head = load_head()
    vertices = head.vertices.copy()
    weights = np.concatenate([macro_weights(head.macro_names, person), person.local]).astype(np.float32)
    _add_targets(vertices, 0, weights, head.delta_pointer, head.delta_vertex, head.delta_value)
    vertices.setflags(write=False)
    return vertices


def macro_weights(names: tuple[str, ...], person: Person) -> np.ndarray:
    """How much of each macro target: the product of the person's share of every word in the target's name."""
    age = (person.age - 2 / 3) * 3
    muscle, weight = _three(person.muscle), _three(person.weight)
    share = {
        "male": 1 - person.gender,
        "female": person.gender,
        "young": 1 - age,
        "old": age,
        "minmuscle": muscle[0],
        "averagemuscle": muscle[1],
        "maxmuscle": muscle[2],
        "minweight": weight[0],
        "averageweight": weight[1],
        "maxweight": weight[2],
        "african": person.ancestry[0],
        "asian": person.ancestry[1],
        "caucasian": person.ancestry[2],
    }
    return np.array([math.prod(share[word] for word in name.partition(":")[2].split("-")) for name in names])


@lru_cache(maxsize=1)
def triangles() -> tuple[np.ndarray, np.ndarray]:
    """All triangles (T, 3) int32 and their Material (T,) uint8: the same for every picture."""
    head = load_head()
    hair = HAIR_TRIANGLES + len(head.vertices)
    materials = np.concatenate([head.triangle_material, np.full(len(hair), Material.HAIR, np.uint8)])
    return np.concatenate([head.triangles, hair]).astype(np.int32), materials


@lru_cache(maxsize=1)
def _surface_attributes() -> np.ndarray:
    head = load_head()
    return np.concatenate([head.vertices, head.masks.T, head.occlusion[:, None]], 1).astype(np.float32)


def surface_attributes(head: HeadAsset) -> np.ndarray:
    """What the shader interpolates, (V, 9): template x, y, z; the five masks; occlusion.

    `build_scene` puts the hair field in place of the mask of the face. Vertices of hair have there: along, across, which
    strand; direction (3); 0, 0; occlusion.
    """
    return _surface_attributes()


def hair_shade(field: np.ndarray) -> np.ndarray:
    """Under and just in front of the hair it is darker: a factor (V,) on the occlusion."""
    near = np.clip((field + 0.12) / 0.12, 0, 1)
    return (1 - 0.25 * near * (field < 0.02)).astype(np.float32)


def rotation_of(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Head rotation (3, 3) float32 from degrees as in Shot."""
    y, p, r = (math.radians(a) for a in (yaw, -pitch, roll))
    about_y = np.array([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, math.cos(p), -math.sin(p)], [0, math.sin(p), math.cos(p)]])
    about_z = np.array([[math.cos(r), -math.sin(r), 0], [math.sin(r), math.cos(r), 0], [0, 0, 1]])
    return (about_z @ about_y @ about_x).astype(np.float32)


def _pose(vertices: np.ndarray, normals: np.ndarray, rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn the head about PIVOT; the neck follows less and less, the shoulders stay."""
    share = np.clip((vertices[:, 1:2] - 5.75) / 0.75, 0, 1)
    share = share * share * (3 - 2 * share)
    centred = vertices - PIVOT
    turned = normals + share * (normals @ rotation.T - normals)
    length = np.linalg.norm(turned, axis=1, keepdims=True)
    points = centred + share * (centred @ rotation.T - centred)
    return points.astype(np.float32), (turned / np.maximum(length, 1e-9)).astype(np.float32)


def _project(points: np.ndarray, camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    depth = (camera[2] - points[:, 2]).astype(np.float32)
    return np.stack([points[:, 0] / depth, (camera[1] - points[:, 1]) / depth], 1), depth


def _framing(marks: np.ndarray, shot: Shot) -> np.ndarray:
    """The (2, 3) map from projected to picture coordinates that puts the face where a portrait has it.

    Scale and shift come from the five landmarks; the in-plane lean of the head stays.
    """
    goal = (ARCFACE - 56) / 112 * ZOOM + 0.5
    goal[:, 1] += DROP
    centre, goal_centre = marks.mean(0), goal.mean(0)
    offset, goal_offset = marks - centre, goal - goal_centre
    real = (offset * goal_offset).sum()
    imaginary = (offset[:, 0] * goal_offset[:, 1] - offset[:, 1] * goal_offset[:, 0]).sum()
    scale = math.hypot(real, imaginary) / (offset**2).sum() * shot.framing[2]
    c, s = scale * math.cos(shot.framing[3]), scale * math.sin(shot.framing[3])
    turn = np.array([[c, -s], [s, c]])
    return np.concatenate([turn, (goal_centre + shot.framing[:2] - turn @ centre)[:, None]], 1)


def _three(value: float) -> tuple[float, float, float]:
    """Shares of the least, the average and the most for a value in [0, 1]."""
    return max(1 - 2 * value, 0), 1 - abs(2 * value - 1), max(2 * value - 1, 0)


def _is_lash(head: HeadAsset) -> np.ndarray:
    return head.vertex_material == Material.LASH


@numba.njit(cache=True, nogil=True)
def _add_targets(vertices, first, weights, pointer, moved, value):  # type: ignore[no-untyped-def]
    for target in range(weights.shape[0]):
        weight = weights[target]
        if weight == 0:
            continue
        for entry in range(pointer[first + target], pointer[first + target + 1]):
            v = moved[entry]
            vertices[v, 0] += weight * value[entry, 0]
            vertices[v, 1] += weight * value[entry, 1]
            vertices[v, 2] += weight * value[entry, 2]


@numba.njit(cache=True, nogil=True)
def _accumulate_normals(vertices, corners, normals):  # type: ignore[no-untyped-def]
    """Area-weighted vertex normals, unit length, in a fixed order of summation."""
    for t in range(corners.shape[0]):
        i, j, k = corners[t]
        ux, uy, uz = vertices[j] - vertices[i]
        vx, vy, vz = vertices[k] - vertices[i]
        n = (uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx)
        for v in (i, j, k):
            for axis in range(3):
                normals[v, axis] += n[axis]
    for v in range(normals.shape[0]):
        length = math.sqrt(normals[v, 0] ** 2 + normals[v, 1] ** 2 + normals[v, 2] ** 2) + 1e-12
        for axis in range(3):
            normals[v, axis] /= length
