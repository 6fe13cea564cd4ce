"""`load_adapter` finds the method by itself."""

import pytest
import torch

from idgen import checkpoint
from idgen.adapters import load_adapter
from idgen.adapters.ip_faceid import IPFaceIDAdapter
from idgen.adapters.pva.sources import load_adapter as load_pva
from idgen.adapters.wplus import WPlusAdapter
from idgen.conversion import convert_weights
from idgen.errors import IdgenError
from tests.adapters.bases import call_arguments, predict, tiny_unet
from tests.adapters.cases import CASES
from tests.layouts import LAYOUTS, write

FACEID = next(case for case in CASES if case.method == "ip_faceid")
WPLUS = next(case for case in CASES if case.method == "wplus")


def published(adapter, layers, path):
    """A FaceID adapter in the container of its authors."""
    from idgen.adapters.ip_faceid.convert import layer_names

    ours = adapter.state_dict()
    flat = {theirs: ours[name] for theirs, name in layer_names(layers, True).items()}
    flat |= {name: value for name, value in ours.items() if name.startswith("image_proj.")}
    groups: dict = {}
    for key, value in flat.items():
        group, _, rest = key.partition(".")
        groups.setdefault(group, {})[rest] = value
    torch.save(groups, path)
    return path


def test_the_method_is_told_by_the_file(tmp_path):
    unet = tiny_unet("sd15")
    faceid, wplus = FACEID.build(unet), WPLUS.build(unet)
    faceid.save(tmp_path / "a.safetensors")
    wplus.save(tmp_path / "b.safetensors")
    assert isinstance(load_adapter(tmp_path / "a.safetensors", unet), IPFaceIDAdapter)
    assert isinstance(load_adapter(tmp_path / "b.safetensors", unet), WPlusAdapter)


def test_published_and_converted_files_load_the_same(tmp_path):
    unet = tiny_unet("sd15")
    adapter = FACEID.build(unet)
    path = published(adapter, adapter.layers, tmp_path / "ip-adapter-faceid_sd15.bin")
    convert_weights(path, tmp_path / "converted.safetensors")
    for file in (path, tmp_path / "converted.safetensors"):
        loaded = load_adapter(file, unet)
        assert all(torch.equal(value, adapter.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("load", [load_adapter, WPlusAdapter.from_pretrained], ids=["load_adapter", "from_pretrained"])
def test_options_for_a_file_that_says_all_are_named(load, tmp_path):
    unet = tiny_unet("sd15")
    WPLUS.build(unet).save(tmp_path / "a.safetensors")
    with pytest.raises(IdgenError, match=r"a\.safetensors.*'nonsense', 'zeros'"):
        load(tmp_path / "a.safetensors", unet, nonsense=1, zeros=8)
    assert load(tmp_path / "a.safetensors", unet, dtype=torch.float16).kv is not None


def test_a_saved_adapter_is_read_once_and_may_hold_settings_only(tmp_path, monkeypatch):
    unet = tiny_unet("sd15")
    cache = next(case for case in CASES if case.method == "cachekv").build(unet)
    cache.save(tmp_path / "cache.safetensors")
    monkeypatch.setattr(checkpoint, "sha256", lambda path: pytest.fail("read a second time"))
    loaded = load_adapter(tmp_path / "cache.safetensors", unet)
    assert loaded.method == "cachekv" and loaded.config == cache.config


def test_pva_loads_what_it_saved(tmp_path):
    unet = tiny_unet("sd2-inpaint")
    adapter = next(case for case in CASES if case.method == "pva").build(unet)
    adapter.save(tmp_path / "pva.safetensors")
    loaded = load_pva(tmp_path / "pva.safetensors", unet)
    assert all(torch.equal(value, adapter.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_an_adapter_for_a_unet_that_is_offloaded_layer_by_layer_has_its_weights(tmp_path):
    from accelerate import cpu_offload

    unet = tiny_unet("sd15")
    adapter = WPLUS.build(unet)
    arguments = call_arguments(unet, 2)
    adapter.inject(unet)
    expected = predict(unet, arguments, adapter.condition([WPLUS.person(0)]))
    adapter.eject().save(tmp_path / "a.safetensors")
    cpu_offload(unet, "cpu")
    assert unet.device.type == "meta"
    loaded = load_adapter(tmp_path / "a.safetensors", unet).inject(unet)
    torch.testing.assert_close(predict(unet, arguments, loaded.condition([WPLUS.person(0)])), expected)


def test_another_file_is_said_to_be_what_it_is(tmp_path):
    torch.save({"somebody.weight": torch.ones(2, 2)}, tmp_path / "other.bin")
    with pytest.raises(IdgenError, match="no identity adapter"):
        load_adapter(tmp_path / "other.bin", tiny_unet("sd15"))


def test_a_truncated_file_leaves_the_unet_alone(tmp_path):
    unet = tiny_unet("sd15")
    FACEID.build(unet).save(tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(IdgenError):
        load_adapter(tmp_path / "a.safetensors", unet)
    assert "_idgen_host" not in vars(unet)


BASES = {"Stable Diffusion 1.5": ("sd15", 768), "Stable Diffusion 2": ("sd2-inpaint", 1024), "SDXL": ("sdxl", 2048)}
PUBLISHED = {
    "arc2face-expression",
    "arc2face-reference",
    "fact",
    "instantid",
    "ip-adapter-faceid",
    "ip-adapter-faceid-plus",
    "ip-adapter-faceid-plusv2",
    "ip-adapter-faceid-portrait",
    "pulid-v1",
    "pulid-v1.1",
    "pva",
    "wplus",
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", sorted(PUBLISHED))
def test_a_published_file_for_another_base_is_refused_in_words(kind, base, tmp_path):
    path, _ = write(tmp_path, kind)
    family = LAYOUTS[kind][2]
    shape, width = BASES[base]
    unet = tiny_unet(shape, cross_attention_dim=width)
    with pytest.raises(
        IdgenError, match=r"made for|missing|do not fit"
    ) as error:  # these files hold a few tensors only: none loads
        load_adapter(path, unet)
    in_words = f"made for {family}, and this UNet is {base}" in str(error.value)
    assert in_words == (family != base) and "\n" not in str(error.value)
