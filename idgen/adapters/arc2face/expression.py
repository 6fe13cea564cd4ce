"""Arc2Face's expression adapter: a face by its identity, with an expression by its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.embeddings import ImageProjection
from torch import Tensor

from idgen.adapters.base import Adapter, AdapterConfig
from idgen.adapters.injections.parts import DecoupledPart, Part
from idgen.adapters.injections.tokens import key_values, rename
from idgen.adapters.ip_faceid.convert import layer_names
from idgen.adapters.layers import AttentionLayer
from idgen.adapters.methods import Method
from idgen.errors import IdgenError
from idgen.models.face_projections import FaceIDProjection
from idgen.models.published import part, shape

EXPRESSION, EYELIDS, JAW = 50, 2, 3  # FLAME's, in this order


@dataclass(frozen=True)
class ExpressionConfig(AdapterConfig):
    """Sizes of the token projection.

    Attributes:
        recogniser: who reads the numbers off a photo (SMIRK; not a part of idgen).
        projection: arguments of `FaceIDProjection`; without `ratio` a single linear layer in its place.
    """

    recogniser: str = "smirk"
    projection: Mapping[str, int] = field(
        default_factory=lambda: {
            "cross_attention_dim": 768,
            "embedding_dim": EXPRESSION + EYELIDS + JAW,
            "num_tokens": 4,
            "ratio": 2,
        }
    )


class Arc2FaceExpressionAdapter(Adapter):
    """The expression adapter of Arc2Face (Paraperas Papantoniou and Zafeiriou, ICCV workshops 2025, arXiv 2510.04706).

    `condition(expression)` with FLAME's numbers (people, 55): 50 of the expression, 2 of the eyelids in [0, 1], 3 of the
    jaw's rotation, as SMIRK predicts them. They become tokens beside Arc2Face's prompt, by attention of their own; the authors
    load the file with diffusers' `load_ip_adapter`, with zeros for guidance.

        adapter = Arc2FaceExpressionAdapter.from_pretrained("exp_adapter/exp_adapter.bin", pipe.unet).inject(pipe.unet)
        pipe(identity, cross_attention_kwargs=adapter.condition(expression).kwargs).images
    """

    method = "arc2face_expression"
    config_class = ExpressionConfig

    def __init__(self, config: ExpressionConfig, layers: Sequence[AttentionLayer]) -> None:
        super().__init__(config, layers)
        sizes = dict(config.projection)
        self.image_proj: Any
        if "ratio" in sizes:
            self.image_proj = FaceIDProjection(**sizes)
        else:
            self.image_proj = ImageProjection(sizes["embedding_dim"], sizes["cross_attention_dim"], sizes["num_tokens"])
        self.ip = key_values(layers, sizes["cross_attention_dim"])

    def embed(self, expression: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """
        Args:
            expression: (55,) of one person, (people, 55), or a list of (55,).
        """
        if isinstance(expression, (list, tuple)):
            if not expression:
                raise IdgenError("no identity given: pass FLAME's numbers (55,) for at least one person")
            if not all(isinstance(one, Tensor) and one.shape == expression[0].shape for one in expression):
                raise IdgenError("expressions of one batch must be tensors of one shape, (55,)")
            expression = torch.stack(list(expression))
        if not isinstance(expression, Tensor):
            raise IdgenError(f"an expression is a tensor of FLAME's numbers, not {type(expression).__name__}")
        rows = expression[None] if expression.ndim == 1 else expression
        wanted = self.config.projection["embedding_dim"]
        if rows.ndim != 2 or rows.shape[1] != wanted or not len(rows):
            raise IdgenError(f"expressions have the shape {list(expression.shape)}, expected (people, {wanted})")
        if not rows.isfinite().all():
            raise IdgenError("the expression holds NaN or infinity: read it off the photo again")
        return (rows.to(next(self.parameters())),)

    def project(self, *inputs: Tensor) -> Tensor:
        """(rows, tokens, dim)."""
        return self.image_proj(inputs[0])

    def parts(self, tokens: Tensor) -> dict[str, list[Part]]:
        """Attention over the tokens at every cross-attention."""
        return {layer.name: [DecoupledPart(*self.ip[str(layer.index)](tokens))] for layer in self.layers if layer.cross}

    @classmethod
    def convert(
        cls, tensors: Mapping[str, Tensor], layers: Sequence[AttentionLayer], *, source: str = ""
    ) -> tuple[AdapterConfig, dict[str, Tensor]]:
        """`exp_adapter.bin`: {"image_proj", "ip_adapter"}, IP-Adapter's layout with a projection of one layer or of two."""
        what = f"Arc2Face expression file {source}".rstrip()
        projection = part(tensors, "image_proj.")
        names = {f"image_proj.{key}": f"image_proj.{key}" for key in projection}
        if "proj.weight" in projection:
            width, dim = shape(projection, "norm.weight", 1, what)[0], shape(projection, "proj.weight", 2, what)
            sizes = {"cross_attention_dim": width, "embedding_dim": dim[1], "num_tokens": dim[0] // width}
            for end in ("weight", "bias"):
                names[f"image_proj.proj.{end}"] = f"image_proj.image_embeds.{end}"
        else:
            sizes = FaceIDProjection.sizes(projection, what)
        return ExpressionConfig(projection=sizes), rename(tensors, names | layer_names(layers, lora=False), what)


METHOD = Method(
    name="arc2face_expression",
    title="Arc2Face's expression adapter",
    bases=("Arc2Face's UNet",),
    recogniser="no face: FLAME's expression, eyelids and jaw, as SMIRK predicts them",
    norm=None,
    injections=("decoupled cross-attention",),
    files="FoivosPar/Arc2Face: exp_adapter/exp_adapter.bin",
    verified="UNet output against diffusers' load_ip_adapter, which the authors use; no golden",
    licence="MIT (model card of FoivosPar/Arc2Face); FLAME's and SMIRK's terms are their own",
    adapter=Arc2FaceExpressionAdapter,
    paper="arXiv 2510.04706",
)
