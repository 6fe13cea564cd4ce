"""IP-Adapter-FaceID and Plus-v2 against the original implementation, through the published container."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from idgen.adapters.embeddings import RawEmbeddings
from idgen.adapters.ip_faceid import IPFaceIDAdapter, clip_features
from idgen.checkpoint import load_strict
from tests.conformance.golden import Golden, goldens
from tests.conformance.published import base_unet, guided_batch, nested_pickle

NORMS = "w600k_r50"


def people(vectors: Tensor) -> list[RawEmbeddings]:
    return [RawEmbeddings(vector, NORMS) for vector in vectors]


def run(unet: UNet2DConditionModel, inputs: dict[str, Tensor], conditioning: Any | None) -> Tensor:
    """The golden's UNet batch: unconditional rows, then conditional ones."""
    kwargs = conditioning.kwargs if conditioning else None
    with torch.no_grad():
        return unet(**guided_batch(inputs), cross_attention_kwargs=kwargs).sample


def tokens_of(adapter: IPFaceIDAdapter, identity: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """Tokens of nobody, one row per person, and of the people."""
    with torch.no_grad():
        given = adapter.embed(identity, **options)
        nobody = adapter.project(*adapter.null(*given))
        somebody = adapter.project(*given)
    return nobody.expand(len(somebody), -1, -1), somebody


@pytest.mark.parametrize("folder", goldens("ipa_faceid_sd15"), ids=lambda folder: folder.name)
def test_faceid(folder, tmp_path):
    golden = Golden(folder)
    inputs = golden.inputs()
    unet = base_unet(golden)
    path = nested_pickle(golden.weights("adapter."), tmp_path / "ip-adapter-faceid_sd15.bin")
    adapter = IPFaceIDAdapter.from_pretrained(path, unet)
    identity = people(inputs["id_embedding"])
    results = {"eps_base_no_adapter": run(unet, inputs, None)}
    results["uncond_image_embeds"], results["image_embeds"] = tokens_of(adapter, identity)
    adapter.inject(unet)
    for name in golden.meta["outputs"]:
        if match := re.fullmatch(r"eps\.scale_([\d.]+)", name):
            results[name] = run(unet, inputs, adapter.condition(identity, scale=float(match[1])))
    results["eps_ipscale_0_lora_on"] = run(unet, inputs, adapter.condition(identity, scale=0.0, lora_scale=1.0))
    golden.check(results)


@pytest.mark.parametrize("folder", goldens("ipa_faceid_plusv2_sd15"), ids=lambda folder: folder.name)
def test_faceid_plus_v2(folder, tmp_path):
    golden = Golden(folder)
    inputs = golden.inputs()
    unet = base_unet(golden)
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**golden.config["clip_vision"])).eval()
    vision = {key.removeprefix("vision_model."): value for key, value in golden.weights("image_encoder.").items()}
    own = {key.removeprefix("vision_model."): key for key in encoder.state_dict()}
    load_strict(encoder, {own[key]: value for key, value in vision.items() if "position_ids" not in key}, "CLIP")
    clip = clip_features(encoder, inputs["clip_pixels"])
    results = {
        "eps_base_no_adapter": run(unet, inputs, None),
        "clip_hidden": clip[1:],
        "clip_hidden_uncond": clip[:1].expand(len(clip) - 1, -1, -1),
    }
    identity = people(inputs["id_embedding"])
    for version, shortcut in (("shortcut", True), ("noshortcut", False)):
        name = f"ip-adapter-faceid-plus{'v2' if shortcut else ''}_sd15.bin"
        path = nested_pickle(golden.weights("adapter."), tmp_path / name)
        adapter = IPFaceIDAdapter.from_pretrained(path, unet)
        assert adapter.config.shortcut is shortcut, "told by the file's name"
        adapter.inject(unet)
        for output in golden.meta["outputs"]:
            match = re.fullmatch(
                rf"(?:(uncond_)?image_embeds|eps)\.{version}(?:_s([\d.]+))?(?:\.scale_([\d.]+))?", output
            )
            if match is None:
                continue
            options = {"clip": clip, "s_scale": float(match[2] or 1)}
            if match[3]:
                results[output] = run(unet, inputs, adapter.condition(identity, scale=float(match[3]), **options))
            else:
                nobody, somebody = tokens_of(adapter, identity, **options)
                results[output] = nobody if match[1] else somebody
        if shortcut:
            plain = adapter.condition(identity, scale=0.0, lora_scale=1.0, clip=clip)
            results["eps_ipscale_0_lora_on"] = run(unet, inputs, plain)
        adapter.eject()
    golden.check(results)
