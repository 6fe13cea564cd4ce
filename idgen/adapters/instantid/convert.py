"""Published InstantID weights -> our config, adapter and IdentityNet, strictly.

`ip-adapter.bin` is a pickle of two dicts: `image_proj`, a Resampler's keys, and `ip_adapter`, which numbers the UNet's
attention processors, `{1, 3, ...}.to_{k,v}_ip.weight`. `ControlNetModel/` is a diffusers folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from idgen.adapters.injections.tokens import rename
from idgen.adapters.instantid.config import InstantIDConfig
from idgen.adapters.ip_faceid.convert import layer_names
from idgen.adapters.layers import AttentionLayer, family
from idgen.errors import IdgenError
from idgen.models.published import part
from idgen.models.resampler import Resampler
from idgen.signatures import CLIP_H_WIDTH


def convert(
    tensors: Mapping[str, Tensor], layers: Sequence[AttentionLayer], *, source: str = "", dim_head: int = 64
) -> tuple[InstantIDConfig, dict[str, Tensor]]:
    """
    Args:
        source: the file's name, for messages.
        dim_head: width of the projection's attention heads, which the weights do not tell; 64 in the published file.
    Raises:
        IdgenError: a key that is missing or unknown, a file of another method or for another base.
    """
    what = f"InstantID file {source}".rstrip()
    projection = part(tensors, "image_proj.")
    sizes = Resampler.sizes(projection, what, dim_head)
    if sizes["embedding_dim"] == CLIP_H_WIDTH:
        raise IdgenError(
            f"{what} is an IP-Adapter-Plus, which reads pictures and no faces: load InstantID's ip-adapter.bin"
        )
    context = next((layer.context for layer in layers if layer.cross), 0)
    if sizes["output_dim"] != context:
        raise IdgenError(
            f"{what} makes tokens of {sizes['output_dim']} channels (SDXL's text has 2048), and this UNet is"
            f" {family(layers)}: InstantID was published for SDXL"
        )
    names = {f"image_proj.{key}": f"image_proj.{key}" for key in projection}
    return InstantIDConfig(projection=sizes), rename(tensors, names | layer_names(layers, lora=False), what)
