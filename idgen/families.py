"""Which base model weights belong to: told by the width of the text states that their cross-attention reads."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from idgen.errors import IdgenError

# Width of the text states -> the base in words. Stable Diffusion 2 and its inpainting model share a width.
FAMILIES = {512: "the mini family", 768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2", 2048: "SDXL"}

# Weights whose second axis is that width, in published namings: a UNet's or ControlNet's text attention and LoRAs down from it
# (never up to it), keys and values of IP-Adapter, PuLID, W+ and PVA, and the linear layer ahead of FACT's and GLIGEN's attention.
READS_TEXT = re.compile(
    r"(?!.*(?:lora_B|magnitude|oft_R|[._]up\.weight))(?:.*[._])?"
    r"(?:attn2[._](?:processor\.)?to_[kv](?:[._].*)?|to_[kv]_ip(?:\.\d+)?|id_to_[kv]|to_[kv]_wplus|to_visual_[kv]"
    r"|(?:processor|fuser)\.linear)\.weight"
)


def text_width(weights: Mapping[str, torch.Tensor]) -> int | None:
    """The width of the text states that weights read; None when nothing in them says so, or not with one voice."""
    widths = {value.shape[1] for key, value in weights.items() if value.ndim > 1 and READS_TEXT.fullmatch(key)}
    return widths.pop() if len(widths) == 1 else None


def family_name(width: int) -> str:
    """The base with text states of that width, in words."""
    return FAMILIES.get(width, f"a model that reads text of width {width}")


def require_family(weights: Mapping[str, torch.Tensor], width: int, what: str) -> None:
    """Refuse weights that were made for another base than the model they are for.

    Args:
        width: of the model's text states (`unet.config.cross_attention_dim`).
        what: names the weights in the error.

    Raises:
        IdgenError: says both bases.
    """
    made_for = text_width(weights)
    if made_for is not None and made_for != width:
        raise IdgenError(
            f"{what}: made for {family_name(made_for)}, and the model is {family_name(width)}:"
            " use weights and model of the same base"
        )
