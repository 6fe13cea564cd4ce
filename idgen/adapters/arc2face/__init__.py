"""Arc2Face (Papantoniou et al., ECCV 2024, arXiv 2403.11641; github.com/foivospar/Arc2Face): a face from its ArcFace embedding.

The unit embedding replaces one word of a fixed prompt ahead of a finetuned CLIP text encoder; the finetuned UNet
is otherwise a plain Stable Diffusion one.
"""

from idgen.adapters.arc2face.config import Arc2FaceConfig
from idgen.adapters.arc2face.convert import load_encoder, load_unet, load_vae
from idgen.adapters.arc2face.projection import IdentityPrompt, identity_prompt_embeds, null_prompt_embeds
from idgen.adapters.arc2face.sources import Source, locate
from idgen.adapters.methods import Method

METHOD = Method(
    name="arc2face",
    title="Arc2Face",
    bases=("Stable Diffusion 1.5",),
    recogniser="its own IResNet-100 (arcface.onnx)",
    norm="unit",
    injections=("prompt token",),
    files="FoivosPar/Arc2Face: arc2face/, encoder/",
    verified="prompt embeddings and denoising steps (goldens arc2face_id_projection, arc2face_unet_step)",
    licence="MIT; the face recogniser's terms are its own",
    adapter=None,
    paper="arXiv 2403.11641",
)

__all__ = [
    "METHOD",
    "Arc2FaceConfig",
    "IdentityPrompt",
    "Source",
    "identity_prompt_embeds",
    "load_encoder",
    "load_unet",
    "load_vae",
    "locate",
    "null_prompt_embeds",
]
