"""Published FaceChain-FACT adapters (`adapter_*.ckpt`) -> our config and weights, strictly.

One flat pickle: `local_fac_prj.*` is the resampler; everything else hangs on a text attention's processor,
`<path in the UNet>.attn2.processor.*`, and is a gated self-attention, at times with a layer norm `ln.*`. The authors load the
latter without asking what is missing or left over; here every block must have all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from idgen.adapters.fact.config import FACTConfig
from idgen.adapters.injections.tokens import rename
from idgen.adapters.layers import AttentionLayer
from idgen.errors import IdgenError
from idgen.families import family_name
from idgen.models.published import part
from idgen.models.resampler import Resampler

RESAMPLER = "local_fac_prj."
FUSER = (
    "alpha_attn",
    "alpha_dense",
    *(
        f"{name}.{end}"
        for name in ("linear", "norm1", "norm2", "ff.net.0.proj", "ff.net.2", "attn.to_out.0")
        for end in ("weight", "bias")
    ),
    *(f"attn.to_{letter}.weight" for letter in "qkv"),
)
NORM = ("weight", "bias")


def convert(
    tensors: Mapping[str, Tensor], layers: Sequence[AttentionLayer], *, source: str = ""
) -> tuple[FACTConfig, dict[str, Tensor]]:
    """
    Args:
        source: the file's name, for messages.
    Raises:
        IdgenError: a key that is missing or unknown, or a file for another base.
    """
    what = f"FaceChain-FACT file {source}".rstrip()
    projection = part(tensors, RESAMPLER)
    sizes = Resampler.sizes(projection, what)
    context = next((layer.context for layer in layers if layer.cross), 0)
    if sizes["output_dim"] != context:
        raise IdgenError(
            f"{what} was made for {family_name(sizes['output_dim'])}, and this UNet is {family_name(context)}:"
            " FaceChain-FACT is for Stable Diffusion 1.5"
        )
    norm = any(".attn2.processor.ln." in key for key in tensors)
    names = {f"{RESAMPLER}{key}": f"resampler.{key}" for key in projection}
    for layer in layers:
        if layer.cross:
            published, ours = f"{layer.name}.processor", f"gates.{layer.index}"
            names |= {f"{published}.{key}": f"{ours}.fuser.{key}" for key in FUSER}
            if norm:
                names |= {f"{published}.ln.{key}": f"{ours}.norm.{key}" for key in NORM}
    return FACTConfig(resampler=sizes, norm=norm), rename(tensors, names, what)
