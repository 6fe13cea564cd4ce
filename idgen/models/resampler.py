"""Perceiver resamplers: a few latent tokens that read a sequence of any length.

One network behind many adapters: InstantID's and FACT's face projection, IP-Adapter-Plus, and (its latents then come from
the face instead of being learned) the second half of IP-Adapter-FaceID-Plus and PhotoMaker v2. After Jaegle et al.,
"Perceiver", 2021, in the form that open_flamingo gave it and tencent-ailab/IP-Adapter `ip_adapter/resampler.py` took over.

The parameters bear the published names, so a published part loads as it is. diffusers has the same computation as
IPAdapterPlusImageProjection, but under names of its own, with keys and values in two matrices: each file would have to be
renamed and cut first, and cut back to save it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idgen.errors import IdgenError
from idgen.models.published import State, depth, shape


class _Perceiver(nn.Module):
    """Features in, layers of attention by the latents, latents out: what all resamplers share."""

    def __init__(
        self, *, dim: int, depth: int, dim_head: int, heads: int, embedding_dim: int, output_dim: int, ff_mult: int
    ) -> None:
        super().__init__()
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.proj_out = nn.Linear(dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)
        self.layers = nn.ModuleList(PerceiverLayer(dim, dim_head, heads, ff_mult) for _ in range(depth))

    def attend(self, latents: Tensor, features: Tensor) -> Tensor:
        """Latents (batch, tokens, dim), features (batch, length, embedding_dim) -> (batch, tokens, output_dim)."""
        features = self.proj_in(features)
        for layer in self.layers:
            latents = layer(features, latents)
        return self.norm_out(self.proj_out(latents))


class Resampler(_Perceiver):
    """Features (batch, length, embedding_dim) -> tokens (batch, num_queries, output_dim), by learned latents.

    The length is free: InstantID puts a person's references one after another into one sequence. Input of zeros gives the
    tokens of nobody, which classifier-free guidance compares with; they are not zeros.

    Args:
        dim: width of the latents.
        heads: attention heads; `heads * dim_head` may differ from `dim`.
        embedding_dim: width of the features.
        output_dim: width of the tokens, the UNet's cross-attention dimension.
        depth: layers.
        dim_head: width of a head.
        num_queries: how many tokens come out.
        ff_mult: width of the feed-forward layers, in multiples of `dim`.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        embedding_dim: int,
        output_dim: int,
        depth: int = 4,
        dim_head: int = 64,
        num_queries: int = 16,
        ff_mult: int = 4,
    ) -> None:
        super().__init__(
            dim=dim,
            depth=depth,
            dim_head=dim_head,
            heads=heads,
            embedding_dim=embedding_dim,
            output_dim=output_dim,
            ff_mult=ff_mult,
        )
        self.latents = nn.Parameter(torch.randn(1, num_queries, dim) / dim**0.5)

    def forward(self, features: Tensor) -> Tensor:
        return self.attend(self.latents.expand(len(features), -1, -1), features)

    @staticmethod
    def sizes(state: State, what: str, dim_head: int = 64) -> dict[str, int]:
        """The arguments of the `Resampler` that published weights belong to.

        Args:
            dim_head: the one size that the weights do not tell; 64 in every published file.
            what: names the weights in the error.

        Raises:
            IdgenError: the weights are no resampler's.
        """
        return perceiver_sizes(state, what, dim_head) | {"num_queries": shape(state, "latents", 3, what)[1]}


class FaceResampler(_Perceiver):
    """The same for latents that the face itself gives: `forward(latents, features)`.

    Latents (batch, tokens, dim), features (batch, length, embedding_dim) -> tokens (batch, tokens, output_dim).
    Arguments as `Resampler`'s.
    """

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        return self.attend(latents, features)


class PerceiverLayer(nn.ModuleList):
    """Attention, then a feed-forward layer, each added to the latents; the published names are `0.*` and `1.{0,1,3}.*`.

    Features (batch, length, dim), latents (batch, tokens, dim) -> latents (batch, tokens, dim).
    """

    def __init__(self, dim: int, dim_head: int, heads: int, ff_mult: int) -> None:
        wide = dim * ff_mult
        feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, wide, bias=False), nn.GELU(), nn.Linear(wide, dim, bias=False)
        )
        super().__init__([PerceiverAttention(dim, dim_head, heads), feed_forward])

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        attention, feed_forward = self
        latents = latents + attention(features, latents)
        return latents + feed_forward(latents)


class PerceiverAttention(nn.Module):
    """Latents (batch, tokens, dim) attend to features (batch, length, dim) and to themselves -> (batch, tokens, dim)."""

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim_head * heads, bias=False)
        self.to_kv = nn.Linear(dim, dim_head * heads * 2, bias=False)
        self.to_out = nn.Linear(dim_head * heads, dim, bias=False)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        latents = self.norm2(latents)
        seen = torch.cat([self.norm1(features), latents], dim=1)  # (batch, length + tokens, dim)
        query = self._split(self.to_q(latents))
        key, value = (self._split(half) for half in self.to_kv(seen).chunk(2, dim=-1))
        out = F.scaled_dot_product_attention(query, key, value)
        return self.to_out(out.transpose(1, 2).flatten(2))

    def _split(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, rows, dim_head)


def perceiver_sizes(state: State, what: str, dim_head: int) -> dict[str, int]:
    """The arguments of the `FaceResampler` that published weights belong to; see `Resampler.sizes`."""
    dim, embedding_dim = shape(state, "proj_in.weight", 2, what)
    return {
        "dim": dim,
        "depth": depth(state, "layers."),
        "embedding_dim": embedding_dim,
        "output_dim": shape(state, "proj_out.weight", 2, what)[0],
    } | perceiver_layer_sizes(state, what, dim_head)


def perceiver_layer_sizes(state: State, what: str, dim_head: int) -> dict[str, int]:
    """`dim_head`, `heads` and `ff_mult` of the perceiver layers `layers.*`; see `Resampler.sizes`."""
    inner, dim = shape(state, "layers.0.0.to_q.weight", 2, what)
    if inner % dim_head:
        raise IdgenError(f"{what}: attention {inner} wide is not made of heads {dim_head} wide")
    return {
        "dim_head": dim_head,
        "heads": inner // dim_head,
        "ff_mult": shape(state, "layers.0.1.1.weight", 2, what)[0] // dim,
    }
