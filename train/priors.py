"""Prior preservation (DreamBooth: Ruiz et al., CVPR 2023, arXiv 2208.12242): what the base draws of other people stays as it is.

The base draws them before anything is trained; they are kept beside the hash of all that decides them, so that the next
training of the same base, whoever it is of, finds them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from idgen.console import progress, say
from idgen.files import atomic_write
from idgen.imageio import load_array
from idgen.provenance import save_png
from idgen.train.denoisers import Conditions

BATCH = 8


def prior_conditions(prompts: list[str], images: int, identity_dim: int | None, seed: int) -> Conditions:
    """One condition a picture: the prompts in turn, or directions of nobody in particular (images, dim) for Arc2Face."""
    if identity_dim is None:
        return [prompts[index % len(prompts)] for index in range(images)]
    vectors = torch.randn(images, identity_dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def prior_pictures(
    pipe: Any, conditions: Conditions, folder: Path, *, steps: int, guidance: float, size: int, seed: int
) -> np.ndarray:
    """(images, size, size, 3) uint8 that the base draws, or drew before, into a folder of their own in `folder`."""
    wanted = {"steps": steps, "guidance": guidance, "size": size, "seed": seed, "base": fingerprint(pipe)}
    described = conditions.numpy().tobytes() if isinstance(conditions, Tensor) else json.dumps(conditions).encode()
    key = hashlib.sha256(described + json.dumps(wanted).encode()).hexdigest()[:16]
    files = [folder / key / f"{index:04d}.png" for index in range(len(conditions))]
    # Each file is written whole or not at all, so a training that was killed here goes on with the next picture.
    missing = [index for index, file in enumerate(files) if not file.exists()]
    if missing:
        say(f"prior preservation: the base draws {len(missing)} pictures into {folder / key}")
        with atomic_write(folder / key / "settings.json") as temporary:
            temporary.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    for start in progress(range(0, len(missing), BATCH), -(-len(missing) // BATCH), "prior") if missing else ():
        part = missing[start : start + BATCH]
        chosen: Any = conditions[part] if isinstance(conditions, Tensor) else [conditions[index] for index in part]
        made = pipe(
            chosen,
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=size,
            width=size,
            generator=[torch.Generator().manual_seed(seed * 1_000_003 + index) for index in part],
        ).images
        for index, picture in zip(part, made, strict=True):
            save_png(files[index], picture)
    return np.stack([load_array(file) for file in files])


def fingerprint(pipe: Any, parts: tuple[str, ...] = ("unet", "text_encoder", "text_encoder_2", "vae")) -> str:
    """Of a pipeline's weights: a sample of every tensor, which another base or another training of it does not share."""
    digest = hashlib.sha256()
    for name in parts:
        module = getattr(pipe, name, None)
        if module is None:
            continue
        for key, value in module.state_dict().items():
            flat = value.flatten()
            digest.update(f"{name}.{key}{tuple(value.shape)}".encode())
            digest.update(flat[:: max(1, flat.numel() // 64)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
