"""The shader for tensors: many pictures at once on any device, by the same shading functions as the CPU's kernel.

Deferred shading: first which triangle every sample sees, then the samples of each material in one go. The host waits for
the device a few times a batch (to learn how many samples there are of each kind), never once an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from idgen.synthetic.asset import Material
from idgen.synthetic.geometry import triangles
from idgen.synthetic.kernel import APART, BACKGROUND_CLASS, with_glasses
from idgen.synthetic.lighting import developed, shadow_edge
from idgen.synthetic.ops import noise_volume, unit3
from idgen.synthetic.rasteriser import NOTHING, rasterise_torch
from idgen.synthetic.shading import surface
from idgen.synthetic.surfaces import background
from idgen.synthetic.view import SHADOW_SIZE, View, one_sided, shadow_casters

SAMPLES = 1 << 22  # of the pictures that are rendered together
CHUNK = 1 << 20  # samples that are shaded together: both bound the memory


class TensorShader:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        corners, materials = triangles()
        self._corners = torch.from_numpy(corners).long().to(device)
        self._materials = torch.from_numpy(materials).long().to(device)
        self._one_sided = torch.from_numpy(one_sided()).to(device)
        self._casters = torch.from_numpy(shadow_casters()).long().to(device)
        self._volume = torch.from_numpy(noise_volume()).to(device)

    @torch.no_grad()
    def __call__(
        self, views: Sequence[View], size: int, supersampling: int, shadows: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images (B, size, size, 3) uint8 and parsing classes (B, size, size) uint8."""
        side, middle = size * supersampling, supersampling // 2
        group = max(1, SAMPLES // (4 * side**2))
        images, masks = [], []
        for start in range(0, len(views), group):
            linear, parsing = self._shade(views[start : start + group], side, shadows)
            linear = linear.view(-1, size, supersampling, size, supersampling, 3).mean((2, 4))
            images.append(_to_bytes(linear))
            masks.append(parsing[:, middle::supersampling, middle::supersampling].to(torch.uint8))
        return torch.cat(images).cpu().numpy(), torch.cat(masks).cpu().numpy()

    def _shade(self, views: Sequence[View], side: int, shadows: bool) -> tuple[Tensor, Tensor]:
        """Linear light (B, side, side, 3) and parsing classes (B, side, side)."""
        xy = self._send([(view.scene.xy * (2 * side) - 0.5).astype(np.float32) for view in views])  # (B, V, 2)
        depth = self._send([view.scene.depth for view in views])  # (B, V)
        seen, nearest = rasterise_torch(xy, depth, self._corners, self._one_sided, 2 * side, 2 * side)
        seen, nearest = _by_pixel(seen, side).long(), _by_pixel(nearest, side)  # (B * side * side, 4)
        material = torch.where(seen == NOTHING, -1, self._materials[seen.clamp_min(0)])
        counts = _counts(seen, nearest, material)
        q = self._send([view.parameters.astype(np.float32) for view in views]).T.contiguous()  # (COUNT, B)
        light = self._light(views) if shadows else None
        mesh = [
            self._send([getattr(view.scene, name) for view in views]) for name in ("points", "normals", "attributes")
        ]
        table = torch.cat([*mesh, depth[..., None], xy], 2)  # (B, V, 18)
        colours = torch.zeros(*counts.shape, 3, device=self.device)
        labels = torch.full_like(counts, BACKGROUND_CLASS)
        for kind in (-1, *Material):
            for part in torch.nonzero((counts > 0) & (material == kind)).split(CHUNK):
                pixel, sample = part.unbind(1)
                item, place = pixel // side**2, pixel % side**2
                row, column = 2 * (place // side) + sample // 2, 2 * (place % side) + sample % 2
                colour, label = self._samples(kind, q, item, row, column, seen[pixel, sample], table, light, side)
                colours[pixel, sample] = colour * counts[pixel, sample, None]
                labels[pixel, sample] = label
        # The class of most of a pixel's samples, the first one when two are as many.
        most = (4 * counts + torch.arange(3, -1, -1, device=self.device)).argmax(1, keepdim=True)
        shape = (len(views), side, side)
        return (colours.sum(1) * 0.25).view(*shape, 3), labels.gather(1, most).view(shape)

    def _samples(
        self, kind: int, q: Tensor, item: Tensor, row: Tensor, column: Tensor, triangle: Tensor, table: Tensor,
        light: tuple[Tensor, Tensor] | None, side: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Light (N, 3) and parsing classes of N samples of one material at rows and columns of pictures `item`."""
        mine = _PerSample(q, item)
        point: tuple[Tensor, ...]
        if kind < 0:
            u, v = (column + 0.5) / (2 * side), (row + 0.5) / (2 * side)
            point = ((u - 0.5) * 9, (0.5 - v) * 9, torch.full_like(u, -3.0))
            colour, label = background(mine, self._volume, u, v), torch.full_like(item, BACKGROUND_CLASS)
        else:
            values = _interpolated(table, item, self._corners[triangle], row, column)
            point, normal, a = values[:3], unit3(values[3:6]), values[6:15]
            sun = torch.ones_like(point[0]) if light is None else _sun(light, item, point, normal)
            colour, label = surface(kind, mine, self._volume, a, normal, point, sun)
        pixel = torch.full_like(point[0], 2.6 / side)
        colour, label = with_glasses(mine, colour, label, *point, pixel)
        return torch.stack(developed(mine, colour), -1), label

    def _light(self, views: Sequence[View]) -> tuple[Tensor, Tensor]:
        """Shadow maps (B, S, S) and the maps to them (B, 3, 4)."""
        xy, depth = self._send([view.lit_xy for view in views]), self._send([view.lit_depth for view in views])
        cull = torch.zeros(len(self._casters), dtype=torch.bool, device=self.device)
        depths = rasterise_torch(xy, depth, self._casters, cull, SHADOW_SIZE, SHADOW_SIZE)[1]
        return depths, self._send([view.light.astype(np.float32) for view in views])

    def _send(self, arrays: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self.device, non_blocking=True)


class _PerSample:
    """Parameters (COUNT, B) read as if every sample had its own: q[place] is (N,)."""

    def __init__(self, table: Tensor, item: Tensor) -> None:
        self._table, self._item = table, item

    def __getitem__(self, place: int) -> Tensor:
        return self._table[place][self._item]


def _by_pixel(samples: Tensor, side: int) -> Tensor:
    """From (B, 2 * side, 2 * side) to the four samples of each pixel, (B * side * side, 4)."""
    return samples.view(-1, side, 2, side, 2).transpose(2, 3).reshape(-1, 4)


def _counts(seen: Tensor, nearest: Tensor, material: Tensor) -> Tensor:
    """For how many of its pixel's samples each sample is shaded, (N, 4): alike neighbours share the first one's shade."""
    counts = torch.zeros_like(seen)
    done = torch.zeros_like(seen, dtype=torch.bool)
    for sample in range(4):
        leads = ~done[:, sample]
        counts[:, sample] += leads
        for other in range(sample + 1, 4):
            near = (nearest[:, other] - nearest[:, sample]).abs() < APART
            joins = leads & (material[:, other] == material[:, sample]) & (near | (seen[:, sample] == NOTHING))
            done[:, other] |= joins
            counts[:, sample] += joins
    return counts


def _interpolated(table: Tensor, item: Tensor, corners: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, ...]:
    """Points (3), normals (3) and attributes (9) at N samples, each (N,). table (B, V, 18), corners (N, 3)."""
    vertices = table[item[:, None], corners]  # (N, 3, 18)
    depth = vertices[..., 15].double()
    # Triangles may be slivers: their weights need more digits than the shading.
    (ax, ay), (bx, by), (cx, cy) = (vertices[:, v, 16:].double().unbind(1) for v in range(3))
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    wa = ((bx - column) * (cy - row) - (by - row) * (cx - column)) / area
    wb = ((cx - column) * (ay - row) - (cy - row) * (ax - column)) / area
    weights = torch.stack([wa, wb, 1 - wa - wb], 1) / depth  # nearer corners count for more
    weights = (weights / weights.sum(1, keepdim=True)).float()
    return (weights[..., None] * vertices[..., :15]).sum(1).unbind(1)


def _sun(light: tuple[Tensor, Tensor], item: Tensor, point: tuple[Tensor, ...], normal: tuple[Tensor, ...]) -> Tensor:
    """Share of the key light that arrives (N,): four taps of the shadow map, as `kernel.sun`."""
    depths, places = light
    x, y, z = (p + 0.035 * n for p, n in zip(point, normal, strict=True))
    u, v, w = ((places[:, axis][item] * torch.stack([x, y, z, torch.ones_like(x)], 1)).sum(1) for axis in range(3))
    u, v = u.clamp(0.0, SHADOW_SIZE - 1.001), v.clamp(0.0, SHADOW_SIZE - 1.001)
    column, row = u.long(), v.long()
    fu, fv = u - column, v - row
    taps = [[shadow_edge(w - depths[item, row + i, column + j]) for j in (0, 1)] for i in (0, 1)]
    top = (1 - fu) * taps[0][0] + fu * taps[0][1]
    low = (1 - fu) * taps[1][0] + fu * taps[1][1]
    return (1 - fv) * top + fv * low


def _to_bytes(linear: Tensor) -> Tensor:
    clipped = linear.clamp(0, 1)
    curve = torch.where(clipped > 0.0031308, 1.055 * clipped ** (1 / 2.4) - 0.055, 12.92 * clipped)
    return (curve * 255).round().to(torch.uint8)
