"""The mini family with random weights that can inpaint too."""

from __future__ import annotations

from pathlib import Path

import torch

from idgen.adapters.pva import PVAAdapter, PVAConfig
from idgen.models.inpainting import inpainting_unet
from tests.tiny import tiny_unet
from tests.tiny_family import tiny_family


def tiny_inpainting_family(folder: Path, size: int = 32) -> Path:
    """Write it into a folder for $IDGEN_MINI.

    Args:
        size: side of its pictures in pixels.
    """
    tiny_family(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = inpainting_unet(tiny_unet(sample_size=size // 8))
        unet.save_pretrained(folder / "inpaint" / "unet")
        adapter = PVAAdapter.for_unet(unet, PVAConfig(recogniser="mini", out_dim=512, num_layer=1))
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        adapter.save(folder / "inpaint" / "pva" / "adapter.safetensors")
    return folder
