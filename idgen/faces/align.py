"""From a photo and its landmarks to an aligned crop: ArcFace's 112 px crop and FFHQ's square portrait.

Both follow the originals to rounding: insightface `utils/face_align.py` (norm_crop) and the FFHQ alignment
(Karras et al., "A Style-Based Generator Architecture for GANs", 2019; NVlabs/ffhq-dataset). Landmarks are pixels (x, y)
with the centre of the top-left pixel at (0, 0), points in the order as seen: left eye, right eye, nose, left and right
mouth corner. `align_torch` has the same with gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from idgen.errors import IdgenError

# Where the five points of a frontal face lie in a 112 px crop (Guo et al., insightface).
ARCFACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float64
)


def norm_crop(image: np.ndarray | Image.Image, landmarks: np.ndarray, size: int = 112) -> np.ndarray:
    """The face turned, scaled and shifted onto the ArcFace template; black where the photo ends.

    Args:
        image: (H, W, 3) uint8.
        landmarks: (5, 2) pixels.
        size: a multiple of 112 or of 128 (the 112 frame with 8 px more at the left and right).

    Returns:
        (size, size, 3) uint8, channels in the order of the photo.

    Raises:
        IdgenError: another size, or landmarks that lie on one spot or are not finite.
    """
    return _warp(np.asarray(image), similarity_matrix(landmarks, size), size)


def similarity_matrix(landmarks: np.ndarray, size: int = 112) -> np.ndarray:
    """(2, 3) float64: the least-squares similarity (turn, scale, shift; no mirror) from photo pixels to crop pixels."""
    points = np.asarray(landmarks, np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise IdgenError(f"alignment needs five finite landmarks (5, 2), got shape {list(points.shape)}")
    target = template(size)
    # As complex numbers a similarity is z -> a z + b, and least squares over a and b is one division.
    source = (points - points.mean(0)) @ [1, 1j]
    spread = (abs(source) ** 2).sum()
    a = (source.conj() * ((target - target.mean(0)) @ [1, 1j])).sum() / spread if spread > 1e-6 else 0
    if abs(a) < 1e-6:
        raise IdgenError("the five landmarks lie on one spot or are no face: nothing can be aligned by them")
    linear = np.array([[a.real, -a.imag], [a.imag, a.real]])
    return np.concatenate([linear, (target.mean(0) - linear @ points.mean(0))[:, None]], 1)


def template(size: int) -> np.ndarray:
    """(5, 2) float64: the ArcFace template in a crop of `size` pixels."""
    if size <= 0 or (size % 112 and size % 128):
        raise IdgenError(f"an ArcFace crop has a multiple of 112 or of 128 pixels, not {size}")
    if size % 112 == 0:
        return ARCFACE_TEMPLATE * (size / 112)
    return (ARCFACE_TEMPLATE + np.array([8, 0])) * (size / 128)


def ffhq_crop(
    image: np.ndarray | Image.Image,
    landmarks: np.ndarray,
    output_size: int = 1024,
    transform_size: int = 4096,
    enable_padding: bool = True,
) -> np.ndarray:
    """The upright square portrait of the FFHQ dataset.

    Args:
        image: (H, W, 3) uint8 RGB.
        landmarks: (68, 2) iBUG points, or the (5, 2) points of a detector.
        output_size: side of the result in pixels.
        transform_size: side at which the photo is resampled before it is shrunk to `output_size`.
        enable_padding: continue the photo by a blurred mirror image where the square reaches beyond it; else black.

    Returns:
        (output_size, output_size, 3) uint8.
    """
    picture = Image.fromarray(np.asarray(image))
    plan = plan_ffhq(picture.size, landmarks, output_size, enable_padding)
    if plan.shrunk != picture.size:
        picture = picture.resize(plan.shrunk, Image.Resampling.LANCZOS)
    picture = picture.crop(plan.crop)
    if plan.pad is not None:
        picture = _pad(picture, plan.pad, plan.blur)
    corners = tuple((plan.quad + 0.5).flatten())
    side = (transform_size, transform_size)
    picture = picture.transform(side, Image.Transform.QUAD, corners, Image.Resampling.BILINEAR)
    if output_size < transform_size:
        picture = picture.resize((output_size, output_size), Image.Resampling.LANCZOS)
    return np.asarray(picture)


@dataclass(frozen=True)
class FfhqPlan:
    """What FFHQ's alignment does to one photo, in this order; sizes are (width, height), boxes left, top, right, bottom."""

    shrunk: tuple[int, int]
    crop: tuple[int, int, int, int]
    pad: tuple[int, int, int, int] | None
    blur: float  # standard deviation in pixels of the blur over what is padded
    quad: np.ndarray  # (4, 2) corners in the padded photo: top left, bottom left, bottom right, top right


