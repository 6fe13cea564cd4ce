"""FaceChain-FACT behind the adapter contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.attention import GatedSelfAttentionDense
from torch import Tensor, nn

from idgen.adapters.base import Adapter, AdapterConfig
from idgen.adapters.call import Conditioning
from idgen.adapters.embeddings import MAX_REFERENCES
from idgen.adapters.fact.config import FACTConfig
from idgen.adapters.fact.convert import convert
from idgen.adapters.injections.parts import GatedPart, Part
from idgen.adapters.layers import AttentionLayer
from idgen.errors import IdgenError
from idgen.models.resampler import Resampler


class FACTAdapter(Adapter):
    """FaceChain-FACT (Yu et al., arXiv 2410.12312; github.com/modelscope/facechain), for Stable Diffusion 1.5.

    `condition(features)` with the patch features of TransFace (`idgen.models.transface`), taken ahead of its pooling. A
    resampler reads each reference into 16 tokens; between a block's own two attentions the picture attends to itself and to
    the tokens of all references, through a gate. That gate is GLIGEN's, and diffusers' module for it does the work.

    What the authors' application does beside it is left out: it swaps the reference's face into the finished picture, so
    likeness measured there is not the adapter's.
    """

    method = "fact"
    config_class = FACTConfig

    def __init__(self, config: FACTConfig, layers: Sequence[AttentionLayer]) -> None:
        super().__init__(config, layers)
        sizes = dict(config.resampler)
        self.resampler = Resampler(**sizes)
        self.gates: Any = nn.ModuleDict(
            {str(layer.index): Gate(layer, sizes["output_dim"], config.norm) for layer in layers if layer.cross}
        )

    def embed(self, features: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """
        Args:
            features: (people, references, patches, 512); of one person also (references, patches, 512) or
                (patches, 512); or a list of those of one person. All people of a batch have as many references.
        """
        rows = _stacked(features)
        dim = self.resampler.proj_in.in_features
        if rows.shape[-1] != dim or 0 in rows.shape:
            raise IdgenError(
                f"patch features have the shape {list(rows.shape)}, expected (people, references, patches, {dim})"
            )
        if rows.shape[1] > MAX_REFERENCES:
            raise IdgenError(f"{rows.shape[1]} references given, at most {MAX_REFERENCES} make sense")
        if not rows.isfinite().all():
            raise IdgenError("the patch features hold NaN or infinity: make them again from the photos")
        return (rows.to(self.resampler.latents),)

    def project(self, *inputs: Tensor) -> Tensor:
        """(rows, references * 16, dim). Features of zeros, for guidance, give tokens that are not zeros."""
        features = inputs[0]
        tokens = self.resampler(features.flatten(0, 1))
        return tokens.unflatten(0, features.shape[:2]).flatten(1, 2)

    def parts(self, tokens: Tensor) -> dict[str, list[Part]]:
        """A gate in every transformer block, by the block's name."""
        made: dict[str, list[Part]] = {}
        for layer in self.layers:
            if layer.cross:
                gate: Gate = self.gates[str(layer.index)]
                made[layer.block] = [GatedPart.of(gate.fuser, tokens, gate.norm)]
        return made

    def condition(
        self, identity: Any, *, images: int = 1, guidance: bool = True, cfg_face: bool = True, **options: Any
    ) -> Conditioning:
        """As `Adapter.condition`. The authors' application uses `scale=0.5`.

        Args:
            identity: see `embed`.
            cfg_face: whether the rows without text also go without the person (their tokens are nobody's), so that
                guidance strengthens the likeness too; False gives both halves the person, and guidance acts on the text.
        """
        if cfg_face or not guidance:
            return super().condition(identity, images=images, guidance=guidance, **options)
        person = super().condition(identity, images=images, guidance=False, **options)
        both = torch.arange(person.rows).repeat(2)
        return Conditioning(tuple(entry.take(both) for entry in person.entries), 2 * person.rows, True)

    @classmethod
    def convert(
        cls, tensors: Mapping[str, Tensor], layers: Sequence[AttentionLayer], **options: Any
    ) -> tuple[AdapterConfig, dict[str, Tensor]]:
        """See `idgen.adapters.fact.convert`."""
        return convert(tensors, layers, **options)


class Gate(nn.Module):
    """One transformer block's gated self-attention; a fresh one is closed.

    Attributes:
        fuser: diffusers' module.
        norm: takes the place of the block's norm ahead of the text attention, or None.
    """

    def __init__(self, layer: AttentionLayer, dim: int, norm: bool) -> None:
        super().__init__()
        self.fuser = GatedSelfAttentionDense(layer.hidden, dim, layer.heads, layer.hidden // layer.heads)
        self.norm = nn.LayerNorm(layer.hidden) if norm else None


def _stacked(features: Tensor | Sequence[Tensor]) -> Tensor:
    """(people, references, patches, dim)."""
    if isinstance(features, (list, tuple)):
        if not features:
            raise IdgenError("no identity given: pass TransFace's patch features of at least one photo")
        people = [_of_one(person) for person in features]
        shapes = sorted({tuple(person.shape) for person in people})
        if len(shapes) > 1:
            raise IdgenError(
                f"people of one batch need the same number of references and patches, got {shapes[0]} to {shapes[-1]}"
            )
        return torch.stack(people)
    return features if isinstance(features, Tensor) and features.ndim == 4 else _of_one(features)[None]


def _of_one(features: Any) -> Tensor:
    """(references, patches, dim)."""
    if not isinstance(features, Tensor):
        raise IdgenError(f"FaceChain-FACT takes TransFace's patch features as a tensor, not {type(features).__name__}")
    rows = features[None] if features.ndim == 2 else features
    if rows.ndim != 3:
        raise IdgenError(
            f"a person's patch features have the shape {list(features.shape)}, expected (references, patches, 512)"
        )
    return rows
