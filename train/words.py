"""A loss of words for the trainings of the mini family: pictures that captions describe, read by a probe of this use alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from idgen.data.faces import FaceFolder
from idgen.errors import IdgenError
from idgen.evaluation.prompts import read_caption
from idgen.losses.attributes import misread_words
from idgen.losses.identity import timestep_weights, weighed_loss
from idgen.models.probe import AttributeReader
from idgen.models.recogniser_reader import load_reader
from idgen.rewards.views import Decoder
from idgen.train.loss_settings import WordsLossConfig
from idgen.train.picture_coding import load_tiny


class WordsLoss:
    """How far the pictures that predictions stand for are from what their captions say of the photos.

    Args:
        decode: the model's own decoder, for where `words_tiny` names no smaller one.

    Raises:
        IdgenError: no probe is named, or it is missing or damaged.
    """

    def __init__(
        self, config: WordsLossConfig, data: FaceFolder, scheduler: Any, decode: Decoder, device: torch.device
    ) -> None:
        if config.words_probe is None:
            raise IdgenError("words_weight needs a reader: name one of train/probe.py as words_probe")
        self.most, self.scheduler = config.words_batch, scheduler
        self.decode = load_tiny(config.words_tiny, device) if config.words_tiny else decode
        probe: Any = load_reader(config.words_probe, device)
        self.probe: AttributeReader = probe.to(memory_format=torch.channels_last)
        self.said = {name: said.to(device) for name, said in named_attributes(data, self.probe.classes).items()}

    def __call__(
        self,
        clean: Tensor,
        truth: Tensor,
        timesteps: Tensor,
        photos: Tensor,
        counts: Tensor,
        mirrored: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            clean: (batch, channels, h, w) latents that the predictions stand for.
            truth: those of the photos.
            timesteps: (batch,) that the predictions were made at.
            photos: (batch,) which of the data's photos they are of.
            counts: (batch,) bool, whether the model was told the caption.
            mirrored: (batch,) bool, whether the photo was mirrored, which the reader undoes.
        """
        # A batch may go from little noise to much: those that are looked at shall be of all.
        order = torch.randperm(len(clean), device=clean.device)

        def read(pictures: Tensor, rows: Tensor) -> dict[str, Tensor]:
            if mirrored is not None:
                pictures = torch.where(mirrored[rows].view(-1, 1, 1, 1), pictures.flip(3), pictures)
            return self.probe(pictures.contiguous(memory_format=torch.channels_last))[0]

        def losses(pictures: Tensor, rows: Tensor) -> Tensor:
            rows = order[rows]
            with torch.no_grad():
                wanted = read(self.decode(truth[rows]).float(), rows)
            chosen = photos.to(rows.device)[rows]
            return misread_words(read(pictures, rows), wanted, {name: said[chosen] for name, said in self.said.items()})

        weights = timestep_weights(self.scheduler.alphas_cumprod, timesteps) * counts
        return weighed_loss(losses, self.decode, clean[order], weights[order], self.most)


def named_attributes(data: FaceFolder, attributes: Iterable[str]) -> dict[str, Tensor]:
    """Attribute -> (photos,) bool: whether the caption of each photo has words for it; no attribute that none names."""
    said = {name: torch.zeros(len(data), dtype=torch.bool) for name in attributes}
    described = zip(*map(data.column, ("caption", "attributes", "person", "shot")), strict=True)
    for index, one in enumerate(described):
        for name in read_caption(*one).asked:
            if name in said:
                said[name][index] = True
    return {name: named for name, named in said.items() if named.any()}
