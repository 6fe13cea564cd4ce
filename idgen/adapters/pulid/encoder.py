"""PuLID's identity encoders: a face embedding and EVA-CLIP's view of the face -> identity tokens.

Both read an identity vector, the RAW embedding of antelopev2's recogniser followed by the unit output of EVA02-CLIP-L-336
(512 + 768 values), and the hidden states of five levels of that CLIP tower, class row first, for a face that is grey on white.
Nobody, for guidance, is zeros in place of all of these, of one photo.

The parameters bear the published names, those of `id_adapter.*` in pulid_v1.bin and pulid_v1.1.safetensors.
What is verified: the perceiver layers of v1.1 are `resampler.PerceiverLayer`, which golden data of other methods covers. For
the rest no golden data was at hand: it follows `pulid/encoders.py` and `pulid/encoders_transformer.py`, equalled a transcript
of them on random weights once, to 2e-6, and is held by tests in its structure (shapes, what depends on what). The published
files themselves were never loaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from idgen.checkpoint import load_strict, load_weights
from idgen.models.published import State, depth, part, shape
from idgen.models.resampler import PerceiverLayer, perceiver_layer_sizes

PREFIX = "id_adapter."
LEVELS = 5
WIDEST = 1024  # of the hidden layers behind v1's identity vector


class IDEncoder(nn.Module):
    """PuLID v1: one photo -> num_token + 5 tokens, the first from the identity vector, then one per level.

    Args:
        width: length of the identity vector.
        context_dim: width of the tokens, the UNet's cross-attention dimension.
        num_token: tokens from the identity vector.
        vit_dim: width of the CLIP features.
    """

    def __init__(self, *, width: int = 1280, context_dim: int = 2048, num_token: int = 5, vit_dim: int = 1024) -> None:
        super().__init__()
        self.num_token = num_token
        total = context_dim * num_token
        self.body = _mlp(width, min(total // 4, WIDEST), min(total // 2, WIDEST), total)
        for level in range(LEVELS):
            self.add_module(f"mapping_{level}", _mlp(vit_dim, vit_dim, vit_dim, context_dim))
            self.add_module(f"mapping_patch_{level}", _mlp(vit_dim, vit_dim, vit_dim, context_dim))

    def forward(self, identity: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """(batch, width), five of (batch, 1 + patches, vit_dim) -> (batch, num_token + 5, context_dim)."""
        tokens = [self.body(identity).unflatten(-1, (self.num_token, -1))]
        for level, features in enumerate(levels):
            whole, patches = features[:, :1], features[:, 1:]
            seen = self.get_submodule(f"mapping_patch_{level}")(patches).mean(1, keepdim=True)
            tokens.append(self.get_submodule(f"mapping_{level}")(whole) + seen)
        return torch.cat(tokens, dim=1)

    @staticmethod
    def sizes(state: State, what: str) -> dict[str, int]:
        """The arguments of the `IDEncoder` that published weights belong to.

        Raises:
            IdgenError: the weights are no such encoder's; `what` names them.
        """
        context_dim, vit_dim = shape(state, "mapping_0.6.weight", 2, what)
        return {
            "width": shape(state, "body.0.weight", 2, what)[1],
            "context_dim": context_dim,
            "num_token": shape(state, "body.6.weight", 2, what)[0] // context_dim,
            "vit_dim": vit_dim,
        }


class IDFormer(nn.Module):
    """PuLID v1.1: any number of photos of a person -> num_queries tokens.

    Learned queries and the tokens of the identity vectors run through perceiver layers, two per level, which read that
    level's features and the identity tokens as they were at first.

    Args:
        width: length of the identity vector.
        dim: width inside.
        depth: perceiver layers, a multiple of five.
        dim_head: width of an attention head.
        heads: attention heads.
        num_id_token: tokens from an identity vector.
        num_queries: tokens that come out.
        output_dim: width of the tokens, the UNet's cross-attention dimension.
        ff_mult: width of the feed-forward layers, in multiples of `dim`.
        vit_dim: width of the CLIP features.
    """

    def __init__(
        self,
        *,
        width: int = 1280,
        dim: int = 1024,
        depth: int = 10,
        dim_head: int = 64,
        heads: int = 16,
        num_id_token: int = 5,
        num_queries: int = 32,
        output_dim: int = 2048,
        ff_mult: int = 4,
        vit_dim: int = 1024,
    ) -> None:
        super().__init__()
        self.num_id_token = num_id_token
        self.num_queries = num_queries
        self.latents = nn.Parameter(torch.randn(1, num_queries, dim) * dim**-0.5)
        self.proj_out = nn.Parameter(torch.randn(dim, output_dim) * dim**-0.5)
        self.layers = nn.ModuleList(PerceiverLayer(dim, dim_head, heads, ff_mult) for _ in range(depth))
        for level in range(LEVELS):
            self.add_module(f"mapping_{level}", _mlp(vit_dim, vit_dim, vit_dim, dim))
        self.id_embedding_mapping = _mlp(width, vit_dim, vit_dim, dim * num_id_token)

    def forward(self, identity: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """Encode.

        Args:
            identity: (batch, width), or (batch, photos, width).
            levels: five of (batch, photos * (1 + patches), vit_dim), photo after photo.
        Returns:
            (batch, num_queries, output_dim).
        """
        batch = len(identity)
        own = self.id_embedding_mapping(identity).reshape(batch, -1, self.latents.shape[-1])
        latents = torch.cat([self.latents.expand(batch, -1, -1), own], dim=1)
        per_level = len(self.layers) // LEVELS
        for level, features in enumerate(levels):
            seen = torch.cat([own, self.get_submodule(f"mapping_{level}")(features)], dim=1)
            for layer in self.layers[level * per_level : (level + 1) * per_level]:
                latents = layer(seen, latents)
        return latents[:, : self.num_queries] @ self.proj_out

    @staticmethod
    def sizes(state: State, what: str, dim_head: int = 64) -> dict[str, int]:
        """The arguments of the `IDFormer` that published weights belong to.

        Args:
            dim_head: the one size that the weights do not tell.
            what: names the weights in the error.

        Raises:
            IdgenError: the weights are no such encoder's.
        """
        dim, output_dim = shape(state, "proj_out", 2, what)
        return {
            "width": shape(state, "id_embedding_mapping.0.weight", 2, what)[1],
            "dim": dim,
            "depth": depth(state, "layers."),
            "num_id_token": shape(state, "id_embedding_mapping.6.weight", 2, what)[0] // dim,
            "num_queries": shape(state, "latents", 3, what)[1],
            "output_dim": output_dim,
            "vit_dim": shape(state, "mapping_0.0.weight", 2, what)[1],
        } | perceiver_layer_sizes(state, what, dim_head)


def load_id_encoder(path: str | os.PathLike[str]) -> IDEncoder | IDFormer:
    """The encoder in pulid_v1.bin or pulid_v1.1.safetensors, told apart by their tensors, in eval mode.

    Raises:
        IdgenError: the file is missing or broken, or a tensor of the encoder is missing, unknown or misshapen.
    """
    state = part(load_weights(path), PREFIX)
    encoder: IDEncoder | IDFormer
    if "latents" in state:  # only v1.1 has learned queries
        encoder = IDFormer(**IDFormer.sizes(state, str(path)))
    else:
        encoder = IDEncoder(**IDEncoder.sizes(state, str(path)))
    load_strict(encoder, state, str(path))
    return encoder.eval()


def _mlp(inputs: int, first: int, second: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, first),
        nn.LayerNorm(first),
        nn.LeakyReLU(),
        nn.Linear(first, second),
        nn.LayerNorm(second),
        nn.LeakyReLU(),
        nn.Linear(second, outputs),
    )
