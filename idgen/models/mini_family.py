"""Shapes of the mini family: a Stable Diffusion small enough to train on two CPU cores, of plain library classes.

128-px pictures, 16 x 16 x 8 latents, a text encoder that reads 32 tokens, a v-predicting UNet (Salimans & Ho, arXiv
2202.00512) on a cosine schedule. `StableDiffusionPipeline.from_pretrained` loads what is saved here.
"""

from __future__ import annotations

import os

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LATENT_CHANNELS = 8
TOKENS = 32
HIDDEN = 512  # Arc2Face pads the 512-d face embedding to this width: here nothing is left to pad

# Words of Arc2Face's prompt; the captions' own come from the grammar.
PROMPT_WORDS = ("photo", "of", "a", "id", "person")


def build_autoencoder() -> AutoencoderTiny:
    """(batch, 3, 128, 128) in [-1, 1] <-> (batch, 8, 16, 16); few blocks at 128 and 64 px, where they cost most."""
    vae = AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(64, 64, 64, 64),
        decoder_block_out_channels=(64, 64, 64, 64),
        num_encoder_blocks=(0, 1, 2, 3),
        num_decoder_blocks=(4, 3, 2, 1),
    )
    _start_as_resampling(vae)
    return vae


@torch.no_grad()
def _start_as_resampling(vae: AutoencoderTiny) -> None:
    """Begins as plain averaging down and repeating up: the class has no norms, and from its usual start learns no colour
    in its first five hundred steps."""
    for module in vae.modules():
        if isinstance(module, AutoencoderTinyBlock):
            module.conv[-1].weight.zero_()
            module.conv[-1].bias.zero_()
    for layer in [*vae.encoder.layers, *vae.decoder.layers]:
        if isinstance(layer, nn.Conv2d) and layer.in_channels == layer.out_channels:
            layer.weight.mul_(0.1)
            diagonal = torch.eye(layer.in_channels)[:, :, None, None]
            layer.weight += diagonal * (
                0.11 if layer.stride == (2, 2) else torch.tensor([0.0, 1.0, 0.0]).outer(torch.tensor([0.0, 1.0, 0.0]))
            )


def build_tokenizer(words: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer in which every one of `words` is one token (byte-pair merges learned from them)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=20_000,  # more than there are merges: learning ends when every word is whole
        min_frequency=1,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(sorted({*words, *PROMPT_WORDS}), trainer)
    import json

    model = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two causal layers of width 512."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=8,
            max_position_embeddings=TOKENS,
            projection_dim=HIDDEN,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(in_channels: int = LATENT_CHANNELS) -> UNet2DConditionModel:
    """Two resolutions; attention at 8 x 8 and in the middle only: at 16 x 16 it took more than half of the time."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        out_channels=LATENT_CHANNELS,
        cross_attention_dim=HIDDEN,
        attention_head_dim=5,  # diffusers means the number of heads: 32 channels each
        norm_num_groups=16,
        block_out_channels=(96, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def build_scheduler() -> DDIMScheduler:
    """Cosine betas, v-prediction, trailing steps: few-step sampling starts from pure noise."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        steps_offset=1,
    )


def save_pipeline(
    folder: str | os.PathLike[str],
    vae: AutoencoderTiny,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Writes the family's base model as a StableDiffusionPipeline folder in `dtype`."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=dtype).save_pretrained(folder)
