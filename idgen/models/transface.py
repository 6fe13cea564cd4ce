"""TransFace, the vision transformer whose patch tokens FACT reads a face from.

Dan et al., "TransFace: Calibrating Transformer Training for Face Recognition from a Data-Centric Perspective", ICCV 2023
(github.com/DanJun6737/TransFace; FACT's copy is modelscope/facechain `face_adapter/vit.py`). A face aligned to ArcFace's 112 px
template is cut into 12 x 12 patches of 9 px; the last 4 px at the right and below are not seen.

FACT takes the tokens after the last LayerNorm. What follows in the recogniser (a gate per patch and the layers that make the
512-d embedding, more than half of the file) plays no part there and is not built. No golden data covers these numbers; tests
compare with torch's own encoder layers.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idgen.checkpoint import load_strict, load_weights
from idgen.errors import IdgenError
from idgen.models.published import State, depth, shape

# The recogniser's head, and a token that hides patches in its training.
UNUSED = ("feature.", "senet.", "mask_token")


class TransFace(nn.Module):
    """Aligned faces (batch, 3, 112, 112), RGB in [-1, 1] -> patch tokens (batch, 144, dim), row by row.

    The parameters bear the published names. The defaults are TransFace-S.

    Args:
        dim: width of the tokens.
        depth: transformer blocks.
        heads: attention heads.
        patch: side of a patch in pixels.
        patches: how many there are, a square number.
        mlp_ratio: width of the feed-forward layers, in multiples of `dim`.
    """

    def __init__(
        self, dim: int = 512, depth: int = 12, heads: int = 8, patch: int = 9, patches: int = 144, mlp_ratio: int = 4
    ) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, patch, patch)})
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, patches, dim))
        self.blocks = nn.ModuleList(_Block(dim, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, faces: Tensor) -> Tensor:
        """Raises IdgenError when the picture does not have the patches that the network was made for."""
        tokens = self.patch_embed["proj"](faces).flatten(2).transpose(1, 2)  # (batch, patches, dim)
        if tokens.shape[1] != self.pos_embed.shape[1]:
            raise IdgenError(
                f"TransFace was made for {self.pos_embed.shape[1]} patches, a face of {list(faces.shape[-2:])} px has"
                f" {tokens.shape[1]}: align it to 112 x 112"
            )
        tokens = tokens + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    @staticmethod
    def sizes(state: State, what: str, heads: int = 8) -> dict[str, int]:
        """The arguments of the `TransFace` that published weights belong to.

        Args:
            heads: the one size that the weights do not tell; 8 in TransFace-S, -B and -L.
            what: names the weights in the error.

        Raises:
            IdgenError: the weights are not TransFace's.
        """
        dim, _, patch, _ = shape(state, "patch_embed.proj.weight", 4, what)
        return {
            "dim": dim,
            "depth": depth(state, "blocks."),
            "heads": heads,
            "patch": patch,
            "patches": shape(state, "pos_embed", 3, what)[1],
            "mlp_ratio": shape(state, "blocks.0.mlp.fc1.weight", 2, what)[0] // dim,
        }


def load_transface(path: str | os.PathLike[str]) -> TransFace:
    """The network in a published file (`ms1mv2_model_TransFace_S.pt`) or the same as safetensors, in eval mode.

    Raises:
        IdgenError: the file is missing or broken, or a tensor is missing, unknown or misshapen.
    """
    state = {key: value for key, value in load_weights(path).items() if not key.startswith(UNUSED)}
    network = TransFace(**TransFace.sizes(state, str(path)))
    load_strict(network, state, str(path))
    return network.eval()


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = _Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _MLP(dim, dim * mlp_ratio)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = self.qkv(tokens).unflatten(-1, (3, self.heads, -1))  # (batch, patches, 3, heads, dim of a head)
        out = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        return self.proj(out.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.relu6(self.fc1(tokens)))
