"""FaceChain-FACT (Yu et al., arXiv 2410.12312; github.com/modelscope/facechain): a recogniser's patch features, gated in."""

from idgen.adapters.fact.adapter import FACTAdapter
from idgen.adapters.fact.config import FACTConfig
from idgen.adapters.methods import Method

METHOD = Method(
    name="fact",
    title="FaceChain-FACT",
    bases=("Stable Diffusion 1.5",),
    recogniser="TransFace-S's patch features, not its embedding",
    norm=None,
    injections=("gated self-attention",),
    files="ModelScope yucheng1996/FaceChain-FACT: adapter_*.ckpt, ms1mv2_model_TransFace_S.pt",
    verified="face tokens and UNet output, one and two references (golden fact_sd15)",
    licence="Apache-2.0 (repository of modelscope/facechain); the weights name none",
    adapter=FACTAdapter,
    paper="arXiv 2410.12312",
)

__all__ = ["METHOD", "FACTAdapter", "FACTConfig"]