def plan_ffhq(size: tuple[int, int], landmarks: np.ndarray, output_size: int, enable_padding: bool = True) -> FfhqPlan:
    """Decide the steps of FFHQ's alignment for a photo of `size` (width, height)."""
    quad, side = _ffhq_quad(landmarks)
    shrink = int(side / output_size * 0.5)
    if shrink > 1:
        size = (round(size[0] / shrink), round(size[1] / shrink))
        quad, side = quad / shrink, side / shrink
    border = max(round(side * 0.1), 3)
    low, high = np.floor(quad.min(0)).astype(int), np.ceil(quad.max(0)).astype(int)
    left, top = (max(int(edge) - border, 0) for edge in low)
    right, bottom = (min(int(edge) + border, end) for edge, end in zip(high, size, strict=True))
    if left >= right or top >= bottom:
        raise IdgenError("the face lies outside the photo: no portrait can be cut")
    quad = quad - [left, top]
    size_now = (right - left, bottom - top)
    low, high = np.floor(quad.min(0)).astype(int), np.ceil(quad.max(0)).astype(int)
    before = [max(border - int(edge), 0) for edge in low]
    after = [max(int(edge) - end + border, 0) for edge, end in zip(high, size_now, strict=True)]
    pad = None
    if enable_padding and max(*before, *after) > border - 4:
        wide = round(side * 0.3)
        pad = (max(before[0], wide), max(before[1], wide), max(after[0], wide), max(after[1], wide))
        quad = quad + pad[:2]
    return FfhqPlan(size, (left, top, right, bottom), pad, side * 0.02, quad)


def pad_weight(width: int, height: int, pad: tuple[int, int, int, int]) -> np.ndarray:
    """(height, width, 1) float32: how far into the padding a pixel lies: 1 at the outer edge, negative inside."""
    left, top, right, bottom = (np.float32(edge) for edge in pad)
    x, y = np.arange(width, dtype=np.float32)[None], np.arange(height, dtype=np.float32)[:, None]
    across = 1 - np.minimum(x / left, (width - 1 - x) / right)
    down = 1 - np.minimum(y / top, (height - 1 - y) / bottom)
    return np.maximum(across, down)[..., None]


def _ffhq_quad(landmarks: np.ndarray) -> tuple[np.ndarray, float]:
    """Corners (4, 2) of the oriented square around a face and its side, in pixels."""
    eyes_and_mouth = ffhq_points(np.asarray(landmarks, np.float64))
    left_eye, right_eye, left_mouth, right_mouth = eyes_and_mouth
    eyes = (left_eye + right_eye) * 0.5
    between_eyes, to_mouth = right_eye - left_eye, (left_mouth + right_mouth) * 0.5 - eyes
    turned = np.array([-to_mouth[1], to_mouth[0]])  # the eye-mouth line turned by a quarter
    x = between_eyes - turned
    length = np.hypot(*x)
    if not np.isfinite(eyes_and_mouth).all() or length < 1e-6:
        raise IdgenError("the landmarks lie on one spot or are not finite: no face can be aligned by them")
    x *= max(np.hypot(*between_eyes) * 2.0, np.hypot(*to_mouth) * 1.8) / length
    y = np.array([-x[1], x[0]])
    centre = eyes + to_mouth * 0.1
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y]), float(np.hypot(*x) * 2)


def ffhq_points(landmarks: np.ndarray) -> np.ndarray:
    """(4, 2): left eye, right eye, left and right mouth corner, of 68 iBUG points or of a detector's five."""
    if landmarks.shape == (68, 2):
        return np.stack([landmarks[36:42].mean(0), landmarks[42:48].mean(0), landmarks[48], landmarks[54]])
    if landmarks.shape == (5, 2):
        return landmarks[[0, 1, 3, 4]]
    raise IdgenError(f"FFHQ alignment needs 68 or 5 landmarks, got shape {list(landmarks.shape)}")


def _warp(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Bilinear samples of `image` at the inverse of `matrix`, 0 outside; (H, W, C) uint8 -> (size, size, C) uint8."""
    inverse = np.linalg.inv(matrix[:, :2])
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1)  # (size, size, 2) as (x, y)
    x, y = np.moveaxis((grid - matrix[:, 2]) @ inverse.T, -1, 0)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    height, width = image.shape[:2]
    total = np.zeros((size, size, image.shape[2]))
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = left + dx, top + dy
            weight = (1 - abs(x - column)) * (1 - abs(y - row))
            weight = weight * ((column >= 0) & (column < width) & (row >= 0) & (row < height))
            total += weight[..., None] * image[row.clip(0, height - 1), column.clip(0, width - 1)]
    return np.rint(total).astype(np.uint8)


def _pad(picture: Image.Image, pad: tuple[int, int, int, int], blur: float) -> Image.Image:
    from scipy.ndimage import gaussian_filter

    left, top, right, bottom = pad
    pixels = np.pad(np.asarray(picture, np.float32), ((top, bottom), (left, right), (0, 0)), "reflect")
    weight = pad_weight(pixels.shape[1], pixels.shape[0], pad)
    pixels += (gaussian_filter(pixels, [blur, blur, 0]) - pixels) * np.clip(weight * 3 + 1, 0, 1)
    pixels += (np.median(pixels, axis=(0, 1)) - pixels) * np.clip(weight, 0, 1)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
