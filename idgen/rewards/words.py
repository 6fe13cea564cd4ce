"""The words reward: does the picture show what its prompt asks for, as a reader of faces sees it?

For the mini family, whose prompts are captions of rendered faces (`idgen.synthetic.captions`). The reader is the family's
(`idgen.models.recogniser_reader`) or an attribute probe that never measures: the family's own probe does that. With published
models PickScore or ImageReward (`idgen.rewards.looks`) take its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from idgen.evaluation.prompts import asked_for
from idgen.models.probe import AttributeReader
from idgen.rewards.scores import Scored
from idgen.rewards.views import Asked, View


class WordsReward:
    """Log-likelihood of the values that each prompt's words describe, <= 0, summed over the attributes that it names.
    Prompts that name nothing which the reader knows are not counted.

    Args:
        reader: reads the pictures; gradients pass.
    """

    needs_whole = True

    def __init__(self, reader: AttributeReader) -> None:
        self.reader = reader

    def __call__(self, view: View, asked: Asked) -> Scored:
        """
        Raises:
            IdgenError: not one prompt a picture.
        """
        prompts = asked.prompt_of_each(len(view.pictures))
        named = [_known(asked_for(prompt), self.reader.classes) for prompt in prompts]
        logits, _ = self.reader(view.pictures)
        read = {name: one.float().log_softmax(-1) for name, one in logits.items()}
        zero = view.pictures.flatten(1)[:, 0].float() * 0  # has a gradient, none at all, where nothing is named
        values = [
            zero[row] + sum((read[name][row, places].logsumexp(0) for name, places in each.items()), torch.tensor(0.0))
            for row, each in enumerate(named)
        ]
        return Scored(torch.stack(values), torch.tensor([bool(each) for each in named], device=zero.device))


def _known(asked: Mapping[str, Iterable[str]], classes: Mapping[str, list[str]]) -> dict[str, list[int]]:
    """The places of the asked values among a reader's, for the attributes and values that it knows."""
    places = {
        name: [classes[name].index(value) for value in sorted(values) if value in classes[name]]
        for name, values in asked.items()
        if name in classes
    }
    return {name: each for name, each in places.items() if each}
