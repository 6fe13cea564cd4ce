"""Loading and saving InstantIDPipeline: the published layout, saved folders, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import MultiControlNetModel, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from idgen.conversion import convert_weights
from idgen.errors import IdgenError
from idgen.pipelines import InstantIDImg2ImgPipeline, InstantIDPipeline
from tests.tiny import tiny_components
from tests.tiny_sdxl import (
    SIZE,
    person,
    published_layout,
    sdxl_components,
    sdxl_folder,
    tiny_controlnet,
    tiny_instantid,
)

NET = "ControlNetModel/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return sdxl_folder(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    unet = sdxl_components()["unet"]
    return published_layout(tmp_path_factory.mktemp("hub") / "InstantID", tiny_instantid(unet), tiny_controlnet())


def load(source, cls=InstantIDPipeline, **options):
    pipe = cls.from_pretrained(source, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def narrow_heads(monkeypatch):
    """The tiny projection's heads are 8 wide, which its weights do not tell; the published one's are 64."""
    from idgen.adapters.instantid import adapter

    convert = adapter.convert
    monkeypatch.setattr(adapter, "convert", lambda *given, **options: convert(*given, **options, dim_head=8))


def latents(pipe, **options):
    defaults = {"num_inference_steps": 2, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    return pipe(person(0), "photo", **defaults | options).images


def expected():
    pipe = InstantIDPipeline(**sdxl_components(), controlnet=tiny_controlnet(), add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return latents(pipe.load_instantid(tiny_instantid(pipe.unet)))


def same(made, wanted):
    """Weights read from a file lie at other addresses than fresh ones, and some CPUs then sum in another order."""
    return torch.allclose(made, wanted, rtol=0, atol=1e-5)


def edited(repository, tmp_path, file, change):
    copy = shutil.copytree(repository, tmp_path / "copy")
    state = load_file(copy / file)
    change(state)
    save_file(state, copy / file)
    return copy


def test_the_published_layout_beside_a_base(repository, base):
    pipe = load(repository, base=base)
    assert same(latents(pipe), expected())
    assert not any(part.training for part in (pipe.unet, pipe.controlnet, pipe.vae, pipe.instantid))


def test_a_folder_that_holds_both(repository, base, tmp_path):
    both = shutil.copytree(base, tmp_path / "both")
    shutil.copytree(repository, both, dirs_exist_ok=True)
    assert same(latents(load(both)), expected())


def test_a_converted_adapter_serves_as_the_published_one(repository, base, tmp_path):
    copy = shutil.copytree(repository, tmp_path / "copy")
    convert_weights(copy / "ip-adapter.bin", copy / "ip-adapter.safetensors")
    (copy / "ip-adapter.bin").unlink()
    assert same(latents(load(copy, base=base)), expected())


def test_what_is_saved_loads_to_the_same_pipeline(repository, base, tmp_path):
    load(repository, base=base).save_pretrained(tmp_path / "mine")
    index = json.loads((tmp_path / "mine" / "model_index.json").read_text())
    assert index["_class_name"] == "InstantIDPipeline" and index["controlnet"] == ["diffusers", "ControlNetModel"]
    assert same(latents(load(tmp_path / "mine")), expected())
    assert isinstance(load(tmp_path / "mine", InstantIDImg2ImgPipeline), InstantIDImg2ImgPipeline)
    other = sdxl_folder(tmp_path / "other", seed=1)
    assert not torch.allclose(latents(load(tmp_path / "mine", base=other)), expected(), atol=1e-4), "another base"


def test_further_controlnets_are_saved_and_loaded_in_their_order(repository, base, tmp_path):
    pipe = load(repository, base=base)
    both = InstantIDPipeline.from_pipe(pipe, controlnet=[pipe.controlnet, tiny_controlnet(seed=7)])
    both.save_pretrained(tmp_path / "mine")
    again = load(tmp_path / "mine")
    assert isinstance(again.controlnet, MultiControlNetModel)
    options = {"control_image": torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))}
    both.set_progress_bar_config(disable=True)
    assert same(latents(again, **options), latents(both, **options))


def test_a_plain_sdxl_becomes_instantid_and_back(repository, base):
    plain = StableDiffusionXLPipeline.from_pretrained(base)
    pipe = InstantIDPipeline.from_pipe(plain, controlnet=tiny_controlnet()).load_instantid(
        repository / "ip-adapter.bin"
    )
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet is plain.unet and same(latents(pipe), expected())
    pipe.load_instantid(repository / "ip-adapter.bin")
    assert same(latents(pipe), expected())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype_is_that_asked_for(repository, base, dtype):
    pipe = load(repository, base=base, torch_dtype=dtype)
    parts = (pipe.unet, pipe.controlnet, pipe.vae, pipe.text_encoder_2)
    assert {part.dtype for part in parts} | {next(pipe.instantid.parameters()).dtype} == {dtype}
    assert InstantIDPipeline.from_pipe(pipe).unet.dtype == dtype


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("InstantX/InstantID", "with a network run: hf download InstantX/InstantID"),
        ("no/such/folder", "no such folder"),
        ("mini", "no mini InstantID"),
    ],
)
def test_a_source_that_is_not_here_is_named(source, message):
    with pytest.raises(IdgenError, match=message) as error:
        load(source)
    assert "\n" not in str(error.value)


def test_a_base_that_is_not_here_is_named(repository):
    with pytest.raises(IdgenError, match=r"hf download stabilityai/stable-diffusion-xl-base-1\.0"):
        load(repository)


def test_other_folders_and_other_bases_are_refused(repository, base, tmp_path):
    with pytest.raises(IdgenError, match="not an InstantID model"):
        load(base)
    with pytest.raises(IdgenError, match="is a file"):
        load(repository / "ip-adapter.bin")
    parts = tiny_components() | {"safety_checker": None, "feature_extractor": None}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(tmp_path / "sd15")
    with pytest.raises(IdgenError, match="SDXL"):
        load(repository, base=tmp_path / "sd15")
    with pytest.raises(IdgenError, match="cannot load SDXL"):
        load(repository, base=repository)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(sorted(state)[0]), "1 missing"),
        (lambda state: state.update(surprise=torch.zeros(1)), "1 unexpected: surprise"),
        (lambda state: state.update({sorted(state)[0]: torch.zeros(7)}), "1 misshapen"),
        (lambda state: state[sorted(state)[0]].fill_(torch.nan), "NaN"),
    ],
    ids=["missing", "unexpected", "misshapen", "nan"],
)
def test_an_identitynet_that_does_not_fit_is_named(repository, base, tmp_path, change, message):
    with pytest.raises(IdgenError, match=message):
        load(edited(repository, tmp_path, NET, change), base=base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda groups: groups["ip_adapter"].pop("1.to_k_ip.weight"), "1 missing: ip_adapter.1.to_k_ip.weight"),
        (lambda groups: groups["ip_adapter"].update({"0.to_k_ip.weight": torch.zeros(1)}), "1 unexpected"),
        (lambda groups: groups["image_proj"].pop("latents"), "latents"),
        (lambda groups: groups["image_proj"].update({"proj_in.weight": torch.zeros(8, 1280)}), "IP-Adapter-Plus"),
        (lambda groups: groups["image_proj"].update({"proj_out.weight": torch.zeros(768, 8)}), "published for SDXL"),
    ],
)
def test_an_adapter_that_does_not_fit_is_named(repository, base, tmp_path, change, message):
    copy = shutil.copytree(repository, tmp_path / "copy")
    groups = torch.load(copy / "ip-adapter.bin")
    change(groups)
    torch.save(groups, copy / "ip-adapter.bin")
    with pytest.raises(IdgenError, match=message):
        load(copy, base=base)
