"""A random SDXL, an IdentityNet and an InstantID adapter for it, small enough for a test: 64 px, eightfold autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, EulerDiscreteScheduler, StableDiffusionXLPipeline
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from idgen.adapters.base import Adapter
from idgen.identity import Identity
from tests.adapters.bases import WIDTH, tiny_unet
from tests.adapters.cases import CASES
from tests.tiny import tiny_tokenizer

SIZE = 64
FACE = torch.tensor([[20.0, 24.0], [41.0, 22.0], [31.0, 33.0], [24.0, 44.0], [40.0, 43.0]])


def sdxl_components(seed: int = 0) -> dict[str, Any]:
    """The arguments of StableDiffusionXLPipeline; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH // 2,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=8,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return {
            "vae": AutoencoderKL(
                block_out_channels=(4,) * 4,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                norm_num_groups=4,
                force_upcast=False,
            ).eval(),
            "text_encoder": CLIPTextModel(config).eval(),
            "text_encoder_2": CLIPTextModelWithProjection(config).eval(),
            "tokenizer": tokenizer,
            "tokenizer_2": tokenizer,
            "unet": tiny_unet("sdxl", seed),
            "scheduler": EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading"),
        }


def tiny_controlnet(seed: int = 0) -> ControlNetModel:
    """A ControlNet whose zero convolutions are none, so that it acts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ControlNetModel.from_unet(tiny_unet("sdxl"), conditioning_embedding_out_channels=(4, 4, 4, 4)).eval()
        for name, parameter in net.named_parameters():
            if name.startswith("controlnet_"):
                torch.nn.init.normal_(parameter, std=0.3)
    return net.requires_grad_(False)


def tiny_instantid(unet: Any, seed: int = 0) -> Adapter:
    """The contract tests' random InstantID."""
    case = next(case for case in CASES if case.method == "instantid")
    return case.build(unet, seed)


def person(seed: int, references: int = 1, landmarks: bool = True) -> Identity:
    """Somebody with raw embeddings, of the length that the recogniser gives them, and a face."""
    raw = torch.randn(references, 512, generator=torch.Generator().manual_seed(1000 + seed))
    faces = (FACE + seed).expand(references, 5, 2) if landmarks else None
    return Identity(raw, "glintr100", landmarks=faces)


def published_layout(folder: Path, adapter: Adapter, net: ControlNetModel) -> Path:
    """The authors' repository: ip-adapter.bin, a pickle of two dicts, and ControlNetModel/."""
    names = {"to_k": "to_k_ip", "to_v": "to_v_ip"}
    groups: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in adapter.state_dict().items():
        group, _, name = key.partition(".")
        if group == "ip":
            number, projection, weight = name.split(".")
            groups["ip_adapter"][f"{number}.{names[projection]}.{weight}"] = value
        else:
            groups["image_proj"][name] = value
    folder.mkdir(parents=True)
    torch.save(groups, folder / "ip-adapter.bin")
    (folder / "ControlNetModel").mkdir()
    net.save_config(folder / "ControlNetModel")
    save_file(net.state_dict(), folder / "ControlNetModel" / "diffusion_pytorch_model.safetensors")
    return folder


def sdxl_folder(folder: Path, seed: int = 0) -> Path:
    """An SDXL as diffusers saves it."""
    StableDiffusionXLPipeline(**sdxl_components(seed)).save_pretrained(folder)
    return folder
