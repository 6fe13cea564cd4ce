"""A loss of words for the trainings of the mini family: pictures that captions describe, read by a probe of this use alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from idgen.data.faces import FaceFolder
from idgen.errors import IdgenError
from idgen.evaluation.prompts import read_caption
from idgen.losses.attributes import unmet_words
from idgen.losses.identity import timestep_weights, weighed_loss
from idgen.models.probe import load_probe
from idgen.rewards.views import Decoder
from idgen.train.identity_settings import WordsLossConfig


class WordsLoss:
    """How far the pictures that predictions stand for are from what their captions say.

    Raises:
        IdgenError: no probe is named, or it is missing or damaged.
    """

    def __init__(
        self, config: WordsLossConfig, data: FaceFolder, scheduler: Any, decode: Decoder, device: torch.device
    ) -> None:
        if config.words_probe is None:
            raise IdgenError("words_weight needs a reader: name one of train/probe.py as words_probe")
        self.most, self.decode, self.scheduler = config.words_batch, decode, scheduler
        self.probe = load_probe(str(config.words_probe), device).requires_grad_(False)
        self.probe.to(memory_format=torch.channels_last)
        self.allowed = {
            name: admitted.to(device) for name, admitted in admitted_values(data, self.probe.classes).items()
        }

    def __call__(
        self, clean: Tensor, timesteps: Tensor, photos: Tensor, counts: Tensor, mirrored: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            clean: (batch, channels, h, w) latents that the predictions stand for.
            timesteps: (batch,) that they were made at.
            photos: (batch,) which of the data's photos they are of.
            counts: (batch,) bool, whether the model was told the caption.
            mirrored: (batch,) bool, whether the photo was mirrored; its words are not.
        """
        # A batch may go from little noise to much: those that are looked at shall be of all.
        order = torch.randperm(len(clean), device=clean.device)

        def losses(pictures: Tensor, rows: Tensor) -> Tensor:
            rows = order[rows]
            if mirrored is not None:
                pictures = torch.where(mirrored[rows].view(-1, 1, 1, 1), pictures.flip(3), pictures)
            logits, _ = self.probe(pictures.contiguous(memory_format=torch.channels_last))
            chosen = photos[rows].to(next(iter(self.allowed.values())).device)
            return unmet_words(logits, {name: admitted[chosen] for name, admitted in self.allowed.items()})

        weights = timestep_weights(self.scheduler.alphas_cumprod, timesteps) * counts
        return weighed_loss(losses, self.decode, clean[order], weights[order], self.most)


def admitted_values(data: FaceFolder, classes: dict[str, list[str]]) -> dict[str, Tensor]:
    """Attribute -> (photos, classes) bool: what the caption of each photo admits, everything where it is silent."""
    admitted = {name: torch.ones(len(data), len(names), dtype=torch.bool) for name, names in classes.items()}
    named = set()
    for index, row in enumerate(data.rows):
        prompt = read_caption(row["caption"], row["attributes"], row["person"], row["shot"])
        for name, values in prompt.asked.items():
            if name in classes:
                named.add(name)
                admitted[name][index] = torch.tensor([value in values for value in classes[name]])
    return {name: table for name, table in admitted.items() if name in named}
