"""What `idgen demo` shows beside new pictures: one photo of the person restored, and the face in another filled."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from idgen.faces import FaceEncoder

PRESET, REGION = "severe", "whole"


@dataclass(frozen=True)
class Given:
    """What a part of the demo works with.

    Attributes:
        references: photos that show who it is.
        photo: another photo of the person.
        landmarks: (5, 2) of the face in it.
        encoder: makes the identity of the references.
    """

    references: list[Image.Image]
    photo: Image.Image
    landmarks: np.ndarray
    encoder: FaceEncoder
    device: torch.device
    dtype: torch.dtype
    steps: int
    seed: int


@dataclass(frozen=True)
class Repaired:
    """A photo that lacks something, and what was made of it without references and with them."""

    before: Image.Image
    without: Image.Image
    after: Image.Image
    seconds: float


def restoration(given: Given) -> Repaired:
    """The photo damaged as ReF-LDM's severe preset does, and restored."""
    import numpy as np
    from PIL import Image

    from idgen.data.degradation import PRESETS, degrade, draw_damage
    from idgen.pipelines import ReferenceRestorePipeline
    from idgen.rewards.ascent import guide_identity

    pipe = ReferenceRestorePipeline.from_pretrained("mini", torch_dtype=given.dtype).to(given.device)
    pipe.set_progress_bar_config(disable=True)
    size = pipe.config.size
    photo = np.asarray(given.photo.convert("RGB").resize((size, size)))
    generators = random.Random(given.seed), np.random.RandomState(given.seed % 2**32)
    bad = Image.fromarray(degrade(photo, draw_damage(PRESETS[PRESET], size, size, generators=generators)))
    references = [one.resize((size, size)) for one in given.references]
    settings = {"num_inference_steps": given.steps}
    guided = guide_identity(given.encoder, pipe.vq, [given.encoder(given.references)]).guided(pipe)

    def restore(shown: bool) -> Any:
        used = guided if shown else pipe
        return used(bad, references if shown else None, **_drawn(given), **settings)

    return _both(given, bad, restore)


def inpainting(given: Given) -> Repaired:
    """The photo with its face painted over, and filled."""
    import numpy as np
    from PIL import Image

    from idgen.data.regions import region_mask
    from idgen.pipelines import PVAInpaintPipeline
    from idgen.rewards.ascent import guide_identity

    pipe = PVAInpaintPipeline.from_pretrained("mini", torch_dtype=given.dtype).to(given.device)
    pipe.set_progress_bar_config(disable=True)
    hole = region_mask(REGION, given.landmarks, given.photo.size)
    pixels = np.array(given.photo.convert("RGB"))
    pixels[hole] = 128
    mask = Image.fromarray(hole.astype(np.uint8) * 255)
    identity = given.encoder(given.references)
    settings: dict[str, Any] = {"num_inference_steps": given.steps, "composite": True}
    guided = guide_identity(given.encoder, pipe.vae, [identity]).guided(pipe)

    def fill(shown: bool) -> Any:
        used = guided if shown else pipe
        return used(identity if shown else None, image=given.photo, mask_image=mask, **_drawn(given), **settings)

    return _both(given, Image.fromarray(pixels), fill)


PARTS: dict[str, tuple[str, Callable[[Given], Repaired], str]] = {
    "restore": (
        "restoration",
        restoration,
        f"restored: {PRESET}ly damaged, from it alone, with the references, the original",
    ),
    "inpaint": (
        "inpainting",
        inpainting,
        "filled: the face painted over, with nobody's, with the person's, the original",
    ),
}


def _both(given: Given, before: Image.Image, make: Callable[[bool], Any]) -> Repaired:
    without = make(False).images[0]
    start = time.perf_counter()
    after = make(True).images[0]
    seconds = time.perf_counter() - start
    size = given.photo.size
    return Repaired(before.resize(size), without.resize(size), after.resize(size), seconds)


def _drawn(given: Given) -> dict[str, Any]:
    import torch

    return {"generator": [torch.Generator().manual_seed(given.seed)]}
