"""ReF-LDM (Hsiao et al., NeurIPS 2024, arXiv 2412.05043; github.com/ChiWeiHsiao/ref-ldm): restores a photo of a face from others.

A latent diffusion model whose self-attention reads the keys and values of reference photos (CacheKV).
"""

from idgen.adapters.cachekv.adapter import CacheKVAdapter, CacheKVConfig
from idgen.adapters.cachekv.cache import MergedCache, ReferenceCache, gather, merge
from idgen.adapters.cachekv.config import ReFLDMConfig
from idgen.adapters.cachekv.convert import ReFLDM, load_refldm, load_unet, load_vq
from idgen.adapters.cachekv.encode import encode_references, split_panorama
from idgen.adapters.cachekv.injection import CacheKV
from idgen.adapters.cachekv.sampling import GuidedUNet, restore, set_timesteps, timesteps
from idgen.adapters.methods import Method

__all__ = [
    "METHOD",
    "CacheKV",
    "CacheKVAdapter",
    "CacheKVConfig",
    "GuidedUNet",
    "MergedCache",
    "ReFLDM",
    "ReFLDMConfig",
    "ReferenceCache",
    "encode_references",
    "gather",
    "load_refldm",
    "load_unet",
    "load_vq",
    "merge",
    "restore",
    "set_timesteps",
    "split_panorama",
    "timesteps",
]

METHOD = Method(
    name="cachekv",
    title="ReF-LDM's CacheKV",
    bases=("ReF-LDM's own UNet", "any Stable Diffusion UNet, as it comes"),
    recogniser="no face: photos, FFHQ's crop",
    norm=None,
    injections=("joint self-attention",),
    files="ChiWeiHsiao/ref-ldm: refldm.ckpt, vqgan.ckpt",
    verified="UNet with references, autoencoder, sampling, degradations, losses and gradients of ReF-LDM; in a Stable"
    " Diffusion UNet against one with processors that keep and append keys and values, written from the paper",
    licence="non-commercial research (repository's README)",
    adapter=CacheKVAdapter,
    paper="arXiv 2412.05043",
)
