"""References of a person -> visual tokens (PVA, Xu et al., WACV 2024; github.com/AtlantixJJ/PVA-CelebAHQ-IDI).

Learned queries join the references' face embeddings, a transformer mixes them, and what became of the queries are the tokens.
No order among references, any number of them. PVA takes RAW embeddings, of crops that it cuts without landmarks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idgen.models.published import State, depth, shape

FRAME = 256  # a portrait as CelebA-HQ frames it, at the size in which the crop is counted
ROWS, COLUMNS = slice(35, 223), slice(32, 220)
CROP = 112
FEEDFORWARD = 2048  # the authors', and torch's default


class TransformNetwork(nn.Sequential):
    """Raw face embeddings (batch, references, in_dim) -> visual tokens (batch, num_q_token, out_dim).

    The parameters bear the published names, those of `transform_network` in FPIP.bin.

    Args:
        in_dim: length of a face embedding.
        out_dim: width of the tokens, the text encoder's; a multiple of 8.
        num_q_token: how many tokens.
        num_layer: layers of the transformer.
        feedforward: width of each one's hidden layer.
        dropout: in training.
    """

    def __init__(
        self,
        in_dim: int = 512,
        out_dim: int = 1024,
        num_q_token: int = 10,
        num_layer: int = 4,
        feedforward: int = FEEDFORWARD,
        dropout: float = 0.1,
    ) -> None:
        layer = nn.TransformerEncoderLayer(out_dim, 8, feedforward, dropout=dropout, batch_first=True)
        # Nested tensors are for padded batches: every row here has the same number of references.
        encoder = nn.TransformerEncoder(layer, num_layer, nn.LayerNorm(out_dim), enable_nested_tensor=False)
        super().__init__(nn.Linear(in_dim, out_dim), encoder)
        self.pos_enc = nn.Parameter(torch.zeros(num_q_token, out_dim))
        self.q_tokens = nn.Parameter(torch.randn(num_q_token, in_dim))

    def forward(self, embeddings: Tensor) -> Tensor:
        queries = self.q_tokens.expand(len(embeddings), -1, -1)
        mixed = super().forward(torch.cat([embeddings, queries], dim=1))  # (batch, references + num_q_token, out_dim)
        return mixed[:, embeddings.shape[1] :] + self.pos_enc

    @staticmethod
    def sizes(state: State, what: str) -> dict[str, int]:
        """The arguments of the `TransformNetwork` that published weights belong to, where they are not the default.

        Raises:
            IdgenError: the weights are not such a network's; `what` names them.
        """
        out_dim, in_dim = shape(state, "0.weight", 2, what)
        width = shape(state, "1.layers.0.linear1.weight", 2, what)[0]
        return {
            "in_dim": in_dim,
            "out_dim": out_dim,
            "num_q_token": shape(state, "q_tokens", 2, what)[0],
            "num_layer": depth(state, "1.layers."),
            **({} if width == FEEDFORWARD else {"feedforward": width}),
        }


def face_crop(images: Tensor) -> Tensor:
    """What PVA's recogniser sees of a reference: portraits (batch, 3, height, width) -> (batch, 3, 112, 112).

    Values keep their range, RGB in [-1, 1] for the recogniser. The face is taken where CelebA-HQ has it; nothing is detected
    or turned. Differentiable. A portrait 256 wide is taken to be 256 high.
    """
    if images.shape[-1] != FRAME:
        images = F.interpolate(images, (FRAME, FRAME), mode="bilinear", align_corners=True)
    return F.adaptive_avg_pool2d(images[..., ROWS, COLUMNS], CROP)
