"""ReF-LDM (Hsiao et al., NeurIPS 2024, arXiv 2412.05043; github.com/ChiWeiHsiao/ref-ldm): restores a photo of a face from others.

A latent diffusion model whose self-attention reads the keys and values of reference photos (CacheKV).
"""

from idgen.adapters.cachekv.cache import MergedCache, ReferenceCache, gather, merge
from idgen.adapters.cachekv.config import ReFLDMConfig
from idgen.adapters.cachekv.convert import ReFLDM, load_refldm, load_unet, load_vq
from idgen.adapters.cachekv.encode import encode_references, split_panorama
from idgen.adapters.cachekv.injection import CacheKV
from idgen.adapters.cachekv.sampling import GuidedUNet, restore, set_timesteps, timesteps

__all__ = [
    "CacheKV",
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
