"""PVA, personalised face inpainting with parallel visual attention (Xu et al., WACV 2024, arXiv 2312.03556)."""

from idgen.adapters.methods import Method
from idgen.adapters.pva.adapter import PVAAdapter, PVAConfig

METHOD = Method(
    name="pva",
    title="PVA (parallel visual attention)",
    bases=("Stable Diffusion 2 inpainting",),
    recogniser="IResNet-50 of arcface_torch (ms1mv3)",
    norm="raw",
    injections=("joint softmax", "prompt token"),
    files="not released; FPIP.bin as its authors' code writes it",
    verified="attention, transform network, sampling, 40-step personalisation (goldens pva_*)",
    licence="none seen",
    adapter=PVAAdapter,
    paper="arXiv 2312.03556",
)

__all__ = ["METHOD", "PVAAdapter", "PVAConfig"]
