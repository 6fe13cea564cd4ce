"""InstantID behind the adapter contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from idgen.adapters.base import Adapter, AdapterConfig
from idgen.adapters.call import Conditioning, Entry
from idgen.adapters.embeddings import People, references
from idgen.adapters.injections.parts import DecoupledPart, Part
from idgen.adapters.injections.tokens import key_values
from idgen.adapters.instantid.config import InstantIDConfig
from idgen.adapters.instantid.convert import convert
from idgen.adapters.layers import AttentionLayer
from idgen.errors import IdgenError
from idgen.models.resampler import Resampler


@dataclass(frozen=True, repr=False, kw_only=True)
class FaceEntry(Entry):
    """An InstantID adapter's share of a call, with the tokens that IdentityNet reads too.

    Attributes:
        tokens: (rows, tokens, dim).
    """

    tokens: Tensor

    def take(self, rows: Tensor) -> FaceEntry:
        """The entry for some rows of the batch, in their order."""
        taken = super().take(rows)
        assert isinstance(taken, FaceEntry)
        return replace(taken, tokens=self.tokens[rows])


class InstantIDAdapter(Adapter):
    """InstantID's face tokens and the attention over them (Wang et al., arXiv 2401.07519; github.com/InstantID/InstantID).

    A resampler reads the RAW embeddings of a person's references, as one sequence, into 16 tokens. The UNet attends to them
    beside the text; `face_tokens(conditioning)` gives them to IdentityNet, so that a call makes them once.
    """

    method = "instantid"
    config_class = InstantIDConfig

    def __init__(self, config: InstantIDConfig, layers: Sequence[AttentionLayer]) -> None:
        super().__init__(config, layers)
        self.image_proj = Resampler(**config.projection)
        self.ip = key_values(layers, config.projection["output_dim"])

    def embed(self, identity: People) -> tuple[Tensor, ...]:
        """
        Args:
            identity: one person or a list of them, who may have different numbers of references.
        Returns:
            (people, most references, embedding) filled up with zeros, and (people,) how many references each has.
        """
        config: InstantIDConfig = self.config
        dim = config.projection["embedding_dim"]
        rows = references(identity, norm="raw", recogniser=config.recogniser, dim=dim)
        counts = torch.tensor([len(row) for row in rows])
        return pad_sequence(rows, batch_first=True).to(self.image_proj.latents), counts

    def null(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Nobody, a row for each person: as many embeddings of zeros as there are references, which the tokens depend on."""
        vectors, counts = inputs
        return torch.zeros_like(vectors), counts

    def project(self, *inputs: Tensor) -> Tensor:
        """(rows, tokens, dim)."""
        vectors, counts = inputs
        lengths = counts.tolist()
        if len(set(lengths)) == 1:
            return self.image_proj(vectors)
        # A filled-up sequence is another one to the resampler.
        alone = [self.image_proj(row[None, :length]) for row, length in zip(vectors, lengths, strict=True)]
        return torch.cat(alone)

    def parts(self, tokens: Tensor) -> dict[str, list[Part]]:
        """At the cross-attentions, attention over the tokens."""
        return {layer.name: [DecoupledPart(*self.ip[str(layer.index)](tokens))] for layer in self.layers if layer.cross}

    def entry(self, tokens: Any, rows: Tensor, **acts: Any) -> FaceEntry:
        """With the tokens, for IdentityNet: see `face_tokens`."""
        return FaceEntry(self, **acts, tokens=tokens[rows])

    @classmethod
    def convert(
        cls, tensors: Mapping[str, Tensor], layers: Sequence[AttentionLayer], **options: Any
    ) -> tuple[AdapterConfig, dict[str, Tensor]]:
        """See `idgen.adapters.instantid.convert`."""
        return convert(tensors, layers, **options)


def face_tokens(conditioning: Conditioning) -> Tensor:
    """(rows, people * tokens, dim): the tokens of all people of a call, those of one picture in one row.

    Raises:
        IdgenError: the conditioning was not made by an InstantID adapter.
    """
    tokens = [entry.tokens for entry in conditioning.entries if isinstance(entry, FaceEntry)]
    if not tokens:
        raise IdgenError("this conditioning holds no InstantID faces: make it with InstantIDAdapter.condition")
    return torch.cat(tokens, 1)
