"""The crops of `align`, differentiable: for losses that look at the face in a picture still being made.

Gradients reach the picture, and for `norm_crop_torch` the landmarks too.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from idgen.faces.align import FfhqPlan, pad_weight, plan_ffhq, template


def norm_crop_torch(
    images: torch.Tensor, landmarks: torch.Tensor, size: int = 112, value_range: tuple[float, float] = (-1.0, 1.0)
) -> torch.Tensor:
    """`align.norm_crop` of a batch.

    Args:
        images: (B, C, H, W) floating point, values in `value_range`, whose lower end is the black beyond the photo.
        landmarks: (B, 5, 2) pixels (x, y), the centre of the top-left pixel at (0, 0).
        size: a multiple of 112 or of 128.

    Returns:
        (B, C, size, size) in the dtype of `images`.
    """
    with torch.autocast(images.device.type, enabled=False):  # products in half precision miss by pixels
        inverse = invert_similarity(similarity_matrix_torch(landmarks, size))
        y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        grid = torch.stack([x, y, torch.ones_like(x)], -1).to(inverse)  # (size, size, 3)
        points = torch.einsum("hwk,bjk->bhwj", grid, inverse)  # (B, size, size, 2) photo pixels
    black = value_range[0]
    return sample_at(images - black, points, "zeros") + black


def similarity_matrix_torch(landmarks: torch.Tensor, size: int = 112) -> torch.Tensor:
    """(B, 2, 3) float32 matrices from photo pixels to crop pixels; `align.similarity_matrix` of a batch."""
    points = landmarks.float()
    target = torch.from_numpy(template(size)).to(points)
    centre, target_centre = points.mean(1), target.mean(0)  # (B, 2), (2,)
    x, y = (points - centre[:, None]).unbind(-1)  # (B, 5) each
    u, v = (target - target_centre).unbind(-1)  # (5,) each
    spread = (x * x + y * y).sum(1).clamp_min(1e-6)
    a, b = (x * u + y * v).sum(1) / spread, (x * v - y * u).sum(1) / spread
    linear = torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], 1)  # (B, 2, 2)
    shift = target_centre - torch.einsum("bij,bj->bi", linear, centre)
    return torch.cat([linear, shift[..., None]], -1)


def ffhq_crop_torch(
    images: torch.Tensor,
    landmarks: torch.Tensor,
    output_size: int = 1024,
    transform_size: int = 4096,
    enable_padding: bool = True,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> torch.Tensor:
    """`align.ffhq_crop` of a batch; gradients reach the images, the landmarks only say where to look.

    Args:
        images: (B, C, H, W) floating point in `value_range`.
        landmarks: (B, 68, 2) or (B, 5, 2) pixels.

    Returns:
        (B, C, output_size, output_size) in the dtype of `images`.
    """
    size = (images.shape[3], images.shape[2])
    portraits = []
    for image, points in zip(images, landmarks, strict=True):  # the sizes in between differ from photo to photo
        plan = plan_ffhq(size, points.detach().cpu().double().numpy(), output_size, enable_padding)
        portraits.append(_ffhq(image[None].float(), plan, output_size, transform_size, value_range))
    return torch.cat(portraits).to(images.dtype)


def _ffhq(
    image: torch.Tensor, plan: FfhqPlan, output_size: int, transform_size: int, value_range: tuple[float, float]
) -> torch.Tensor:
    image = _lanczos(image, plan.shrunk, value_range)
    left, top, right, bottom = plan.crop
    image = image[..., top:bottom, left:right]
    if plan.pad is not None:
        image = _to_bytes(_pad(image, plan.pad, plan.blur), value_range)
    # The square is a parallelogram: a point in it is the corner plus two multiples of its sides.
    corner, down, _, across = torch.from_numpy(plan.quad).to(image)
    steps = (torch.arange(transform_size).to(image) + 0.5) / transform_size
    points = corner + steps[None, :, None] * (across - corner) + steps[:, None, None] * (down - corner)
    height, width = image.shape[-2:]
    inside = ((points > -0.5) & (points < torch.tensor([width, height]).to(points) - 0.5)).all(-1)
    black = value_range[0]
    image = (sample_at(image, points[None], "border") - black) * inside + black
    image = _to_bytes(image, value_range, cut=True)
    if output_size < transform_size:
        image = _lanczos(image, (output_size, output_size), value_range)
    return image


def sample_at(images: torch.Tensor, points: torch.Tensor, beyond: str) -> torch.Tensor:
    """Bilinear samples at pixel positions; (B, C, H, W), (B, h, w, 2) -> (B, C, h, w)."""
    height, width = images.shape[-2:]
    # To grid_sample's -1 .. 1 between the outer edges of the outer pixels; half precision would miss by pixels.
    grid = (points * 2 + 1) / torch.tensor([width, height]).to(points) - 1
    sampled = F.grid_sample(images.float(), grid.float(), "bilinear", beyond, align_corners=False)
    return sampled.to(images.dtype)


def invert_similarity(matrix: torch.Tensor) -> torch.Tensor:
    """The inverse of (B, 2, 3) similarities."""
    linear = matrix[..., :2]
    a, b = linear[:, 0, 0], linear[:, 1, 0]
    scale = (a * a + b * b).clamp_min(1e-12)[:, None, None]
    inverse = linear.transpose(1, 2) / scale
    return torch.cat([inverse, -inverse @ matrix[..., 2:]], -1)


def _to_bytes(image: torch.Tensor, value_range: tuple[float, float], cut: bool = False) -> torch.Tensor:
    """Clamp to the range and to the 256 levels that Pillow keeps between its steps; gradients pass as if nothing was rounded.

    Args:
        cut: drop the fraction, as Pillow does when it warps, instead of rounding it. A hair is added first, so that
            floating-point noise does not cost a whole level.
    """
    low, high = value_range
    image = image.clamp(low, high)
    levels = (image.detach() - low) * (255 / (high - low))
    levels = (levels + 1e-3).floor() if cut else levels.round()
    return image + (levels * ((high - low) / 255) + low - image.detach())


def _lanczos(image: torch.Tensor, size: tuple[int, int], value_range: tuple[float, float]) -> torch.Tensor:
    """Resize to (width, height) as Pillow does: across, then down."""
    height, width = image.shape[-2:]
    if size[0] != width:
        image = _to_bytes(image @ _lanczos_matrix(width, size[0]).to(image).T, value_range)
    if size[1] != height:
        image = _to_bytes(_lanczos_matrix(height, size[1]).to(image) @ image, value_range)
    return image


def _lanczos_matrix(size: int, new_size: int) -> torch.Tensor:
    """(new_size, size) weights of a three-lobed Lanczos filter, widened when it shrinks; each row sums to 1."""
    scale = size / new_size
    widened = max(scale, 1.0)
    centres = (torch.arange(new_size, dtype=torch.float64) + 0.5) * scale
    # The filter covers whole pixels: its ends are rounded, and a pixel beyond them has no part however near it is.
    first, last = ((centres - 3 * widened + 0.5).floor(), (centres + 3 * widened + 0.5).floor())
    pixels = torch.arange(size, dtype=torch.float64)
    distance = (pixels + 0.5 - centres[:, None]) / widened
    weights = torch.sinc(distance) * torch.sinc(distance / 3) * (distance.abs() < 3)
    weights = weights * ((pixels >= first[:, None]) & (pixels < last[:, None]))
    return weights / weights.sum(1, keepdim=True)


def _pad(image: torch.Tensor, pad: tuple[int, int, int, int], blur: float) -> torch.Tensor:
    """Continue the photo by its mirror image, blurred and fading to its median colour."""
    left, top, right, bottom = pad
    height, width = image.shape[-2:]
    rows = np.pad(np.arange(height), (top, bottom), "reflect")
    columns = np.pad(np.arange(width), (left, right), "reflect")
    image = image[..., rows, :][..., columns]  # (1, C, height + top + bottom, width + left + right)
    weight = torch.from_numpy(pad_weight(image.shape[-1], image.shape[-2], pad)[..., 0]).to(image)
    image = image + (_gaussian(image, blur) - image) * (weight * 3 + 1).clamp(0, 1)
    pixels = image.flatten(2)
    median = (
        pixels.median(-1).values - (-pixels).median(-1).values
    ) / 2  # of an even count, the mean of the middle two
    return image + (median[..., None, None] - image) * weight.clamp(0, 1)


def _gaussian(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur cut at four standard deviations, mirrored at the edge with the edge pixel counted twice."""
    radius = int(4 * sigma + 0.5)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).to(image) / sigma) ** 2)
    taps = taps / taps.sum()
    channels = image.shape[1]
    for axis in (-2, -1):
        length = image.shape[axis]
        image = image.index_select(
            axis, torch.from_numpy(np.pad(np.arange(length), radius, "symmetric")).to(image.device)
        )
        kernel = taps.view((1, 1, -1, 1) if axis == -2 else (1, 1, 1, -1)).expand(channels, 1, -1, -1)
        image = F.conv2d(image, kernel, groups=channels)
    return image
