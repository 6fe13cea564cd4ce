"""A random restoration model, small enough for a test."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel

from idgen.models.mini_family import build_scheduler
from idgen.pipelines import ReferenceRestorePipeline
from tests.tiny import tiny_vae

SIZE = 32


def tiny_restorer(seed: int = 0, **settings: Any) -> ReferenceRestorePipeline:
    """32 px, latents of 4 x 4, self-attention at both levels; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DModel(
            in_channels=16,
            out_channels=8,
            block_out_channels=(32, 32),
            layers_per_block=1,
            down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
            attention_head_dim=16,
        ).eval()
        torch.nn.init.normal_(unet.conv_out.weight, std=0.2)  # what a fresh UNet sees hardly shows
        vae = tiny_vae()
    settings = {"size": SIZE, "ref_encoding": "independent", "references": 2} | settings
    pipe = ReferenceRestorePipeline(unet, vae, build_scheduler(), **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def add_restorer(family: Path, seed: int = 0, **settings: Any) -> Path:
    """Put one into a mini family as tools/assemble_mini.py does: it shares the family's autoencoder."""
    pipe = tiny_restorer(seed, **settings)
    pipe.save_pretrained(family / "restore")
    shutil.rmtree(family / "restore" / "vq")
    return family
