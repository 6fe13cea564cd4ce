"""A loss of words: is the picture that a noise prediction stands for read as the picture of its caption is?

The identity loss's way (`idgen.losses.identity`) with a reader of attributes in the recogniser's place. What is wanted is the
reading of the autoencoder's copy of the photo, doubts and all: against the caption's words alone a model draws caricatures, of
which the reader is surer than of any photo. What a caption leaves open is left open here too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def misread_words(read: Mapping[str, Tensor], wanted: Mapping[str, Tensor], said: Mapping[str, Tensor]) -> Tensor:
    """Kullback-Leibler divergence of readings, (n,) >= 0, summed over the attributes that a caption names.

    Args:
        read: attribute -> logits (n, classes) of the pictures, as `AttributeProbe` gives them.
        wanted: the same of the photos; no gradient passes.
        said: attribute -> (n,) bool, whether the caption has words for it. An attribute that is not in it is passed over.
    """
    total = torch.zeros(len(next(iter(read.values()))), device=next(iter(read.values())).device)
    for name, named in said.items():
        right = wanted[name].detach().float().log_softmax(-1)
        difference = F.kl_div(read[name].float().log_softmax(-1), right, reduction="none", log_target=True).sum(-1)
        total = total + difference * named
    return total
