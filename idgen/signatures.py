"""What a weights file is, told from its keys: one entry per published layout.

The layouts are facts of the original repositories, named beside each group. Order matters: the first entry that fits wins, so
the particular stands before the general.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

CLIP_H_WIDTH = 1280  # of the picture features that IP-Adapter-Plus reads


@dataclass(frozen=True)
class Signature:
    """What the keys of one kind of file look like.

    Attributes:
        kind: its name in reports, in metadata and for `--method`.
        title: in words.
        keys: regular expressions, each of which fits the whole of at least one key.
        absent: regular expressions that fit no key.
        widths: second axis of the tensors whose whole key an expression fits, where keys alone do not tell.
        method: the identity method that it belongs to, as idgen/adapters names it; "" for base models and recognisers.
        place: whether the path says so, for kinds that share every key with the next entry that fits.
        licence: of the weights, where it is known.
    """

    kind: str
    title: str
    keys: tuple[str, ...]
    absent: tuple[str, ...] = ()
    widths: Mapping[str, int] = field(default_factory=dict)
    method: str = ""
    place: Callable[[Path], bool] | None = None
    licence: str = ""

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether a file with these tensors may be of this kind; `place` is not asked."""
        return (
            all(any(_found(pattern, tensors)) for pattern in self.keys)
            and not any(key for pattern in self.absent for key in _found(pattern, tensors))
            and all(
                tensors[key].ndim > 1 and tensors[key].shape[1] == width
                for pattern, width in self.widths.items()
                for key in _found(pattern, tensors)
            )
        )


