"""How fast diffusers' autoencoder classes train at 128 px -> 16 x 16 x 8: why the mini family has AutoencoderTiny.

    python -m benchmarks.autoencoder_kinds

One thread, CPU time, so that other work on the machine matters little; compare the ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from torch import nn

from idgen.models.mini_family import LATENT_CHANNELS, build_autoencoder

BATCH = 8


def main() -> None:
    """Prints one row a class."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print(
        "| autoencoder | parameters, M | training, images per CPU second | encoding | decoding |\n|---|---|---|---|---|"
    )
    for name, build in KINDS.items():
        vae = build().to(memory_format=torch.channels_last)
        size = sum(p.numel() for p in vae.parameters()) / 1e6
        print(f"| {name} | {size:.2f} | {' | '.join(f'{rate:.0f}' for rate in _rates(vae))} |", flush=True)


def _rates(vae: nn.Module) -> list[float]:
    images = torch.rand(BATCH, 3, 128, 128).to(memory_format=torch.channels_last) * 2 - 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        latents = _encode(vae, images)

    def train() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = (vae.decode(_encode(vae, images)).sample.float() - images).abs().mean()  # type: ignore[operator]
        loss.backward()

    def frozen(part: Callable[[], object]) -> Callable[[], object]:
        return torch.no_grad()(torch.autocast("cpu", torch.bfloat16)(part))

    jobs = (train, frozen(lambda: _encode(vae, images)), frozen(lambda: vae.decode(latents)))  # type: ignore[operator]
    return [BATCH / _seconds(job) for job in jobs]


def _encode(vae: nn.Module, images: torch.Tensor) -> torch.Tensor:
    encoded = vae.encode(images)  # type: ignore[operator]
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent


def _seconds(job: Callable[[], object]) -> float:
    job()  # the first call builds kernels
    start = time.process_time()
    for _ in range(2):
        job()
    return (time.process_time() - start) / 2


def _dc() -> AutoencoderDC:
    return AutoencoderDC(
        latent_channels=LATENT_CHANNELS,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(32, 64, 128, 256),
        decoder_block_out_channels=(32, 64, 128, 256),
        encoder_layers_per_block=(0, 1, 2, 2),
        decoder_layers_per_block=(0, 1, 2, 2),
        encoder_qkv_multiscales=((), (), (), ()),
        decoder_qkv_multiscales=((), (), (), ()),
        upsample_block_type="pixel_shuffle",
        downsample_block_type="pixel_unshuffle",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )


def _kl() -> AutoencoderKL:
    return AutoencoderKL(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64, 96, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=16,
    )


KINDS: dict[str, Callable[[], nn.Module]] = {
    "AutoencoderTiny, as it ships": build_autoencoder,
    "AutoencoderTiny, diffusers' default blocks": lambda: AutoencoderTiny(latent_channels=LATENT_CHANNELS),
    "AutoencoderDC, 32 to 256 channels": _dc,
    "AutoencoderKL, 32 to 128 channels": _kl,
}


if __name__ == "__main__":
    main()
