"""PuLID (Guo et al., NeurIPS 2024, arXiv 2404.16022; github.com/ToTheBeginning/PuLID): identity that leaves the rest alone."""

from idgen.adapters.methods import Method
from idgen.adapters.pulid.adapter import PuLIDAdapter, PuLIDConfig

METHOD = Method(
    name="pulid",
    title="PuLID v1, v1.1",
    bases=("SDXL",),
    recogniser="antelopev2's glintr100, beside EVA-CLIP",
    norm="raw",
    injections=("decoupled cross-attention, orthogonal to the text's",),
    files="guozinan/PuLID: pulid_v1.bin, pulid_v1.1.safetensors",
    verified="attention in every mode and UNet output (golden pulid_attention); the identity encoder by its keys and shapes only",
    licence="Apache-2.0; the recogniser's weights are non-commercial",
    adapter=PuLIDAdapter,
    paper="arXiv 2404.16022",
)

__all__ = ["METHOD", "PuLIDAdapter", "PuLIDConfig"]