def _found(pattern: str, tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
    matches = re.compile(pattern).fullmatch
    return (key for key in tensors if matches(key))


def recognise(tensors: Mapping[str, torch.Tensor], path: Path) -> Signature:
    """The first entry that fits, or `UNKNOWN`."""
    path = path.absolute()
    fitting = (entry for entry in SIGNATURES if entry.fits(tensors) and (entry.place is None or entry.place(path)))
    return next(fitting, UNKNOWN)


def twins(signature: Signature, tensors: Mapping[str, torch.Tensor]) -> list[Signature]:
    """The other entries that fit as well, where only the file's place tells them apart."""
    fitting = [entry for entry in SIGNATURES if entry.fits(tensors)]
    placed = signature.place is not None or any(entry.place is not None for entry in fitting)
    return [entry for entry in fitting if entry is not signature] if placed else []


def _in_arc2face(path: Path) -> bool:
    return path.parent.name == "arc2face"


def _beside_arc2face(path: Path) -> bool:
    return path.parent.name == "encoder" and (path.parents[1] / "arc2face").is_dir()


def _in_ref_adapter(path: Path) -> bool:
    return path.parent.name == "ref_adapter"


def plain_name(name: str) -> str:
    """A file's name without case and separators, in which variants are looked for that the keys do not tell apart."""
    return re.sub(r"[-_. ]", "", name.lower())


def _named_plus_v2(path: Path) -> bool:
    return "plusv2" in plain_name(path.name)


UNKNOWN = Signature("unknown", "unknown weights", ())
ONNX = Signature("onnx", "an ONNX model that is no IResNet recogniser", ())
IDENTITY = Signature("identity", "an identity file: embeddings of one person, no weights", ())

BLOCKS = r"(?:down_blocks|mid_block|up_blocks)"
FACEID_TOKENS = (r"image_proj\.proj\.0\.weight", r"image_proj\.norm\.weight", r"ip_adapter\.\d+\.to_k_ip\.weight")
FACEID_LORA = r"ip_adapter\.\d+\.to_q_lora\.down\.weight"
FACEID_CLIP = r"image_proj\.perceiver_resampler\..+"
EXPRESSION = r"image_proj\.proj(?:\.0)?\.weight"
FACEID_LICENCE = "for research only (model card of h94/IP-Adapter-FaceID)"
LORA_DIFFUSERS = (
    r"(?:(?:unet|text_encoder(?:_2)?|transformer)\.)?.+"
    r"(?:\.lora_A(?:\.\w+)?|[._]lora\.down|\.lora_linear_layer\.down)\.weight",
)
UNET = (r"conv_in\.weight", r"time_embedding\..+", r"down_blocks\.\d+\.resnets\..+", r"up_blocks\..+")
CLIP_TEXT = (r"(?:text_model\.)?embeddings\.token_embedding\.weight", r"(?:text_model\.)?final_layer_norm\.weight")

SIGNATURES: tuple[Signature, ...] = (
    # IP-Adapter (tencent-ailab/IP-Adapter): {"image_proj", "ip_adapter"}. Plus and Plus-v2 differ in how they are used only.
    Signature(
        "ip-adapter-faceid-plusv2",
        "IP-Adapter-FaceID-PlusV2",
        (*FACEID_TOKENS, FACEID_LORA, FACEID_CLIP),
        method="ip_faceid",
        place=_named_plus_v2,
        licence=FACEID_LICENCE,
    ),
    Signature(
        "ip-adapter-faceid-plus",
        "IP-Adapter-FaceID-Plus",
        (*FACEID_TOKENS, FACEID_LORA, FACEID_CLIP),
        method="ip_faceid",
        licence=FACEID_LICENCE,
    ),
    Signature(
        "ip-adapter-faceid",
        "IP-Adapter-FaceID",
        (*FACEID_TOKENS, FACEID_LORA),
        (FACEID_CLIP,),
        method="ip_faceid",
        licence=FACEID_LICENCE,
    ),
    # Arc2Face (foivospar/Arc2Face), exp_adapter.bin: IP-Adapter's layout over FLAME's 55 numbers.
    Signature(
        "arc2face-expression",
        "Arc2Face's expression adapter",
        (EXPRESSION, r"ip_adapter\.\d+\.to_k_ip\.weight"),
        (FACEID_CLIP, FACEID_LORA),
        widths={EXPRESSION: 55},
        method="arc2face_expression",
    ),
    Signature(
        "ip-adapter-faceid-portrait",
        "IP-Adapter-FaceID-Portrait",
        FACEID_TOKENS,
        (FACEID_CLIP, FACEID_LORA),
        method="ip_faceid",
        licence=FACEID_LICENCE,
    ),
    Signature(
        "ip-adapter-plus",
        "IP-Adapter-Plus: of pictures, not of identities",
        (r"image_proj\.latents", r"image_proj\.proj_in\.weight", r"ip_adapter\.\d+\.to_k_ip\.weight"),
        widths={r"image_proj\.proj_in\.weight": CLIP_H_WIDTH},
    ),
    # InstantID (instantX-research/InstantID), ip-adapter.bin.
    Signature(
        "instantid",
        "InstantID's ip-adapter",
        (r"image_proj\.latents", r"image_proj\.proj_in\.weight", r"ip_adapter\.\d+\.to_k_ip\.weight"),
        method="instantid",
    ),
    Signature(
        "ip-adapter",
        "IP-Adapter: of pictures, not of identities",
        (r"image_proj\.proj(?:\.\d)?\.weight", r"ip_adapter\.\d+\.to_k_ip\.weight"),
        (FACEID_CLIP, FACEID_LORA),
    ),
    # FaceChain-FACT (modelscope/facechain), adapter_*.ckpt.
    Signature(
        "fact",
        "FaceChain-FACT's adapter",
        (rf"{BLOCKS}\..+\.attn2\.processor\.alpha_attn", r"local_fac_prj\.latents"),
        method="fact",
    ),
    # PuLID (ToTheBeginning/PuLID): an encoder of two makes, and keys and values for the attention.
    Signature(
        "pulid-v1.1",
        "PuLID v1.1",
        (r"id_adapter\.latents", r"id_adapter_attn_layers\.\d+\.id_to_k\.weight"),
        method="pulid",
    ),
    Signature(
        "pulid-v1",
        "PuLID v1",
        (r"id_adapter\.body\.0\.weight", r"id_adapter_attn_layers\.\d+\.id_to_k\.weight"),
        method="pulid",
    ),
    Signature("pulid-flux", "PuLID for FLUX", (r"pulid_ca\..+", r"pulid_encoder\..+")),
    # PhotoMaker (TencentARC/PhotoMaker): {"id_encoder", "lora_weights"}.
    Signature(
        "photomaker-v2",
        "PhotoMaker v2",
        (r"id_encoder\.qformer_perceiver\..+", r"id_encoder\.fuse_module\..+"),
        method="photomaker",
    ),
    Signature("photomaker-v1", "PhotoMaker v1, which reads no face embedding", (r"id_encoder\.fuse_module\..+",)),
    # W+ adapter (csxmli2016/w-plus-adapter): {"w_proj", "wplus_adapter"}.
    Signature(
        "wplus",
        "the W+ adapter",
        (r"w_proj\.proj_0\.weight", r"wplus_adapter\.\d+\.to_k_wplus\.weight"),
        method="wplus",
        licence="NTU S-Lab Licence 1.0",
    ),
    # PVA, "Personalized Face Inpainting with Diffusion Models by Parallel Visual Attention" (arXiv 2312.03556), FPIP.bin.
    Signature("pva", "PVA's FPIP", (r"modifier_vec", r"transform_network\.q_tokens"), method="pva"),
    # ReF-LDM (ChiWeiHsiao/ref-ldm): refldm.ckpt (flat), vqgan.ckpt ({"state_dict"}).
    Signature(
        "refldm",
        "ReF-LDM: UNet, first stage and their moving averages",
        (r"model\.diffusion_model\.input_blocks\..+\.qkv\.weight", r"first_stage_model\.quantize\.embedding\.weight"),
        method="cachekv",
        licence="for non-commercial research",
    ),
    Signature(
        "vqgan",
        "a VQGAN in CompVis' layout, as ReF-LDM's first stage",
        (r"encoder\.down\.0\.block\.0\.conv1\.weight", r"quantize\.embedding\.weight", r"quant_conv\.weight"),
    ),
    # pSp and e4e (eladrich/pixel2style2pixel, omertov/encoder4editing): {"state_dict", "latent_avg", "opts"}.
    Signature(
        "e4e",
        "an encoder into StyleGAN2's W+ (e4e, pSp), with its generator",
        (r"encoder\.styles\.\d+\..+", r"encoder\.input_layer\.0\.weight", r"decoder\.convs\.\d+\..+", r"latent_avg"),
    ),
    # Recognisers: insightface's arcface_torch, and TransFace (DanJun6737/TransFace) as FACT uses it.
    Signature(
        "iresnet",
        "an IResNet recogniser",
        (r"layer1\.0\.bn1\.weight", r"layer4\.0\.conv1\.weight", r"fc\.weight", r"features\.running_mean"),
    ),
    Signature(
        "transface",
        "a TransFace recogniser",
        (r"patch_embed\.proj\.weight", r"senet\.0\.weight", r"feature\.0\.weight"),
    ),
    # LoRA, in the three namings: kohya-ss/sd-scripts, diffusers (through 0.21 and since), peft itself.
    Signature("lora-kohya", "a LoRA in kohya's naming", (r"lora_(?:unet|te\d?)_.+\.lora_down\.weight",)),
    Signature("lora-peft", "a LoRA as peft saves it", (r"base_model\.model\..+\.lora_A\.weight",)),
    Signature(
        "arc2face-reference",
        "Arc2Face's reference adapter, a LoRA",
        LORA_DIFFUSERS,
        (r"ip_adapter\..+", r"id_encoder\..+"),
        method="arc2face_reference",
        place=_in_ref_adapter,
    ),
    Signature(
        "lora-diffusers",
        "a LoRA in diffusers' naming",
        LORA_DIFFUSERS,
        (r"ip_adapter\..+", r"id_encoder\..+"),
    ),
    # What idgen.finetune saves, known by its header; a LoRA among them has diffusers' keys, and comes above without one.
    Signature(
        "finetune",
        "a finetuning adapter of idgen",
        (r"(?:unet|text_encoder(?:_2)?)\..+\.(?:(?:lora_A|oft_R)\.weight|boft_R|hra_u|hada_w1_a|lokr_w1(?:_a)?)",),
    ),
    # Base models: CompVis' single files, diffusers' and transformers' folders.
    Signature(
        "stable-diffusion",
        "a whole Stable Diffusion in one file",
        (r"model\.diffusion_model\.input_blocks\.0\.0\.weight", r"first_stage_model\..+"),
    ),
    Signature(
        "controlnet",
        "a ControlNet (InstantID's IdentityNet is one)",
        (r"controlnet_cond_embedding\.conv_in\.weight", r"controlnet_mid_block\.weight"),
    ),
    Signature(
        "arc2face-unet",
        "Arc2Face's UNet",
        UNET,
        (r"encoder\..+",),
        method="arc2face",
        place=_in_arc2face,
    ),
    Signature(
        "unet",
        "a UNet of diffusers",
        UNET,
        (r"encoder\..+",),
    ),
    Signature(
        "arc2face-encoder",
        "Arc2Face's face encoder, a CLIP text encoder",
        CLIP_TEXT,
        method="arc2face",
        place=_beside_arc2face,
    ),
    Signature(
        "clip-text",
        "a CLIP text encoder",
        CLIP_TEXT,
    ),
    Signature(
        "clip-vision",
        "a CLIP picture encoder",
        (r"(?:vision_model\.)?embeddings\.patch_embedding\.weight", r"(?:vision_model\.)?post_layernorm\.weight"),
    ),
    Signature(
        "autoencoder",
        "an autoencoder of diffusers",
        (r"encoder\.(?:down_blocks|layers)\..+", r"decoder\.(?:up_blocks|layers)\..+"),
    ),
)

# What may be asked for by name: methods, and the kinds of file that they have.
NAMES = tuple(dict.fromkeys(name for entry in SIGNATURES for name in (entry.method, entry.kind) if name))
