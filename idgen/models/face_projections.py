"""Projections of IP-Adapter-FaceID: one face embedding -> a few tokens for cross-attention.

Facts from tencent-ailab/IP-Adapter `ip_adapter/ip_adapter_faceid.py` (MLPProjModel, ProjPlusModel). The parameters bear the
published names, so `image_proj` of a published file loads as it is. diffusers has both, but under names of its own, and its
Plus projection keeps the picture's features and the shortcut as attributes of the module, where two calls would mix them.
"""

from __future__ import annotations

from torch import Tensor, nn

from idgen.models.published import State, part, shape
from idgen.models.resampler import FaceResampler, perceiver_sizes


class _Projection(nn.Module):
    """Embedding -> normalised tokens, by a network of two layers."""

    def __init__(self, cross_attention_dim: int, embedding_dim: int, num_tokens: int, ratio: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.proj = nn.Sequential(
            nn.Linear(embedding_dim, embedding_dim * ratio),
            nn.GELU(),
            nn.Linear(embedding_dim * ratio, cross_attention_dim * num_tokens),
        )
        self.norm = nn.LayerNorm(cross_attention_dim)

    def tokens(self, embeddings: Tensor) -> Tensor:
        """(..., embedding_dim) -> (..., num_tokens, cross_attention_dim)."""
        return self.norm(self.proj(embeddings).unflatten(-1, (self.num_tokens, -1)))


class FaceIDProjection(_Projection):
    """IP-Adapter-FaceID, and with 16 tokens FaceID-Portrait: face embeddings -> tokens.

    Unit embeddings (batch, embedding_dim) -> (batch, num_tokens, cross_attention_dim), or several references of each person
    (batch, references, embedding_dim) -> (batch, references * num_tokens, cross_attention_dim). Zeros give the tokens of
    nobody, for classifier-free guidance.

    Args:
        cross_attention_dim: width of the tokens, the UNet's cross-attention dimension.
        embedding_dim: length of a face embedding.
        num_tokens: tokens per reference: 4, Portrait 16.
        ratio: width of the hidden layer, in multiples of `embedding_dim`.
    """

    def __init__(
        self, *, cross_attention_dim: int, embedding_dim: int = 512, num_tokens: int = 4, ratio: int = 2
    ) -> None:
        super().__init__(cross_attention_dim, embedding_dim, num_tokens, ratio)

    def forward(self, embeddings: Tensor) -> Tensor:
        tokens = self.tokens(embeddings)  # (batch, [references,] num_tokens, dim)
        return tokens.flatten(1, -2)

    @staticmethod
    def sizes(state: State, what: str) -> dict[str, int]:
        """The arguments of the `FaceIDProjection` that published weights belong to.

        Raises:
            IdgenError: the weights are not such a projection's; `what` names them.
        """
        cross_attention_dim = shape(state, "norm.weight", 1, what)[0]
        hidden, embedding_dim = shape(state, "proj.0.weight", 2, what)
        return {
            "cross_attention_dim": cross_attention_dim,
            "embedding_dim": embedding_dim,
            "num_tokens": shape(state, "proj.2.weight", 2, what)[0] // cross_attention_dim,
            "ratio": hidden // embedding_dim,
        }


class FaceIDPlusProjection(_Projection):
    """IP-Adapter-FaceID-Plus and Plus-v2: the embedding's tokens read a picture of the face.

    Unit embeddings (batch, embedding_dim) and features of CLIP (batch, patches, clip_dim) -> tokens
    (batch, num_tokens, cross_attention_dim). The features are `hidden_states[-2]` of the picture's CLIP, with the class row;
    nobody, for guidance, is an embedding of zeros with the features of a picture of zeros.

    Args:
        clip_dim: width of the features; 1280 for CLIP ViT-H.
        depth, dim_head: of the resampler, whose heads together are as wide as a token.
        others: as `FaceIDProjection`.
    """

    def __init__(
        self,
        *,
        cross_attention_dim: int,
        clip_dim: int,
        embedding_dim: int = 512,
        num_tokens: int = 4,
        ratio: int = 2,
        depth: int = 4,
        dim_head: int = 64,
    ) -> None:
        super().__init__(cross_attention_dim, embedding_dim, num_tokens, ratio)
        self.perceiver_resampler = FaceResampler(
            dim=cross_attention_dim,
            depth=depth,
            dim_head=dim_head,
            heads=cross_attention_dim // dim_head,
            embedding_dim=clip_dim,
            output_dim=cross_attention_dim,
            ff_mult=4,
        )

    def forward(self, embeddings: Tensor, clip_features: Tensor, *, shortcut: bool, s_scale: float = 1.0) -> Tensor:
        """Project.

        Args:
            shortcut: True for Plus-v2, False for Plus. The weights do not say which they are, and the wrong one costs
                the likeness, so there is no default.
            s_scale: with the shortcut, how much of what the picture shows is added to the embedding's own tokens.
        """
        tokens = self.tokens(embeddings)
        seen = self.perceiver_resampler(tokens, clip_features)
        return tokens + s_scale * seen if shortcut else seen

    @staticmethod
    def sizes(state: State, what: str, dim_head: int = 64) -> dict[str, int]:
        """The arguments of the `FaceIDPlusProjection` that published weights belong to; see `Resampler.sizes`."""
        resampler = perceiver_sizes(part(state, "perceiver_resampler."), what, dim_head)
        return FaceIDProjection.sizes(state, what) | {
            "clip_dim": resampler["embedding_dim"],
            "depth": resampler["depth"],
            "dim_head": dim_head,
        }
