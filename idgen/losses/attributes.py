"""A loss of words: does the picture that a noise prediction stands for show what its caption says?

The identity loss's way (`idgen.losses.identity`) with a reader of attributes in the recogniser's place. What a caption leaves
open is left open here too: the reading of an attribute has only to be among the values that the caption's words describe, and
may be anything where it has no words for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def unmet_words(logits: Mapping[str, Tensor], allowed: Mapping[str, Tensor]) -> Tensor:
    """Minus the log-probability that each picture is read as its caption has it, (n,), summed over the attributes.

    Args:
        logits: attribute -> (n, classes), as `AttributeProbe` gives them.
        allowed: attribute -> (n, classes) bool, the classes that the caption admits: all of them where it says nothing. An
            attribute that is not in it is passed over.
    """
    total = torch.zeros(len(next(iter(logits.values()))), device=next(iter(logits.values())).device)
    for name, admitted in allowed.items():
        log = logits[name].float().log_softmax(-1).masked_fill(~admitted, -torch.inf)
        total = total - torch.where(admitted.all(-1), 0.0, log.logsumexp(-1))
    return total
