"""A random Stable-Diffusion-shaped model, small enough for a test: the mini family's layout, nothing trained.

`tiny_root(folder)` writes what idgen/assets/mini holds (a StableDiffusionPipeline folder beside arc2face/ and encoder/);
`tiny_components()` gives the parts. The text encoder's hidden size must be at least 512, the length of a face embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from idgen.models.mini_family import build_scheduler

WORDS = ("photo", "of", "a", "id", "person", "face", "smiling", "man", "woman")
HIDDEN = 512


def tiny_tokenizer(words: Sequence[str] = WORDS, length: int = 16) -> CLIPTokenizer:
    """A CLIPTokenizer that knows whole words: ids 0 and 1 begin and end a prompt, the words follow in order."""
    return word_tokenizer({word: 2 + index for index, word in enumerate(words)}, bos=0, eos=1, length=length)


def word_tokenizer(ids: dict[str, int], *, bos: int, eos: int, length: int, pad: int | None = None) -> CLIPTokenizer:
    """A CLIPTokenizer with the given ids for whole words; letters and their joints take ids that are still free.

    It fills up with the end of the prompt as Stable Diffusion 1.5's does, or with `pad`, a "!", as Stable Diffusion 2's.
    """
    pieces, merges = [], []
    for word in ids:
        letters = [*word[:-1], word[-1] + "</w>"]
        joined = letters[0]
        for letter in letters[1:]:
            pieces += [joined, letter]
            merges.append((joined, letter))
            joined += letter
    vocab = {"<|startoftext|>": bos, "<|endoftext|>": eos} | {f"{word}</w>": number for word, number in ids.items()}
    filler = {} if pad is None else {"!": pad}
    vocab |= filler
    free = (number for number in range(10**6) if number not in set(vocab.values()))
    for piece in pieces:
        if piece not in vocab:
            vocab[piece] = next(free)
    options = {"pad_token": next(iter(filler))} if filler else {}
    return CLIPTokenizer(vocab=vocab, merges=list(dict.fromkeys(merges)), model_max_length=length, **options)


def tiny_text_encoder(tokenizer: CLIPTokenizer, hidden: int = HIDDEN) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval()


def tiny_unet(hidden: int = HIDDEN, *, sample_size: int = 4, latent_channels: int = 8) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=hidden,
    ).eval()


def tiny_vae(latent_channels: int = 8) -> AutoencoderTiny:
    """Eightfold, as the mini family's: 32 px -> 4x4 latents."""
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        latent_channels=latent_channels,
        scaling_factor=0.8,
    ).eval()


def tiny_components(seed: int = 0, hidden: int = HIDDEN) -> dict[str, Any]:
    """The arguments of a Stable Diffusion pipeline; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        return {
            "vae": tiny_vae(),
            "text_encoder": tiny_text_encoder(tokenizer, hidden),
            "tokenizer": tokenizer,
            "unet": tiny_unet(hidden),
            "scheduler": build_scheduler(),
        }


def tiny_root(folder: Path, seed: int = 0, hidden: int = HIDDEN) -> Path:
    """Write a random mini family's base and Arc2Face parts into a folder; use it as $IDGEN_MINI."""
    base = tiny_components(seed, hidden)
    StableDiffusionPipeline(
        **base, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(folder)
    finetuned = tiny_components(seed + 1, hidden)
    finetuned["text_encoder"].config.recogniser = "mini"
    finetuned["unet"].save_pretrained(folder / "arc2face")
    finetuned["text_encoder"].save_pretrained(folder / "encoder")
    return folder
