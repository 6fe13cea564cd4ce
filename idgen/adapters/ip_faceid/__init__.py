"""IP-Adapter-FaceID (Ye et al., arXiv 2308.06721; github.com/tencent-ailab/IP-Adapter): four identity tokens beside the text."""

from idgen.adapters.ip_faceid.adapter import IPFaceIDAdapter
from idgen.adapters.ip_faceid.clip import clip_features
from idgen.adapters.ip_faceid.config import FaceIDConfig
from idgen.adapters.methods import Method

METHOD = Method(
    name="ip_faceid",
    title="IP-Adapter-FaceID, -Plus, -Plus-v2, -Portrait",
    bases=("Stable Diffusion 1.5", "SDXL"),
    recogniser="buffalo_l's w600k_r50",
    norm="unit",
    injections=("decoupled cross-attention", "low-rank projections"),
    files="h94/IP-Adapter-FaceID: ip-adapter-faceid*.bin",
    verified="tokens and UNet output of FaceID and Plus-v2 (goldens ipa_faceid_sd15, ipa_faceid_plusv2_sd15)",
    licence="non-commercial (the recogniser's); model card of h94/IP-Adapter-FaceID",
    adapter=IPFaceIDAdapter,
    paper="arXiv 2308.06721",
)

__all__ = ["METHOD", "FaceIDConfig", "IPFaceIDAdapter", "clip_features"]
