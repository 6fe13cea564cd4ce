"""Attention layers with identities, one layer at a time, against the originals: PuLID, PVA, the W+ Adapter."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from idgen.adapters.injections.host import attend
from idgen.adapters.injections.parts import DecoupledPart, JointPart, Part
from idgen.adapters.pulid import PuLIDAdapter
from idgen.checkpoint import load_strict
from tests.conformance.golden import Golden, goldens
from tests.conformance.published import base_unet, flat_pickle


def layer(golden: Golden, prefix: str) -> Attention:
    module = Attention(**golden.config["attention"]).eval().requires_grad_(False)
    load_strict(module, {k: v for k, v in golden.weights(prefix).items() if k in module.state_dict()}, "attention")
    return module


def run(module: Attention, inputs: dict[str, Tensor], part: Part | None = None, scale: float = 1.0) -> Tensor:
    from idgen.adapters.call import Active

    actives = [Active(part, scale, None)] if part is not None and scale else []
    with torch.no_grad():
        return attend(module, inputs["hidden"], inputs["text"], None, actives)


@pytest.mark.parametrize("folder", goldens("pulid_attention"), ids=lambda folder: folder.name)
def test_pulid_attention_equals_the_original(folder, tmp_path):
    golden = Golden(folder)
    inputs = golden.inputs()
    module, own = layer(golden, "attention."), golden.weights("id_attention.")
    tokens = inputs["id_embedding"]
    key, value = tokens @ own["id_to_k.weight"].T, tokens @ own["id_to_v.weight"].T
    unet = base_unet(golden)
    path = flat_pickle({**golden.weights("adapter."), "id_adapter.latents": torch.ones(2)}, tmp_path / "pulid_v1.bin")
    arguments = {
        "sample": inputs["unet.latents"],
        "timestep": inputs["unet.timestep"].reshape(-1)[0],
        "encoder_hidden_states": inputs["unet.text"],
        "added_cond_kwargs": {"text_embeds": inputs["unet.pooled"], "time_ids": inputs["unet.time_ids"]},
    }
    modes = {"none": "add"}
    results = {"attn.no_id": run(module, inputs)}
    for name in golden.meta["outputs"]:
        match = re.fullmatch(r"(attn|unet)\.nz(\d+)\.(\w+)\.scale_([\d.]+)", name)
        if match is None:
            continue
        combine, zeros, scale = modes.get(match[3], match[3]), int(match[2]), float(match[4])
        if match[1] == "attn":
            results[name] = run(module, inputs, DecoupledPart(key, value, combine=combine, zeros=zeros), scale)
            continue
        adapter = PuLIDAdapter.from_pretrained(path, unet, combine=combine, zeros=zeros).inject(unet)
        conditioning = adapter.condition(inputs["unet.id_embedding"], guidance=False, scale=scale)
        with torch.no_grad():
            results[name] = unet(**arguments, cross_attention_kwargs=conditioning.kwargs).sample
        adapter.eject()
    golden.check(results)


@pytest.mark.parametrize("folder", goldens("wplus_attn_processor"), ids=lambda folder: folder.name)
def test_wplus_attention_equals_the_original(folder):
    golden = Golden(folder)
    inputs, own = golden.inputs(), golden.weights("processor.")
    tokens = inputs["w_tokens"]
    part = DecoupledPart(
        tokens @ own["to_k_wplus.weight"].T, tokens @ own["to_v_wplus.weight"].T, query=own["to_q_wplus.weight"]
    )
    module = layer(golden, "attn.")
    scales = enumerate(golden.config["scales"])
    golden.check({f"out.scale{index}": run(module, inputs, part, scale) for index, scale in scales})


@pytest.mark.parametrize("folder", goldens("pva_attention"), ids=lambda folder: folder.name)
def test_pva_attention_equals_the_original(folder):
    golden = Golden(folder)
    inputs, own = golden.inputs(), golden.weights()
    module = layer(golden, "")

    def visual(tokens: Tensor) -> JointPart:
        key, value = tokens @ own["to_visual_k.weight"].T, tokens @ own["to_visual_v.weight"].T
        return JointPart(key, value, query=own["to_visual_q.weight"])

    golden.check(
        {
            "with_visual": run(module, inputs, visual(inputs["visual"])),
            "text_only": run(module, inputs),
            "visual_x3": run(module, inputs, visual(inputs["visual"].repeat(1, 3, 1))),
        }
    )
