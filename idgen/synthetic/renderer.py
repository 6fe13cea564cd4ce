"""Pictures of synthetic people with their ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from idgen.errors import IdgenError
from idgen.synthetic import parameters as P
from idgen.synthetic.asset import Material, load_head
from idgen.synthetic.geometry import PIVOT, Scene, build_scene, neutral_head, triangles
from idgen.synthetic.hair import hair_field
from idgen.synthetic.kernel import shade_kernel
from idgen.synthetic.ops import noise_volume
from idgen.synthetic.people import Person
from idgen.synthetic.rasteriser import rasterise_numpy
from idgen.synthetic.shots import Shot

SHADOW_SIZE = 192
SHADOW_WIDTH = 3.8  # decimetres that the shadow map covers


@dataclass(frozen=True, eq=False)
class RenderBatch:
    """Pictures and ground truth. Pixels: the centre of the top left one is (0, 0), as in OpenCV and ArcFace."""

    images: np.ndarray  # (B, size, size, 3) uint8 sRGB
    parsing: np.ndarray  # (B, size, size) uint8: places in PARSING_CLASSES
    landmarks5: np.ndarray  # (B, 5, 2) float32 x, y: eyes, nose tip, mouth corners; the picture's left first
    landmarks68: np.ndarray  # (B, 68, 2) float32, iBUG order; hidden ones are given as well
    pose: np.ndarray  # (B, 3) float32 yaw, pitch, roll in degrees, signs as in Shot
    expression: np.ndarray  # (B, 52) float32 in [0, 1]


class Renderer:
    """Renders shots of people. Every picture is computed by itself: a batch has the same bytes as its parts."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._volume = noise_volume()

    def render(
        self, people: Sequence[Person], shots: Sequence[Shot], size: int = 128, supersampling: int = 1, shadows: bool = True
    ) -> RenderBatch:
        """One picture for each pair of a person and one of that person's shots.

        size: pixels along a side. supersampling: shaded samples along a pixel's side (edges always have 2 x 2 more).
        Raises IdgenError when the two lists do not fit each other or a number is out of range.
        """
        _check(people, shots, size, supersampling)
        pictures, masks = [], []
        scenes = [build_scene(person, shot) for person, shot in zip(people, shots, strict=True)]
        for person, shot, scene in zip(people, shots, scenes, strict=True):
            picture, mask = self._picture(person, shot, scene, size, supersampling, shadows)
            pictures.append(picture)
            masks.append(mask)
        return RenderBatch(
            images=np.stack(pictures),
            parsing=np.stack(masks),
            landmarks5=_pixels(np.stack([s.landmarks5 for s in scenes]), size),
            landmarks68=_pixels(np.stack([s.landmarks68 for s in scenes]), size),
            pose=np.array([[s.yaw, s.pitch, s.roll] for s in shots], np.float32),
            expression=np.stack([s.actions for s in shots]),
        )

    def _picture(
        self, person: Person, shot: Shot, scene: Scene, size: int, supersampling: int, shadows: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        side = size * supersampling
        corners, materials = triangles()
        attributes = scene.attributes
        xy = (scene.xy * (2 * side) - 0.5).astype(np.float32)
        seen, nearest = rasterise_numpy(xy, scene.depth, corners, _one_sided(), 2 * side, 2 * side)
        image = np.empty((side, side, 3))
        parsing = np.empty((side, side), np.uint8)
        light = _shadow_map(scene, shot.light.key) if shadows else _NO_SHADOWS
        shade_kernel()(
            seen, nearest, xy, scene.depth, corners, materials, scene.points, scene.normals, attributes,
            _parameters(person, shot, scene), self._volume, light, image, parsing,
        )  # fmt: skip
        linear = image.reshape(size, supersampling, size, supersampling, 3).mean((1, 3))
        middle = supersampling // 2
        return _to_bytes(linear), parsing[middle::supersampling, middle::supersampling].copy()


_NO_SHADOWS = (np.zeros((1, 1), np.float32), np.zeros((3, 4)))


def _check(people: Sequence[Person], shots: Sequence[Shot], size: int, supersampling: int) -> None:
    if not people or len(people) != len(shots):
        raise IdgenError(f"render needs one person for each shot and at least one: got {len(people)} and {len(shots)}")
    for person, shot in zip(people, shots, strict=True):
        if person.number != shot.person:
            raise IdgenError(f"shot {shot.number} belongs to person {shot.person}, not to person {person.number}")
    if not 16 <= size <= 1024 or not 1 <= supersampling <= 4:
        raise IdgenError(f"size must be 16 to 1024 and supersampling 1 to 4, not {size} and {supersampling}")


def _parameters(person: Person, shot: Shot, scene: Scene) -> np.ndarray:
    head = load_head()
    eye = head.vertex_material == Material.EYE
    x = head.vertices[:, 0]
    template = np.stack([head.vertices[eye & (x < 0)].mean(0), head.vertices[eye & (x > 0)].mean(0)])
    bare = neutral_head(person)
    left, right = bare[eye & (x < 0)].mean(0), bare[eye & (x > 0)].mean(0)
    bridge = (np.abs(head.vertices[:, 0]) < 0.25) & (head.vertices[:, 1] > 7.12) & (head.vertices[:, 1] < 7.45)
    temple = (np.abs(head.vertices[:, 1] - 7.3) < 0.12) & (head.vertices[:, 2] > 0.6) & (head.masks[3] < 0.3)
    skin = head.vertex_material == Material.SKIN
    frame = np.array(
        [
            (right[0] - left[0]) / 2 + 0.015,
            (right[1] + left[1]) / 2 - PIVOT[1],
            bare[bridge & skin, 2].max() - PIVOT[2] + 0.045,
            np.abs(bare[temple & skin, 0]).max() + 0.015,
        ]
    )
    return P.pack(person, shot, scene.camera, scene.head_rotation, template, frame)


def _shadow_map(scene: Scene, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the key light sees: depths (S, S) and the (3, 4) map from a point to column, row and depth there."""
    across = np.cross([0.0, 1.0, 0.0], key)
    across /= np.linalg.norm(across)
    up = np.cross(key, across)
    centre = np.array([0.0, 0.5, 0.1])
    scale = SHADOW_SIZE / SHADOW_WIDTH
    rows = np.stack([across * scale, -up * scale, -key])
    shift = np.array([SHADOW_SIZE / 2, SHADOW_SIZE / 2, 8.0]) - rows @ centre
    place = np.concatenate([rows, shift[:, None]], 1)
    flat = (scene.points @ rows.T.astype(np.float32) + shift.astype(np.float32)).astype(np.float32)
    corners, _ = triangles()
    casting = corners[_casts_shadow()]
    _, depths = rasterise_numpy(
        np.ascontiguousarray(flat[:, :2]),
        np.ascontiguousarray(flat[:, 2]),
        casting,
        np.zeros(len(casting), bool),
        SHADOW_SIZE,
        SHADOW_SIZE,
    )
    return depths, place


def _casts_shadow() -> np.ndarray:
    _, materials = triangles()
    return (materials == Material.SKIN) | (materials == Material.HAIR)


def _one_sided() -> np.ndarray:
    _, materials = triangles()
    return materials == Material.SKIN


def _pixels(places: np.ndarray, size: int) -> np.ndarray:
    return (places * size - 0.5).astype(np.float32)


def _to_bytes(linear: np.ndarray) -> np.ndarray:
    clipped = np.clip(linear, 0, 1)
    curve = np.where(clipped > 0.0031308, 1.055 * clipped ** (1 / 2.4) - 0.055, 12.92 * clipped)
    return np.round(curve * 255).astype(np.uint8)
