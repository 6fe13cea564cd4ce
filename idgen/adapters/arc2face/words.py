"""Words for a model that reads none: the text-to-face model that it began as says where they lead.

At every step the base predicts the noise (or velocity) under the prompt and under plain words, and what differs is added to what
Arc2Face predicts for the face: eps = eps_face + scale (eps_base(prompt) - eps_base(plain)). A sum of predictions as in Composable
Diffusion (Liu et al., ECCV 2022, arXiv 2206.01714), whose second term is another model's. Nothing is trained; a step costs two
more passes of a UNet.

    base = load_text_base()
    led = lead_by_words(pipe, base, ["a photo of a person smiling"])
    led(identity)
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils import logging
from torch import Tensor, nn

from idgen.adapters.wplus.sources import find_base, load_base
from idgen.errors import IdgenError
from idgen.weights import find_mini

# Chosen on validation people of the mini family (docs/RESULTS.md, "Words for Arc2Face"): how far the words lead, and how strongly
# and from where on its reader guides besides (`idgen.rewards.ascent.guide_words`).
SCALE = 3.0
READER_STRENGTH, READER_START = 0.02, 0.8
PLAIN = "a photo of a person"


def load_text_base(name: str | os.PathLike[str] = "mini", **options: Any) -> StableDiffusionPipeline:
    """The text-to-face model of the mini family, or a Stable Diffusion.

    Args:
        name: `"mini"`, a folder, or a hub id.
        options: as in diffusers (`dtype`, `variant`, `vae=...`, `cache_dir`, `local_files_only`, ...).

    Raises:
        IdgenError: something is missing, broken, or not on this machine and can not be fetched.
    """
    folder = find_mini("unet").parent if name == "mini" else find_base(name, options)
    options |= load_base(folder, options)
    options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False} | options
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the mini family's autoencoder is of another class than the signature says
    try:
        pipe = StableDiffusionPipeline.from_pretrained(str(folder), **options)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise IdgenError(f"cannot load the tokenizer or scheduler from {folder}: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def lead_by_words(
    pipe: Any,
    base: StableDiffusionPipeline,
    prompts: Sequence[str],
    scale: float = SCALE,
    plain: str = PLAIN,
) -> Any:
    """A pipeline of the same networks whose pictures also show what the words say. `pipe` stays as it is.

    Args:
        pipe: an Arc2FacePipeline.
        base: the model that its UNet was finetuned from, on the same device: of the same latents and noise schedule.
        prompts: one for all pictures of a call, or one each.
        scale: how far the words lead; 0 not at all.
        plain: what the prompts say besides what they are to bring. A man or a woman in the prompts and not here keeps beards
            where they belong.

    Raises:
        IdgenError: no prompts, a scale that is negative or not finite, or a base that predicts something else.
    """
    if not math.isfinite(scale) or scale < 0:
        raise IdgenError(f"the scale of the words is {scale}, expected 0 or more")
    if not prompts:
        raise IdgenError("no prompt given: pass one for all pictures, or one each")
    for what, own, other in (
        ("latent channels", pipe.unet.config.in_channels, base.unet.config.in_channels),
        ("prediction type", pipe.scheduler.config.prediction_type, base.scheduler.config.prediction_type),
    ):
        if own != other:
            raise IdgenError(f"the base has another {what} ({other}) than the model ({own}): its words can not lead it")
    with torch.no_grad():
        words, plainly = (
            base.encode_prompt(list(texts), base.device, 1, do_classifier_free_guidance=False)[0]
            for texts in (prompts, [plain])
        )
    twin = copy.copy(pipe)
    twin.unet = LedUNet(pipe.unet, base.unet, words, plainly, scale)
    return twin


class LedUNet(nn.Module):
    """A UNet whose predictions another one's words are added to; in all else the first.

    Args:
        words, plain: (pictures or 1, length, dim) and (1, length, dim), prompt embeddings of `base`.
    """

    def __init__(self, unet: Any, base: Any, words: Tensor, plain: Tensor, scale: float) -> None:
        super().__init__()
        self.unet, self.base, self.scale = unet, base, scale
        self.words, self.plain = words, plain

    @property
    def config(self) -> Any:
        return self.unet.config

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def forward(self, sample: Tensor, timestep: Any, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        """As the first UNet's.

        Raises:
            IdgenError: prompts for another number of pictures.
        """
        predicted = self.unet(sample, timestep, *args, return_dict=False, **kwargs)[0]
        pictures = self._pictures(sample)
        shown = sample[-pictures:].to(self.base.dtype)
        texts = [one.expand(pictures, -1, -1) for one in (self.words, self.plain)]
        told, plain = self.base(torch.cat([shown, shown]), timestep, torch.cat(texts), return_dict=False)[0].chunk(2)
        led = self.scale * (told - plain).to(predicted)
        predicted = predicted + led.repeat(len(sample) // pictures, 1, 1, 1)
        return UNet2DConditionOutput(sample=predicted) if return_dict else (predicted,)

    def _pictures(self, sample: Tensor) -> int:
        """How many pictures the rows are of: guidance shows each latent twice, and the words need not be computed twice."""
        rows, prompts = len(sample), len(self.words)
        if prompts > 1:
            if rows not in (prompts, 2 * prompts):
                raise IdgenError(f"{prompts} prompts for {rows} rows: give one prompt for all pictures, or one each")
            return prompts
        twice = rows % 2 == 0 and torch.equal(sample[: rows // 2], sample[rows // 2 :])
        return rows // 2 if twice else rows
