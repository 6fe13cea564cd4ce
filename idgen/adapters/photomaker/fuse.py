"""PhotoMaker v2: face embedding and picture features -> identity tokens -> rows of the prompt embeddings.

Facts from TencentARC/PhotoMaker `photomaker/model_v2.py`. The parameters bear the published names. Embeddings are RAW
(not normalised), made by buffalo_l's recogniser. The original fuses one prompt at a time; a batch of people works here too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idgen.adapters.injections.prompt_token import substitute
from idgen.errors import IdgenError
from idgen.models.published import State, part, shape
from idgen.models.resampler import FaceResampler, perceiver_sizes


class QFormerPerceiver(nn.Module):
    """Photos -> identity tokens: what the embedding says, plus what its tokens read from the picture.

    Raw embeddings (photos, id_embeddings_dim) and CLIP features (photos, patches, embedding_dim), the `last_hidden_state` of
    PhotoMaker's own CLIP tower -> (photos, num_tokens, cross_attention_dim).

    Args:
        cross_attention_dim: width of the prompt embeddings; 2048 for SDXL.
        id_embeddings_dim: length of a face embedding.
        num_tokens: tokens per photo.
        embedding_dim: width of the CLIP features.
        ratio: width of the hidden layer, in multiples of `id_embeddings_dim`.
        depth, dim_head: of the resampler, whose heads together are as wide as a token.
    """

    def __init__(
        self,
        *,
        cross_attention_dim: int,
        id_embeddings_dim: int = 512,
        num_tokens: int = 2,
        embedding_dim: int = 1024,
        ratio: int = 4,
        depth: int = 4,
        dim_head: int = 128,
    ) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.token_proj = nn.Sequential(
            nn.Linear(id_embeddings_dim, id_embeddings_dim * ratio),
            nn.GELU(),
            nn.Linear(id_embeddings_dim * ratio, cross_attention_dim * num_tokens),
        )
        self.token_norm = nn.LayerNorm(cross_attention_dim)
        self.perceiver_resampler = FaceResampler(
            dim=cross_attention_dim,
            depth=depth,
            dim_head=dim_head,
            heads=cross_attention_dim // dim_head,
            embedding_dim=embedding_dim,
            output_dim=cross_attention_dim,
            ff_mult=4,
        )

    def forward(self, embeddings: Tensor, clip_features: Tensor) -> Tensor:
        tokens = self.token_norm(self.token_proj(embeddings).unflatten(-1, (self.num_tokens, -1)))
        return tokens + self.perceiver_resampler(tokens, clip_features)

    @staticmethod
    def sizes(state: State, what: str, dim_head: int = 128) -> dict[str, int]:
        """The arguments of the `QFormerPerceiver` that published weights belong to.

        Args:
            dim_head: the one size that the weights do not tell.
            what: names the weights in the error.

        Raises:
            IdgenError: the weights are no such network's.
        """
        width = shape(state, "token_norm.weight", 1, what)[0]
        hidden, id_embeddings_dim = shape(state, "token_proj.0.weight", 2, what)
        resampler = perceiver_sizes(part(state, "perceiver_resampler."), what, dim_head)
        return {
            "cross_attention_dim": width,
            "id_embeddings_dim": id_embeddings_dim,
            "num_tokens": shape(state, "token_proj.2.weight", 2, what)[0] // width,
            "embedding_dim": resampler["embedding_dim"],
            "ratio": hidden // id_embeddings_dim,
            "depth": resampler["depth"],
            "dim_head": dim_head,
        }


class FuseModule(nn.Module):
    """A row of the prompt and an identity token, both (..., embed_dim) -> the row that takes the first one's place."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.mlp1 = _MLP(2 * embed_dim, embed_dim)
        self.mlp2 = _MLP(embed_dim, embed_dim)
        self.layer_norm = nn.LayerNorm(embed_dim)

    def forward(self, rows: Tensor, tokens: Tensor) -> Tensor:
        rows = rows + self.mlp1(torch.cat([rows, tokens], dim=-1))
        return self.layer_norm(rows + self.mlp2(rows))


class IdentityFuser(nn.Module):
    """PhotoMaker's identity encoder behind its CLIP tower: people and a prompt -> prompt embeddings that show the people.

    Args:
        sizes: as `QFormerPerceiver`'s.
    """

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.qformer_perceiver = QFormerPerceiver(**sizes)
        self.fuse_module = FuseModule(sizes["cross_attention_dim"])

    def tokens(self, embeddings: Tensor, clip_features: Tensor) -> Tensor:
        """People's photos -> identity tokens (batch, photos * num_tokens, cross_attention_dim), photo after photo.

        Args:
            embeddings: (batch, photos, id_embeddings_dim), raw.
            clip_features: (batch, photos, patches, embedding_dim).
        """
        tokens = self.qformer_perceiver(embeddings.flatten(0, 1), clip_features.flatten(0, 1))
        return tokens.unflatten(0, embeddings.shape[:2]).flatten(1, 2)

    def forward(self, prompt_embeds: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        """Fuse.

        Args:
            prompt_embeds: (batch, length, cross_attention_dim), of the prompt without the trigger; a batch of 1 serves everybody.
            mask: (1 or batch, length) bool, True at the rows of the class word: `num_tokens` per photo.
            tokens: (batch, photos * num_tokens, cross_attention_dim) from `tokens`.
        Returns:
            (batch, length, cross_attention_dim); rows outside the mask are bit for bit what they were.
        Raises:
            IdgenError: the mask has not as many rows as there are tokens.
        """
        batch, count, dim = tokens.shape
        mask = mask.bool().expand(batch, -1)
        found = mask.sum(1).tolist()
        if any(rows != count for rows in found):
            raise IdgenError(
                f"the class word has {max(found)} rows in the prompt, but the photos give {count} identity tokens:"
                f" repeat its token {self.qformer_perceiver.num_tokens} times per photo"
            )
        prompt_embeds = prompt_embeds.expand(batch, -1, -1)
        rows = prompt_embeds[mask.to(prompt_embeds.device)].reshape(batch, count, dim)
        return substitute(prompt_embeds, mask, self.fuse_module(rows, tokens.to(rows)))


class _MLP(nn.Module):
    """LayerNorm and two linear layers, under PhotoMaker's names."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, outputs)
        self.fc2 = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.layernorm(x))))
