"""Pictures of synthetic people with their ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from idgen.devices import resolve_device
from idgen.errors import IdgenError
from idgen.synthetic.geometry import triangles
from idgen.synthetic.kernel import shade_kernel
from idgen.synthetic.ops import noise_volume
from idgen.synthetic.people import Person
from idgen.synthetic.rasteriser import rasterise_numpy
from idgen.synthetic.shots import Shot
from idgen.synthetic.tensor_shader import TensorShader
from idgen.synthetic.view import SHADOW_SIZE, View, one_sided, shadow_casters, view_of

ENGINES = ("numba", "torch")


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
    """Renders shots of people.

    device: "cpu", "cuda", "cuda:N" or "auto". engine: "numba" (CPU only, and several times faster there than torch: its
    default) or "torch" (any device, many pictures at once; the default elsewhere). With numba every picture is computed by
    itself and a batch has the same bytes as its parts; torch gives the same picture but for last bits.
    Raises IdgenError for a device that is absent or that the engine can not use.
    """

    def __init__(self, device: str = "cpu", engine: str | None = None) -> None:
        self.device = resolve_device(device)
        self.engine = engine or ("numba" if self.device.type == "cpu" else "torch")
        if self.engine not in ENGINES:
            raise IdgenError(f"unknown engine {engine!r}: use {' or '.join(ENGINES)}")
        if self.engine == "numba" and self.device.type != "cpu":
            raise IdgenError(f"the numba engine renders on the CPU, not on {device!r}: use the torch engine there")
        self._shader: NumbaShader | TensorShader
        self._shader = NumbaShader() if self.engine == "numba" else TensorShader(self.device)

    def render(
        self,
        people: Sequence[Person],
        shots: Sequence[Shot],
        size: int = 128,
        supersampling: int = 1,
        shadows: bool = True,
    ) -> RenderBatch:
        """One picture for each pair of a person and one of that person's shots.

        size: pixels along a side. supersampling: shaded samples along a pixel's side (edges always have 2 x 2 more).
        Raises IdgenError when the two lists do not fit each other or a number is out of range.
        """
        _check(people, shots, size, supersampling)
        views = [view_of(person, shot) for person, shot in zip(people, shots, strict=True)]
        images, parsing = self._shader(views, size, supersampling, shadows)
        return RenderBatch(
            images=images,
            parsing=parsing,
            landmarks5=_pixels(np.stack([view.scene.landmarks5 for view in views]), size),
            landmarks68=_pixels(np.stack([view.scene.landmarks68 for view in views]), size),
            pose=np.array([[s.yaw, s.pitch, s.roll] for s in shots], np.float32),
            expression=np.stack([s.actions for s in shots]),
        )


class NumbaShader:
    """One picture after the other, one sample after the other, compiled for this CPU."""

    def __init__(self) -> None:
        self._volume = noise_volume()

    def __call__(
        self, views: Sequence[View], size: int, supersampling: int, shadows: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images (B, size, size, 3) uint8 and parsing classes (B, size, size) uint8."""
        pictures = [self._picture(view, size, supersampling, shadows) for view in views]
        images, masks = zip(*pictures, strict=True)
        return np.stack(images), np.stack(masks)

    def _picture(self, view: View, size: int, supersampling: int, shadows: bool) -> tuple[np.ndarray, np.ndarray]:
        side, scene = size * supersampling, view.scene
        corners, materials = triangles()
        xy = (scene.xy * (2 * side) - 0.5).astype(np.float32)
        seen, nearest = rasterise_numpy(xy, scene.depth, corners, one_sided(), 2 * side, 2 * side)
        image = np.empty((side, side, 3))
        parsing = np.empty((side, side), np.uint8)
        light = (_shadow_map(view), view.light) if shadows else _NO_SHADOWS
        shade_kernel()(
            seen, nearest, xy, scene.depth, corners, materials, scene.points, scene.normals, scene.attributes,
            view.parameters, self._volume, light, image, parsing,
        )  # fmt: skip
        linear = image.reshape(size, supersampling, size, supersampling, 3).mean((1, 3))
        middle = supersampling // 2
        return _to_bytes(linear), parsing[middle::supersampling, middle::supersampling].copy()


_NO_SHADOWS = (np.zeros((1, 1), np.float32), np.zeros((3, 4)))


def _shadow_map(view: View) -> np.ndarray:
    """How far from the key light the first thing that it meets is: (SHADOW_SIZE, SHADOW_SIZE) float32."""
    casting = shadow_casters()
    cull = np.zeros(len(casting), bool)
    return rasterise_numpy(view.lit_xy, view.lit_depth, casting, cull, SHADOW_SIZE, SHADOW_SIZE)[1]


def _check(people: Sequence[Person], shots: Sequence[Shot], size: int, supersampling: int) -> None:
    if not people or len(people) != len(shots):
        raise IdgenError(f"render needs one person for each shot and at least one: got {len(people)} and {len(shots)}")
    for person, shot in zip(people, shots, strict=True):
        if person.number != shot.person:
            raise IdgenError(f"shot {shot.number} belongs to person {shot.person}, not to person {person.number}")
    if not 16 <= size <= 1024 or not 1 <= supersampling <= 4:
        raise IdgenError(f"size must be 16 to 1024 and supersampling 1 to 4, not {size} and {supersampling}")


def _pixels(places: np.ndarray, size: int) -> np.ndarray:
    return (places * size - 0.5).astype(np.float32)


def _to_bytes(linear: np.ndarray) -> np.ndarray:
    clipped = np.clip(linear, 0, 1)
    curve = np.where(clipped > 0.0031308, 1.055 * clipped ** (1 / 2.4) - 0.055, 12.92 * clipped)
    return np.round(curve * 255).astype(np.uint8)
