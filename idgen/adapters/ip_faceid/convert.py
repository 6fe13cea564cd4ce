"""Published IP-Adapter-FaceID files -> our config and weights, strictly.

A file holds `image_proj.*` and `ip_adapter.*`, as a pickle of two dicts or flat. `ip_adapter` numbers the UNet's attention
processors: every one has `to_{q,k,v,out}_lora.{down,up}`, cross-attentions also `to_{k,v}_ip`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from idgen.adapters.injections.tokens import rename
from idgen.adapters.ip_faceid.config import FaceIDConfig
from idgen.adapters.layers import AttentionLayer, family
from idgen.errors import IdgenError
from idgen.models.face_projections import FaceIDPlusProjection, FaceIDProjection
from idgen.models.published import part, shape
from idgen.signatures import plain_name

PORTRAIT_TOKENS = 16


def convert(
    tensors: Mapping[str, Tensor], layers: Sequence[AttentionLayer], *, source: str = "", shortcut: bool | None = None
) -> tuple[FaceIDConfig, dict[str, Tensor]]:
    """
    Args:
        source: the file's name, which alone tells Plus from Plus-v2 and raw from unit Portrait.
        shortcut: True for Plus-v2, False for Plus, where the name does not say.
    Raises:
        IdgenError: a key that is missing or unknown, a file for another base, or Plus weights of unknown version.
    """
    what = f"IP-Adapter-FaceID file {source}".rstrip()
    projection = part(tensors, "image_proj.")
    plus = any(key.startswith("perceiver_resampler.") for key in projection)
    sizes = FaceIDPlusProjection.sizes(projection, what) if plus else FaceIDProjection.sizes(projection, what)
    context = next((layer.context for layer in layers if layer.cross), 0)
    if sizes["cross_attention_dim"] != context:
        theirs = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2", 2048: "SDXL"}.get(
            sizes["cross_attention_dim"], f"a base with {sizes['cross_attention_dim']} text channels"
        )
        raise IdgenError(
            f"{what} was made for {theirs}, and this UNet is {family(layers)}: load the file for this base"
        )
    lora = [key for key in tensors if key.endswith("_lora.down.weight")]
    rank = shape(tensors, lora[0], 2, what)[0] if lora else 0
    name = plain_name(source)
    if plus and shortcut is None:
        if "plus" not in name:
            raise IdgenError(
                f"{what} may be Plus or Plus-v2, the weights do not say: pass shortcut=True for v2, False for Plus"
            )
        shortcut = "plusv2" in name
    portrait = not plus and not rank and sizes["num_tokens"] == PORTRAIT_TOKENS
    config = FaceIDConfig(
        projection=sizes,
        rank=rank,
        concatenate=portrait,
        shortcut=bool(shortcut),
        norm="raw" if "unnorm" in name else "unit",
    )
    names = {f"image_proj.{key}": f"image_proj.{key}" for key in projection}
    return config, rename(tensors, names | layer_names(layers, bool(rank)), what)


def layer_names(layers: Sequence[AttentionLayer], lora: bool) -> dict[str, str]:
    """Published name -> ours, of everything that belongs to a layer."""
    names: dict[str, str] = {}
    for layer in layers:
        number = layer.index
        if lora:
            for projection in ("q", "k", "v", "out"):
                for end in ("down", "up"):
                    published = f"ip_adapter.{number}.to_{projection}_lora.{end}.weight"
                    names[published] = f"lora.{number}.{end}.{projection}.weight"
        if layer.cross:
            for projection in ("k", "v"):
                names[f"ip_adapter.{number}.to_{projection}_ip.weight"] = f"ip.{number}.to_{projection}.weight"
    return names
