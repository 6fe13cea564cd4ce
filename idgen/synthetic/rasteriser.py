"""Which triangle does each sample of the picture see? A z-buffer in numba for the CPU, the same in torch for any device.

Both give the same triangle numbers and depths bit for bit: they evaluate the same float32 expressions in the same
order, and among equal depths the triangle with the lowest number wins.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

NOTHING = -1  # the triangle number of a sample that sees no triangle
_EDGE = np.float32(-1e-5)  # samples on a shared edge belong to both triangles: no cracks
_FLAT = np.float32(1e-9)


def rasterise_numpy(
    xy: np.ndarray, depth: np.ndarray, triangles: np.ndarray, cull: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """One picture on the CPU.

    xy (V, 2) float32 in samples, sample centres at whole numbers, y down; depth (V,) float32 > 0, smaller is nearer;
    triangles (T, 3) int32; cull (T,) bool: drop the triangle when it faces away.
    Returns triangle numbers (height, width) int32, NOTHING where there is none, and depths float32 (inf there).
    """
    seen = np.full((height, width), NOTHING, np.int32)
    nearest = np.full((height, width), np.inf, np.float32)
    _rasterise(xy, depth, triangles, cull, seen, nearest)
    return seen, nearest


@numba.njit(cache=True, nogil=True, boundscheck=False)
def _rasterise(xy, depth, triangles, cull, seen, nearest):  # type: ignore[no-untyped-def]
    height, width = seen.shape
    one = np.float32(1)
    for t in range(triangles.shape[0]):
        i, j, k = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ax, ay, bx, by, cx, cy = xy[i, 0], xy[i, 1], xy[j, 0], xy[j, 1], xy[k, 0], xy[k, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if not abs(area) > _FLAT or (cull[t] and area > 0):
            continue
        left = max(np.int64(np.ceil(min(ax, min(bx, cx)))), 0)
        right = min(np.int64(np.floor(max(ax, max(bx, cx)))), width - 1)
        top = max(np.int64(np.ceil(min(ay, min(by, cy)))), 0)
        bottom = min(np.int64(np.floor(max(ay, max(by, cy)))), height - 1)
        inverse = one / area
        za, zb, zc = depth[i], depth[j], depth[k]
        for y in range(top, bottom + 1):
            fy = np.float32(y)
            for x in range(left, right + 1):
                fx = np.float32(x)
                wa = ((bx - fx) * (cy - fy) - (by - fy) * (cx - fx)) * inverse
                wb = ((cx - fx) * (ay - fy) - (cy - fy) * (ax - fx)) * inverse
                wc = one - wa - wb
                if wa < _EDGE or wb < _EDGE or wc < _EDGE:
                    continue
                z = wa * za + wb * zb + wc * zc
                if z < nearest[y, x]:
                    nearest[y, x] = z
                    seen[y, x] = t


@torch.no_grad()
def rasterise_torch(
    xy: torch.Tensor, depth: torch.Tensor, triangles: torch.Tensor, cull: torch.Tensor, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch on any device: xy (B, V, 2), depth (B, V); the rest and the results as `rasterise_numpy`, batched.

    Triangles are sorted into classes by the size of their bounding box, so that each class is one rectangular set of
    candidate samples; the nearest wins by an atomic minimum of (depth, triangle number), which has no order.
    """
    batch = xy.shape[0]
    corners, z = xy[:, triangles.long()], depth[:, triangles.long()]  # (B, T, 3, 2), (B, T, 3)
    a, b, c = corners.unbind(2)
    area = (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])
    limit = torch.tensor([width - 1, height - 1], device=xy.device)
    low = corners.amin(2).clamp(-1e6, 1e6).ceil().long().clamp_min(0)
    high = torch.minimum(corners.amax(2).clamp(-1e6, 1e6).floor().long(), limit)
    extent = high - low + 1
    alive = (extent > 0).all(-1) & (area.abs() > float(_FLAT)) & ~(cull[None] & (area > 0))
    side = extent.amax(-1)
    far = torch.iinfo(torch.int64).max
    best = torch.full((batch * height * width,), far, dtype=torch.int64, device=xy.device)
    smallest, size = 0, 2
    while smallest < max(height, width):
        rows = torch.nonzero(alive & (side > smallest) & (side <= size))
        smallest, size = size, size * 2
        grid = torch.arange(smallest, device=xy.device)
        oy, ox = (g.reshape(-1) for g in torch.meshgrid(grid, grid, indexing="ij"))
        for part in rows.split(max(1, (1 << 22) // smallest**2)):
            item, number = part.unbind(1)
            px, py = low[item, number, :1] + ox, low[item, number, 1:] + oy  # (n, smallest**2)
            fx, fy = px.float(), py.float()
            (ax, ay), (bx, by), (cx, cy) = (
                (corners[item, number, v, :1], corners[item, number, v, 1:]) for v in range(3)
            )
            inverse = 1 / area[item, number][:, None]
            wa = ((bx - fx) * (cy - fy) - (by - fy) * (cx - fx)) * inverse
            wb = ((cx - fx) * (ay - fy) - (cy - fy) * (ax - fx)) * inverse
            wc = 1 - wa - wb
            edge = float(_EDGE)
            inside = (wa >= edge) & (wb >= edge) & (wc >= edge)
            inside &= (px <= high[item, number, :1]) & (py <= high[item, number, 1:])
            zs = wa * z[item, number, :1] + wb * z[item, number, 1:2] + wc * z[item, number, 2:]
            # The bits of a positive float sort as the float does.
            key = (zs.view(torch.int32).long() << 24) | number[:, None]
            place = (item[:, None] * height + py) * width + px
            best.scatter_reduce_(0, place[inside], key[inside], "amin")
    seen = torch.where(best == far, NOTHING, best & 0xFFFFFF).to(torch.int32)
    bits = torch.where(best == far, 0, best >> 24).to(torch.int32)
    nearest = torch.where(best == far, torch.inf, bits.view(torch.float32))
    return seen.view(batch, height, width), nearest.view(batch, height, width)
