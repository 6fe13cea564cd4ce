"""A recogniser has one name: that by which FaceEncoder loads it. Called after its file, as older files do, it is the same."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from idgen.adapters import load_adapter
from idgen.adapters.embeddings import RawEmbeddings
from idgen.checkpoint import load_metadata
from idgen.errors import IdgenError
from idgen.faces.insightface_backend import PACKS
from idgen.identity import Identity
from tests.adapters.bases import tiny_unet
from tests.adapters.cases import CASES
from tests.faces.packs import photo, write_pack

RAW = torch.randn(1, 512, generator=torch.Generator().manual_seed(0))
NAMES = {"ip_faceid": ("buffalo_l", "w600k_r50"), "instantid": ("antelopev2", "glintr100")}
EACH = [pytest.param(method, name, id=f"{method}-{name}") for method, names in NAMES.items() for name in names]


def built(method):
    return next(case for case in CASES if case.method == method).build(tiny_unet("sdxl"))


@pytest.mark.parametrize(("method", "name"), EACH)
def test_people_of_either_name_are_understood(method, name, tmp_path):
    adapter = built(method)
    assert adapter.config.recogniser in PACKS
    Identity(RAW, name).save(tmp_path / "anna.safetensors")
    for person in (Identity(RAW, name), RawEmbeddings(RAW, name), Identity.load(tmp_path / "anna.safetensors")):
        assert person.recogniser == adapter.config.recogniser
        assert torch.equal(adapter.embed(person)[0], adapter.embed(Identity(RAW, NAMES[method][0]))[0])


def test_names_of_one_recogniser_mix():
    assert len(Identity.concat([Identity(RAW, "buffalo_l"), Identity(RAW, "w600k_r50")])) == 2


@pytest.mark.parametrize("method", NAMES)
def test_identity_and_adapter_files_with_a_recognisers_file_name_still_work(method, tmp_path):
    pack, file_name = NAMES[method]
    built(method).save(tmp_path / "adapter.safetensors")
    header = load_metadata(tmp_path / "adapter.safetensors")
    header["config"] = json.dumps({**json.loads(header["config"]), "recogniser": file_name})
    save_file(load_file(tmp_path / "adapter.safetensors"), tmp_path / "old.safetensors", header)
    adapter = load_adapter(tmp_path / "old.safetensors", tiny_unet("sdxl"))
    save_file({"raw": RAW}, tmp_path / "anna.safetensors", {"format": "idgen-identity-1", "recogniser": file_name})
    for person in (Identity.load(tmp_path / "anna.safetensors"), Identity(RAW, pack)):
        assert len(adapter.embed(person)[0]) == 1


@pytest.mark.parametrize("method", [*NAMES, "pva"])
def test_the_advice_for_another_recognisers_people_works(method):
    with pytest.raises(IdgenError) as error:
        built(method).embed(Identity(RAW, "mini"))
    advised = re.findall(r"from_pretrained\('(\w+)'\)", str(error.value))
    assert advised == ([NAMES[method][0]] if method in NAMES else [])  # no encoder of ours is PVA's
    assert advised or str(error.value).endswith("with 'ms1mv3_r50': embed the photos again with that one")


@pytest.mark.parametrize("method", NAMES)
def test_what_a_face_encoder_makes_is_understood(method, tmp_path):
    from idgen import FaceEncoder

    write_pack(tmp_path, recogniser=f"{NAMES[method][1]}.onnx")
    anna = FaceEncoder.from_pretrained(tmp_path, device="cpu")(photo((40, 30, 255)))
    assert anna.recogniser == NAMES[method][0] and len(built(method).embed(anna)[0]) == 1
