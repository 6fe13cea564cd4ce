"""Published weights files in miniature: their names, containers and keys, with a few small tensors each."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch
from safetensors.torch import save_file

Layout = dict[str, tuple[int, ...]]


def faceid(width: int, *, lora: bool = True, clip: bool = False) -> Layout:
    keys: Layout = {
        "image_proj.proj.0.weight": (8, 512),
        "image_proj.proj.2.weight": (4 * width, 8),
        "image_proj.norm.weight": (width,),
        "ip_adapter.1.to_k_ip.weight": (4, width),
        "ip_adapter.1.to_v_ip.weight": (4, width),
    }
    if lora:
        keys |= {"ip_adapter.0.to_q_lora.down.weight": (2, 4), "ip_adapter.0.to_q_lora.up.weight": (4, 2)}
    if clip:
        keys |= {"image_proj.perceiver_resampler.proj_in.weight": (width, 1280)}
    return keys


def resampler(into: int, width: int) -> Layout:
    return {
        "image_proj.latents": (1, 16, 8),
        "image_proj.proj_in.weight": (8, into),
        "image_proj.proj_out.weight": (width, 8),
        "ip_adapter.1.to_k_ip.weight": (4, width),
    }


def pulid(**encoder: tuple[int, ...]) -> Layout:
    keys = {f"id_adapter.{name.replace('__', '.')}": shape for name, shape in encoder.items()}
    return keys | {"id_adapter_attn_layers.1.id_to_k.weight": (4, 2048)}


def unet(width: int, channels: int = 4) -> Layout:
    return {
        "conv_in.weight": (8, channels, 3, 3),
        "time_embedding.linear_1.weight": (8, 8),
        "down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (8, width),
        "up_blocks.1.resnets.0.conv1.weight": (8, 8, 3, 3),
    }


LINE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
CLIP_TEXT: Layout = {"text_model.embeddings.token_embedding.weight": (9, 8), "text_model.final_layer_norm.weight": (8,)}

# kind -> the file's name where it was published, some of its keys, and the base in words.
LAYOUTS: dict[str, tuple[str, Layout, str | None]] = {
    "ip-adapter-faceid": ("ip-adapter-faceid_sd15.bin", faceid(768), "Stable Diffusion 1.5"),
    "ip-adapter-faceid-plus": ("ip-adapter-faceid-plus_sd15.bin", faceid(768, clip=True), "Stable Diffusion 1.5"),
    "ip-adapter-faceid-plusv2": ("ip-adapter-faceid-plusv2_sdxl.bin", faceid(2048, clip=True), "SDXL"),
    "ip-adapter-faceid-portrait": (
        "ip-adapter-faceid-portrait_sd15.bin",
        faceid(768, lora=False),
        "Stable Diffusion 1.5",
    ),
    "arc2face-expression": (
        "exp_adapter/exp_adapter.bin",
        {
            "image_proj.proj.0.weight": (110, 55),
            "image_proj.norm.weight": (768,),
            "ip_adapter.1.to_k_ip.weight": (4, 768),
        },
        "Stable Diffusion 1.5",
    ),
    "ip-adapter-plus": ("ip-adapter-plus-face_sd15.bin", resampler(1280, 768), "Stable Diffusion 1.5"),
    "ip-adapter": (
        "ip-adapter_sd15.bin",
        {"image_proj.proj.weight": (3072, 1024), "ip_adapter.1.to_k_ip.weight": (4, 768)},
        "Stable Diffusion 1.5",
    ),
    "instantid": ("ip-adapter.bin", resampler(512, 2048), "SDXL"),
    "fact": (
        "adapter_maj_mask_large.ckpt",
        {
            f"{LINE}.processor.alpha_attn": (),
            f"{LINE}.processor.linear.weight": (4, 768),
            "local_fac_prj.latents": (1, 16, 8),
        },
        "Stable Diffusion 1.5",
    ),
    "pulid-v1": ("pulid_v1.bin", pulid(body__0__weight=(4, 1280)), "SDXL"),
    "pulid-v1.1": ("pulid_v1.1.safetensors", pulid(latents=(1, 32, 8)), "SDXL"),
    "pulid-flux": (
        "pulid_flux_v0.9.1.safetensors",
        {"pulid_ca.0.norm1.weight": (4,), "pulid_encoder.latents": (4,)},
        None,
    ),
    "photomaker-v2": (
        "photomaker-v2.bin",
        {
            "id_encoder.qformer_perceiver.token_proj.0.weight": (4, 4),
            "id_encoder.fuse_module.mlp1.fc1.weight": (4, 4),
            f"lora_weights.unet.{LINE}.processor.to_k_lora.down.weight": (2, 2048),
            f"lora_weights.unet.{LINE}.processor.to_k_lora.up.weight": (4, 2),
        },
        "SDXL",
    ),
    "photomaker-v1": ("photomaker-v1.bin", {"id_encoder.fuse_module.mlp1.fc1.weight": (4, 4)}, None),
    "wplus": (
        "wplus_adapter.bin",
        {"w_proj.proj_0.weight": (768, 8), "wplus_adapter.1.to_k_wplus.weight": (4, 768)},
        "Stable Diffusion 1.5",
    ),
    "pva": (
        "FPIP.bin",
        {"modifier_vec": (8,), "transform_network.q_tokens": (10, 8), f"unet.{LINE}.to_visual_k.weight": (4, 1024)},
        "Stable Diffusion 2",
    ),
    "refldm": (
        "refldm.ckpt",
        {
            "model.diffusion_model.input_blocks.4.1.qkv.weight": (12, 4, 1),
            "model_ema.diffusion_modelinput_blocks41qkvweight": (12, 4, 1),
            "first_stage_model.quantize.embedding.weight": (16, 8),
        },
        None,
    ),
    "vqgan": (
        "vqgan.ckpt",
        {
            "encoder.down.0.block.0.conv1.weight": (4, 4, 3, 3),
            "quantize.embedding.weight": (16, 8),
            "quant_conv.weight": (8, 8, 1, 1),
        },
        None,
    ),
    "e4e": (
        "e4e_ffhq_encode.pt",
        {
            "encoder.input_layer.0.weight": (4, 3, 3, 3),
            "encoder.styles.0.linear.weight": (4, 4),
            "decoder.convs.0.conv.weight": (1, 4, 4, 3, 3),
            "latent_avg": (18, 8),
        },
        None,
    ),
    "iresnet": (
        "backbone.pth",
        {
            "layer1.0.bn1.weight": (4,),
            "layer4.0.conv1.weight": (4, 4, 3, 3),
            "fc.weight": (4, 4),
            "features.running_mean": (4,),
        },
        None,
    ),
    "transface": (
        "ms1mv2_model_TransFace_S.pt",
        {"patch_embed.proj.weight": (4, 3, 9, 9), "senet.0.weight": (4, 4), "feature.0.weight": (4, 4)},
        None,
    ),
    "lora-kohya": (
        "style.safetensors",
        {
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (2, 768),
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": (4, 2),
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.alpha": (),
        },
        "Stable Diffusion 1.5",
    ),
    "lora-diffusers": (
        "pytorch_lora_weights.safetensors",
        {f"unet.{LINE}.to_k.lora_A.weight": (2, 2048), f"unet.{LINE}.to_k.lora_B.weight": (4, 2)},
        "SDXL",
    ),
    "arc2face-reference": (
        "ref_adapter/pytorch_lora_weights.safetensors",
        {f"unet.{LINE}.to_k.lora.down.weight": (2, 768), f"unet.{LINE}.to_k.lora.up.weight": (4, 2)},
        "Stable Diffusion 1.5",
    ),
    "lora-peft": (
        "adapter_model.safetensors",
        {
            f"base_model.model.{LINE}.to_k.lora_A.weight": (2, 768),
            f"base_model.model.{LINE}.to_k.lora_B.weight": (4, 2),
        },
        "Stable Diffusion 1.5",
    ),
    "finetune": (
        "anna.safetensors",
        {f"unet.{LINE}.to_k.oft_R.weight": (4, 6), f"unet.{LINE}.to_q.oft_R.weight": (4, 6)},
        None,
    ),
    "stable-diffusion": (
        "v1-5-pruned.ckpt",
        {
            "model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3),
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (4, 768),
            "first_stage_model.encoder.conv_in.weight": (4, 3, 3, 3),
        },
        "Stable Diffusion 1.5",
    ),
    "controlnet": (
        "ControlNetModel/diffusion_pytorch_model.safetensors",
        {
            "controlnet_cond_embedding.conv_in.weight": (4, 3, 3, 3),
            "controlnet_mid_block.weight": (4, 4, 1, 1),
            f"{LINE}.to_k.weight": (4, 2048),
        },
        "SDXL",
    ),
    "unet": ("unet/diffusion_pytorch_model.safetensors", unet(1024, channels=9), "Stable Diffusion 2"),
    "arc2face-unet": ("arc2face/diffusion_pytorch_model.safetensors", unet(768), "Stable Diffusion 1.5"),
    "clip-text": ("text_encoder/model.safetensors", CLIP_TEXT, None),
    "arc2face-encoder": ("encoder/pytorch_model.bin", CLIP_TEXT, None),
    "clip-vision": (
        "image_encoder/model.safetensors",
        {"vision_model.embeddings.patch_embedding.weight": (4, 3, 4, 4), "vision_model.post_layernorm.weight": (4,)},
        None,
    ),
    "autoencoder": (
        "vae/diffusion_pytorch_model.safetensors",
        {
            "encoder.down_blocks.0.resnets.0.conv1.weight": (4, 4, 3, 3),
            "decoder.up_blocks.0.resnets.0.conv1.weight": (4, 4, 3, 3),
            "decoder.mid_block.attentions.0.query.weight": (4, 4),
        },
        None,
    ),
}
NESTED = (
    "image_proj",
    "ip_adapter",
    "id_encoder",
    "lora_weights",
    "w_proj",
    "wplus_adapter",
    "transform_network",
    "unet",
)


def write(folder: Path, kind: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file of that kind in its published container; also its tensors under flat names."""
    name, layout, _ = LAYOUTS[kind]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "arc2face-encoder":
        (folder / "arc2face").mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {key: torch.randn(shape, generator=generator) for key, shape in layout.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
        return path, tensors
    content: dict = {}
    for key, tensor in tensors.items():
        group, _, rest = key.partition(".")
        (content.setdefault(group, {}) if group in NESTED else content)[rest if group in NESTED else key] = tensor
    if kind == "e4e":
        average = content.pop("latent_avg")
        content = {"state_dict": content, "latent_avg": average, "opts": Namespace(exp_dir="runs", lr=1e-4)}
    elif kind == "vqgan":
        content = {"state_dict": content, "global_step": 200_000}
    torch.save(content, path)
    return path, tensors
