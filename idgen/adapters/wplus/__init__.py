"""W+ Adapter (Li et al., CVPR 2024, arXiv 2311.17461; github.com/csxmli2016/w-plus-adapter): a face from its StyleGAN2 code.

What keeps a face in StyleGAN2's W+ can also change it: codes that are moved along an edit direction stay the same person.
"""

from idgen.adapters.methods import Method
from idgen.adapters.wplus.adapter import WPlusAdapter, WPlusConfig

METHOD = Method(
    name="wplus",
    title="W+ Adapter",
    bases=("Stable Diffusion 1.5",),
    recogniser="none: W+ codes of the e4e encoder",
    norm=None,
    injections=("decoupled cross-attention, asked with the text attention's result",),
    files="csxmli2016/w-plus-adapter: wplus_adapter.bin, e4e_ffhq_encode.pt",
    verified="projector, attention, UNet, sampling, edit directions, losses (goldens wplus_*)",
    licence="NTU S-Lab License 1.0 (non-commercial)",
    adapter=WPlusAdapter,
    paper="arXiv 2311.17461",
)

__all__ = ["METHOD", "WPlusAdapter", "WPlusConfig"]
