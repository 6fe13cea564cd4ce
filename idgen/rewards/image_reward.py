"""ImageReward (Xu et al., arXiv 2304.05977; THUDM/ImageReward `ImageReward.pt`) through transformers' BLIP.

Facts from github.com/THUDM/ImageReward: BLIP with a ViT-L/16 at 224 px reads the picture, BERT reads the prompt (35 tokens) and
attends to it, five linear layers read BERT's first token; the score is then brought to mean 0 and deviation 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertTokenizerFast, BlipTextConfig, BlipVisionConfig, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from idgen.checkpoint import load_strict, load_weights
from idgen.errors import IdgenError
from idgen.rewards.looks import clip_pixels, missing, score_layers
from idgen.rewards.scores import Scored, everything
from idgen.rewards.views import Asked, View

MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
PROMPT_TOKENS = 35

# The published name of a part -> transformers'. Everything after it stays.
NAMES = (
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.norm1\.", r"vision.encoder.layers.\1.layer_norm1."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.norm2\.", r"vision.encoder.layers.\1.layer_norm2."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.", r"vision.encoder.layers.\1.self_attn."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.", r"vision.encoder.layers.\1."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^mlp\.layers\.", "head."),
)
# Of BLIP's training: nothing reads them. A counter that older versions of BERT saved.
UNUSED = re.compile(r"^blip\.(vision_proj|text_proj)\.|\.position_ids$")


class ImageRewardNet(nn.Module):
    """Pictures and prompt tokens -> scores (batch,).

    Args:
        image_size: px.
        layers, width, heads: of the vision transformer; the published sizes by default.
        text_layers, text_width, text_heads, vocabulary: of BERT.
    """

    def __init__(
        self,
        image_size: int = 224,
        layers: int = 24,
        width: int = 1024,
        heads: int = 16,
        text_layers: int = 12,
        text_width: int = 768,
        text_heads: int = 12,
        vocabulary: int = 30524,
    ) -> None:
        super().__init__()
        vision = BlipVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            image_size=image_size,
            patch_size=16,
            layer_norm_eps=1e-6,
        )
        text = BlipTextConfig(
            vocab_size=vocabulary,
            hidden_size=text_width,
            encoder_hidden_size=width,
            intermediate_size=4 * text_width,
            num_hidden_layers=text_layers,
            num_attention_heads=text_heads,
        )
        self.image_size = image_size
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = score_layers(text_width)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """
        Args:
            pixels: (batch, 3, size, size), normalised as for CLIP.
            input_ids, attention_mask: (batch, tokens).
        """
        seen = self.vision(pixel_values=pixels).last_hidden_state  # (batch, patches + 1, width)
        read = self.text(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        ).last_hidden_state
        return (self.head(read[:, 0].float())[:, 0] - MEAN) / DEVIATION


class ImageReward:
    """ImageReward of each picture for its prompt; about -2 to 2.

    Args:
        weights: `ImageReward.pt`.
        tokenizer: bert-base-uncased or a folder with it.
        network: of other sizes than the published.
    """

    needs_whole = True

    def __init__(
        self,
        weights: Path,
        tokenizer: str = "bert-base-uncased",
        device: torch.device | str = "cpu",
        network: ImageRewardNet | None = None,
    ) -> None:
        state = convert(load_weights(weights), str(weights))
        self.network = network or ImageRewardNet()
        load_strict(self.network, state, f"ImageReward from {weights}")
        self.network.to(device).eval().requires_grad_(False)
        try:
            self.tokenizer = BertTokenizerFast.from_pretrained(tokenizer)
        except (OSError, ValueError, TypeError) as error:
            raise missing(tokenizer, error) from error

    def __call__(self, view: View, asked: Asked) -> Scored:
        prompts = asked.prompt_of_each(len(view.pictures))
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=PROMPT_TOKENS, return_tensors="pt"
        ).to(view.pictures.device)
        pixels = clip_pixels(view.pictures, self.network.image_size)
        return everything(self.network(pixels, tokens.input_ids, tokens.attention_mask))


def convert(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """The published tensors under transformers' names.

    Raises:
        IdgenError: a name that is no part of ImageReward.
    """
    state = {}
    for name, tensor in tensors.items():
        if UNUSED.search(name):
            continue
        for pattern, ours in NAMES:
            renamed, found = re.subn(pattern, ours, name)
            if found:
                state[renamed] = tensor
                break
        else:
            raise IdgenError(f"{what}: the tensor {name!r} is no part of ImageReward: these are other weights")
    return state
