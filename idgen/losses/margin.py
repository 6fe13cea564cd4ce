"""Margin losses that train recognisers: ArcFace, CosFace, SphereFace2.

ArcFace: Deng et al., arXiv 1801.07698, eq. 3. CosFace: Wang et al., arXiv 1801.09414, eq. 4. SphereFace2: Wen et al.,
arXiv 2108.01513, eq. 7-8 (C-like additive margin).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Margin = Literal["arcface", "cosface", "sphereface2"]


class MarginHead(nn.Module):
    """Class centres and a margin loss over cosines.

    Args:
        embedding_dim: length of the embeddings.
        people: number of classes.
        kind: which loss.
        scale: inverse temperature of the cosines.
        margin: radians for ArcFace, cosine units otherwise.
    """

    def __init__(
        self, embedding_dim: int, people: int, kind: Margin = "arcface", scale: float = 32.0, margin: float = 0.4
    ) -> None:
        super().__init__()
        self.kind, self.scale, self.margin = kind, scale, margin
        self.centres = nn.Parameter(torch.randn(people, embedding_dim) * 0.01)
        self.bias = nn.Parameter(
            torch.full((), -math.log(max(people - 1, 1) * 10.0)), requires_grad=kind == "sphereface2"
        )

    def forward(self, embeddings: Tensor, labels: Tensor, strength: float = 1.0) -> Tensor:
        """Loss of raw embeddings (batch, dim) with labels (batch,); `strength` in [0, 1] eases the margin in."""
        with torch.autocast(embeddings.device.type, enabled=False):
            cosine = F.linear(F.normalize(embeddings.float()), F.normalize(self.centres.float()))
            own = cosine.gather(1, labels[:, None])
            margin = self.margin * strength
            if self.kind == "sphereface2":
                return self._binary(cosine, own, labels, margin)
            if self.kind == "arcface":
                angle = torch.acos(own.clamp(-1 + 1e-6, 1 - 1e-6))
                # Past pi - margin cos(angle + margin) would rise again: continue it as a straight line.
                target = torch.where(
                    angle + margin < math.pi, torch.cos(angle + margin), own - math.sin(math.pi - margin) * margin
                )
            else:
                target = own - margin
            logits = cosine.scatter(1, labels[:, None], target) * self.scale
            return F.cross_entropy(logits, labels)

    def _binary(self, cosine: Tensor, own: Tensor, labels: Tensor, margin: float) -> Tensor:
        # Every class is one binary question; lambda = 0.7 balances one positive against all negatives.
        balance = 0.7
        spread = 2 * ((cosine + 1) / 2).pow(3) - 1  # the paper's g(z) with t = 3
        own_spread = 2 * ((own + 1) / 2).pow(3) - 1
        positive = F.softplus(-self.scale * (own_spread - margin) - self.bias)
        negative = F.softplus(self.scale * (spread + margin) + self.bias).scatter(1, labels[:, None], 0.0)
        return (balance * positive.squeeze(1) + (1 - balance) * negative.sum(1)).mean() / self.scale
