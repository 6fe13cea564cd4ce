"""Rewards of how a picture looks: the mini family's head, and published ones that read it with CLIP.

* CLIP-aesthetic: LAION's improved aesthetic predictor (github.com/christophschuhmann/improved-aesthetic-predictor), a small
  network over CLIP ViT-L/14 embeddings of length 1; about 1 to 10.
* PickScore (Kirstain et al., arXiv 2305.01569; yuvalkirstain/PickScore_v1): a CLIP ViT-H/14 trained on choices between pictures
  of one prompt; the scaled cosine of text and picture, about 15 to 25.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection, PreTrainedModel

from idgen.checkpoint import load_strict, load_weights
from idgen.errors import IdgenError
from idgen.models.preference import load_preference
from idgen.rewards.scores import Scored, everything
from idgen.rewards.views import Asked, View

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)

Model = TypeVar("Model", bound=PreTrainedModel)


class PreferenceReward:
    """The score of a head that `train/preference.py` made; 0 is what it gives well-made pictures on average.

    Args:
        folder: with config.json and model.safetensors.
    """

    needs_whole = True

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.network = load_preference(folder, device)

    def __call__(self, view: View, asked: Asked) -> Scored:
        return everything(self.network(view.pictures).float())


class ClipAesthetic:
    """LAION's aesthetic score of each picture.

    Args:
        head: the predictor's weights, `sac+logos+ava1-l14-linearMSE.pth`.
        clip: openai/clip-vit-large-patch14 or a folder with it.
    """

    needs_whole = True

    def __init__(self, head: Path, clip: str, device: torch.device | str = "cpu") -> None:
        self.clip = pretrained(CLIPVisionModelWithProjection, clip).to(device)
        self.head = score_layers(self.clip.config.projection_dim).to(device)
        state = {name.removeprefix("layers."): value for name, value in load_weights(head).items()}
        load_strict(self.head, state, f"aesthetic predictor from {head}")
        self.head.eval().requires_grad_(False)

    def __call__(self, view: View, asked: Asked) -> Scored:
        pixels = clip_pixels(view.pictures, self.clip.config.image_size)
        embeddings = F.normalize(self.clip(pixel_values=pixels).image_embeds.float(), dim=-1)
        return everything(self.head(embeddings)[:, 0])


class PickScore:
    """PickScore of each picture for its prompt.

    Args:
        source: yuvalkirstain/PickScore_v1 or a folder with it; any CLIP gives its own scaled cosine.
        tokenizer: where its tokenizer lies, if not in `source`; the published model has that of
            laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
    """

    needs_whole = True

    def __init__(self, source: str, tokenizer: str | None = None, device: torch.device | str = "cpu") -> None:
        self.clip = pretrained(CLIPModel, source).to(device)
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(tokenizer or source)
        except (OSError, ValueError, TypeError) as error:
            raise missing(tokenizer or source, error) from error

    def __call__(self, view: View, asked: Asked) -> Scored:
        """
        Raises:
            IdgenError: not one prompt a picture.
        """
        return everything(self.clip.logit_scale.exp() * self.cosines(view.pictures, asked))

    def cosines(self, pictures: Tensor, asked: Asked) -> Tensor:
        """Of prompts and pictures, (batch,): CLIP-T."""
        prompts = asked.prompt_of_each(len(pictures))
        tokens = self.tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        tokens = tokens.to(pictures.device)
        clip = self.clip
        texts = clip.text_projection(clip.text_model(**tokens).pooler_output)
        pixels = clip_pixels(pictures, clip.config.vision_config.image_size)
        images = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
        return F.cosine_similarity(texts.float(), images.float())


def score_layers(width: int) -> nn.Sequential:
    """The five linear layers, without anything between them, that both LAION's predictor and ImageReward end in."""
    widths = (width, 1024, 128, 64, 16, 1)
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(before, after))
        if place < 3:
            layers.append(nn.Dropout(0.2 if place < 2 else 0.1))
    return nn.Sequential(*layers)


def clip_pixels(pictures: Tensor, size: int) -> Tensor:
    """Pictures (batch, 3, h, w) in [-1, 1] as CLIP reads them, with gradients: shorter side to `size`, middle square."""
    height, width = pictures.shape[-2:]
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    pictures = F.interpolate(pictures.float(), shape, mode="bicubic", antialias=True)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    square = ((pictures[..., top : top + size, left : left + size] + 1) / 2).clamp(0, 1)
    mean, deviation = (square.new_tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_DEVIATION))
    return (square - mean) / deviation


def pretrained(kind: type[Model], source: str) -> Model:
    """A transformers model, frozen, in eval mode and float32.

    Raises:
        IdgenError: it is not there, or is something else.
    """
    try:
        return kind.from_pretrained(source, dtype=torch.float32).eval().requires_grad_(False)
    except (OSError, ValueError) as error:
        raise missing(source, error) from error


def missing(source: str, error: Exception) -> IdgenError:
    """What to do about weights of a reward that do not load."""
    reason = " ".join(str(error).split())[:200]
    return IdgenError(f"cannot load the reward {source}: {reason}; with a network run: hf download {source}")
