"""FaceChain-FACT against the original implementation, through the published container."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import GatedSelfAttentionDense
from torch import Tensor

from idgen.adapters.fact import FACTAdapter
from idgen.errors import IdgenError
from tests.conformance.golden import Golden, goldens
from tests.conformance.published import base_unet, flat_pickle, guided_batch

FOLDERS = goldens("fact_sd15")
EPS = r"eps\.n(\d+)\.scale_([\d.]+)(\.cfg_face_false)?"


def load(golden: Golden, unet: UNet2DConditionModel, folder: Path, **extra: Tensor) -> FACTAdapter:
    path = flat_pickle(golden.weights("adapter.") | extra, folder / "adapter_maj.ckpt")
    return FACTAdapter.from_pretrained(path, unet)


def run(unet: UNet2DConditionModel, inputs: dict[str, Tensor], kwargs: dict[str, Any] | None) -> Tensor:
    with torch.no_grad():
        return unet(**guided_batch(inputs), cross_attention_kwargs=kwargs).sample


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_fact(folder, tmp_path):
    golden = Golden(folder)
    inputs = golden.inputs()
    unet = base_unet(golden)
    adapter = load(golden, unet, tmp_path)
    assert adapter.config.norm is golden.config["checkpoint_has_ln"]
    results = {"eps_base": run(unet, inputs, None)}
    adapter.inject(unet)
    images = len(inputs["latents"])
    for name in golden.meta["outputs"]:
        if match := re.fullmatch(r"(neg_)?face_tokens\.(n\d+)", name):
            given = adapter.embed(inputs[f"face_features.{match[2]}"])
            with torch.no_grad():
                results[name] = adapter.project(*(adapter.null(*given) if match[1] else given))
        elif match := re.fullmatch(EPS, name):
            features, scale = inputs[f"face_features.n{match[1]}"], float(match[2])
            person = adapter.condition(features, images=images, scale=scale, cfg_face=match[3] is None)
            results[name] = run(unet, inputs, person.kwargs)
    golden.check(results)


@pytest.mark.parametrize("folder", FOLDERS[:1], ids=lambda folder: folder.name)
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_norms_in_the_file_take_the_place_of_the_bases(folder, scale, tmp_path):
    """Against diffusers' GLIGEN blocks: the fuser a real module, the base's norm2 overwritten, the scale in the gates."""
    golden = Golden(folder)
    inputs, unet = golden.inputs(), base_unet(golden)
    norms = {
        f"{path}.attn2.processor.ln.{end}": torch.randn(width) + float(end == "weight")
        for path, width in blocks(unet).items()
        for end in ("weight", "bias")
    }
    adapter = load(golden, unet, tmp_path, **norms).inject(unet)
    assert adapter.config.norm
    features = inputs["face_features.n2"]
    got = run(unet, inputs, adapter.condition(features, images=len(inputs["latents"]), scale=scale).kwargs)
    with torch.no_grad():
        given = adapter.embed(features)
        tokens = [adapter.project(*adapter.null(*given)), adapter.project(*given)]
    adapter.eject()
    plain = run(unet, inputs, None)
    expected = gligen(unet, golden.weights("adapter.") | norms, inputs, tokens, scale)
    assert torch.allclose(got, expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(got, plain, atol=1e-2)


def gligen(
    unet: UNet2DConditionModel,
    weights: dict[str, Tensor],
    inputs: dict[str, Tensor],
    tokens: list[Tensor],
    scale: float,
) -> Tensor:
    for path, width in blocks(unet).items():
        block: Any = unet.get_submodule(path)
        prefix = f"{path}.attn2.processor."
        own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        block.norm2.load_state_dict({end: own.pop(f"ln.{end}") for end in ("weight", "bias")})
        for gate in ("alpha_attn", "alpha_dense"):
            own[gate] = torch.atanh(scale * own[gate].tanh() * (1 - 1e-7))
        heads = block.attn2.heads
        block.fuser = GatedSelfAttentionDense(width, tokens[0].shape[-1], heads, width // heads).eval()
        block.fuser.load_state_dict(own)
    unet.position_net = lambda objs: objs
    batch = guided_batch(inputs)
    half = len(inputs["latents"])
    results = []
    for index, row in enumerate(tokens):
        part = {key: value[index * half :][:half] if key != "timestep" else value for key, value in batch.items()}
        objects = {"gligen": {"objs": row.expand(half, -1, -1)}}
        with torch.no_grad():
            results.append(unet(**part, cross_attention_kwargs=objects).sample)
    return torch.cat(results)


def blocks(unet: UNet2DConditionModel) -> dict[str, int]:
    """Paths of the transformer blocks, and their channels."""
    return {
        name.removesuffix(".attn2"): module.query_dim
        for name, module in unet.named_modules()
        if name.endswith(".attn2")
    }


@pytest.mark.parametrize("folder", FOLDERS[:1], ids=lambda folder: folder.name)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("local_fac_prj.norm_out.bias"), "1 missing: resampler.norm_out.bias"),
        (lambda state: state.pop(next(key for key in state if key.endswith("alpha_attn"))), "1 missing: .*alpha_attn"),
        (lambda state: state.update({"extra.processor.weight": torch.ones(1)}), "1 unexpected: extra.processor.weight"),
        (lambda state: state.update({"local_fac_prj.proj_out.weight": torch.ones(2048, 80)}), "made for SDXL"),
        (
            lambda state: state.update(
                {f"{next(iter(state)).partition('processor')[0]}processor.ln.weight": torch.ones(16)}
            ),
            "missing: .*ln",
        ),
    ],
    ids=["resampler", "gate", "unknown", "base", "norm"],
)
def test_a_file_that_does_not_fit_is_named(folder, change, message, tmp_path):
    golden = Golden(folder)
    weights = golden.weights("adapter.")
    change(weights)
    with pytest.raises(IdgenError, match=message) as error:
        FACTAdapter.from_pretrained(flat_pickle(weights, tmp_path / "adapter.ckpt"), base_unet(golden))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("folder", FOLDERS[:1], ids=lambda folder: folder.name)
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(2, 3, 144, 100), "people, references, patches, 512"),
        (torch.zeros(1, 2, 3, 144, 512), "references, patches, 512"),
        ([torch.zeros(1, 144, 512), torch.zeros(2, 144, 512)], "same number of references"),
        (torch.full((1, 144, 512), torch.nan), "NaN"),
        (torch.zeros(65, 144, 512), "at most 64"),
        ("me.jpg", "not str"),
    ],
    ids=["width", "axes", "references", "nan", "many", "type"],
)
def test_features_that_do_not_fit_are_named(folder, features, message, tmp_path):
    golden = Golden(folder)
    adapter = load(golden, base_unet(golden), tmp_path)
    with pytest.raises(IdgenError, match=message):
        adapter.embed(features)
