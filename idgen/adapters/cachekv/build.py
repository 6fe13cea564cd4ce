"""New restoration models: the authors' and the mini family's."""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DModel, VQModel

from idgen.models.mini_family import LATENT_CHANNELS

# Channels of its first block from which a UNet is faster in channels-last on a CPU. The mini family's loses by it.
WIDE = 128


def build_unet() -> UNet2DModel:
    """ReF-LDM's UNet at its published size, 118 M parameters, with fresh weights."""
    return UNet2DModel(
        sample_size=64,
        in_channels=16,
        out_channels=8,
        block_out_channels=(160, 320, 320, 640),
        layers_per_block=2,
        down_block_types=("DownBlock2D", *("AttnDownBlock2D",) * 3),
        up_block_types=(*("AttnUpBlock2D",) * 3, "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=32,
    )


def build_scheduler(beta_start: float = 0.0015, beta_end: float = 0.0155, timesteps: int = 1000) -> DDIMScheduler:
    """DDIM over ReF-LDM's noise schedule, ending at its first entry as the authors' sampler does."""
    return DDIMScheduler(
        num_train_timesteps=timesteps,
        beta_start=beta_start,
        beta_end=beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",  # the authors' "uniform_trailing", for whichever sampler takes its place
    )


def build_mini_unet() -> UNet2DModel:
    """The mini family's: its UNet without text; attention at 8 x 8 and in the middle only.

    At 16 x 16 too, five references made a training step two and a half times as long.
    """
    return UNet2DModel(
        sample_size=16,
        in_channels=2 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(96, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=16,
    )


def lay_out(unet: UNet2DModel, vq: VQModel | AutoencoderTiny) -> None:
    """Puts the weights into the order in memory in which a CPU computes fastest; what they give is the same."""
    vq.to(memory_format=torch.channels_last)
    if unet.config["block_out_channels"][0] >= WIDE:
        unet.to(memory_format=torch.channels_last)
