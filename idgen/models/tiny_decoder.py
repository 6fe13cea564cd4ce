"""A decoder for rewards: about what the autoencoder's would show, for a fraction of its time and memory.

A reward's gradient passes through the decoder at every step. The dear part of one is its last layers, where maps are as large as
the picture; here everything happens at twice the latents' size, and the last convolution puts out the pixels of each cell side by
side (sub-pixel convolution: Shi et al., arXiv 1609.05158). Stable Diffusion has `AutoencoderTiny` (TAESD) for the same use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from idgen.checkpoint import load_strict, load_weights
from idgen.models.registry import read_config

ARCHITECTURE = "tiny_decoder"


class TinyDecoder(nn.Module):
    """Latents (batch, channels, h, w), as the UNet makes them -> pictures (batch, 3, factor * h, factor * w) about [-1, 1].

    Args:
        channels: of the latents.
        width: channels inside.
        blocks: residual blocks at the latents' size, and at twice it.
        factor: pixels per latent, a multiple of 2.
    """

    def __init__(
        self, channels: int = 8, width: int = 64, blocks: tuple[int, int] | list[int] = (3, 1), factor: int = 8
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "architecture": ARCHITECTURE,
            "channels": channels,
            "width": width,
            "blocks": list(blocks),
            "factor": factor,
        }
        self.stem = nn.Conv2d(channels, width, 3, 1, 1)
        self.coarse = nn.Sequential(*(_Block(width) for _ in range(blocks[0])))
        self.fine = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), *(_Block(width) for _ in range(blocks[1])))
        self.pixels = nn.Conv2d(width, 3 * (factor // 2) ** 2, 3, 1, 1)

    def forward(self, latents: Tensor) -> Tensor:
        # Latents have no bounds, and a few lie far out.
        x = self.coarse(self.stem(3 * (latents / 3).tanh()))
        x = self.fine(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return F.pixel_shuffle(self.pixels(x), self.config["factor"] // 2)


def load_tiny_decoder(folder: Path) -> TinyDecoder:
    """The decoder in a folder with config.json and model.safetensors, frozen and in eval mode.

    Raises:
        IdgenError: the folder or a file of it is missing, damaged or of something else.
    """
    config = read_config(folder)
    sizes = {name: config[name] for name in ("channels", "width", "blocks", "factor") if name in config}
    network = TinyDecoder(**sizes)
    load_strict(network, load_weights(folder / "model.safetensors"), f"the tiny decoder in {folder}")
    return network.eval().requires_grad_(False)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU()
        )
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.body(x))
