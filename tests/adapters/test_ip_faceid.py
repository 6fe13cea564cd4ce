"""Variants of IP-Adapter-FaceID that no golden has, against diffusers' own loader: Portrait, SDXL, several references."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from idgen.adapters.embeddings import RawEmbeddings, UnitEmbeddings
from idgen.adapters.ip_faceid import IPFaceIDAdapter
from idgen.adapters.ip_faceid.convert import convert
from idgen.adapters.layers import attention_layers
from idgen.errors import IdgenError
from idgen.models.face_projections import FaceIDPlusProjection
from tests.adapters.bases import WIDTH, call_arguments, predict, tiny_unet
from tests.conformance.published import nested_pickle

PEOPLE, REFERENCES = 2, 3
RECOGNISER = "w600k_r50"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def published(base: str, tokens: int, width: int = WIDTH) -> dict[str, Tensor]:
    """A file without low-rank changes, which diffusers would load as a LoRA of its own."""
    state = {
        "image_proj.proj.0.weight": noise(1024, 512) / 20,
        "image_proj.proj.0.bias": noise(1024, seed=1),
        "image_proj.proj.2.weight": noise(tokens * width, 1024, seed=2) / 30,
        "image_proj.proj.2.bias": noise(tokens * width, seed=3),
        "image_proj.norm.weight": noise(width, seed=4),
        "image_proj.norm.bias": noise(width, seed=5),
    }
    for layer in attention_layers(tiny_unet(base)):
        if layer.cross:
            for letter in "kv":
                name = f"ip_adapter.{layer.index}.to_{letter}_ip.weight"
                state[name] = noise(layer.hidden, width, seed=10 * layer.index + ord(letter)) / 3
    return state


def by_diffusers(base: str, state: dict[str, Tensor], embeddings: Tensor, arguments: dict, scale: float) -> Tensor:
    """What a UNet gives with diffusers' loader; embeddings (people, references, 512), nobody's are zeros."""
    unet = tiny_unet(base)
    groups = {
        group: {key.removeprefix(f"{group}."): value for key, value in state.items() if key.startswith(group)}
        for group in ("image_proj", "ip_adapter")
    }
    unet._load_ip_adapter_weights([groups])
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [scale]
    added = {**arguments.get("added_cond_kwargs", {}), "image_embeds": [torch.cat([0 * embeddings, embeddings])]}
    with torch.no_grad():
        return unet(**{**arguments, "added_cond_kwargs": added}).sample


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
@pytest.mark.parametrize("name", ["ip-adapter-faceid-portrait_sd15.bin", "ip-adapter-faceid-portrait_sdxl_unnorm.bin"])
def test_portrait_reads_every_reference_as_diffusers_does(base: str, name: str, tmp_path: Path) -> None:
    state, arguments = published(base, 16), call_arguments(tiny_unet(base), 2 * PEOPLE)
    raw = 20 * noise(PEOPLE, REFERENCES, 512, seed=7)
    given = raw if "unnorm" in name else torch.nn.functional.normalize(raw, dim=-1)
    expected = by_diffusers(base, state, given, arguments, 0.7)
    unet = tiny_unet(base)
    adapter = IPFaceIDAdapter.from_pretrained(nested_pickle(state, tmp_path / name), unet).inject(unet)
    assert adapter.config.concatenate and not adapter.config.rank
    people = [RawEmbeddings(rows, RECOGNISER) for rows in raw]
    with torch.no_grad():
        got = predict(unet, arguments, adapter.condition(people, scale=0.7))
        assert adapter.project(*adapter.embed(people)).shape == (PEOPLE, REFERENCES * 16, WIDTH)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(got, predict(unet, arguments), atol=1e-3)
    if "unnorm" in name:
        with pytest.raises(IdgenError, match="raw"):
            adapter.condition(UnitEmbeddings(torch.nn.functional.normalize(raw[0], dim=-1), RECOGNISER))


def test_faceid_for_sdxl_pools_the_references_and_equals_diffusers(tmp_path: Path) -> None:
    state, arguments = published("sdxl", 4), call_arguments(tiny_unet("sdxl"), 2 * PEOPLE)
    raw = 20 * noise(PEOPLE, REFERENCES, 512, seed=7)
    pooled = torch.nn.functional.normalize(torch.nn.functional.normalize(raw, dim=-1).mean(1), dim=-1)
    expected = by_diffusers("sdxl", state, pooled[:, None], arguments, 1.0)
    unet = tiny_unet("sdxl")
    path = nested_pickle(state, tmp_path / "ip-adapter-faceid_sdxl.bin")
    adapter = IPFaceIDAdapter.from_pretrained(path, unet).inject(unet)
    got = predict(unet, arguments, adapter.condition([RawEmbeddings(rows, RECOGNISER) for rows in raw]))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_a_file_for_sdxl_is_said_to_be_for_sdxl_and_the_unet_is_unchanged(tmp_path: Path) -> None:
    unet = tiny_unet("sd15")
    arguments = call_arguments(unet, 2)
    before = predict(unet, arguments)
    path = nested_pickle(published("sdxl", 4, 2048), tmp_path / "ip-adapter-faceid_sd15.bin")  # whatever its name says
    with pytest.raises(IdgenError, match="was made for SDXL"):
        IPFaceIDAdapter.from_pretrained(path, unet)
    assert torch.equal(predict(unet, arguments), before)


@pytest.mark.parametrize(
    ("name", "shortcut"),
    [
        ("ip-adapter-faceid-plusv2_sd15.bin", True),
        ("faceid-plus-v2.bin", True),
        ("FaceID_Plus_V2 sd15.safetensors", True),
        ("ip-adapter-faceid-plus_sd15.bin", False),
    ],
)
def test_plus_v2_is_told_by_its_name_however_that_is_written(name: str, shortcut: bool) -> None:
    projection = FaceIDPlusProjection(cross_attention_dim=64, clip_dim=16, depth=1)
    state = published("sd15", 4, 64) | {f"image_proj.{key}": value for key, value in projection.state_dict().items()}
    layers = attention_layers(tiny_unet("sd15", cross_attention_dim=64))
    assert convert(state, layers, source=name)[0].shortcut is shortcut
