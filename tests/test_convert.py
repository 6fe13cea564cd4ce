"""`idgen convert`: what a weights file is, and the same weights as safetensors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import huggingface_hub.constants
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from idgen import Identity, cli
from idgen.checkpoint import load_metadata, load_weights, sha256
from idgen.conversion import convert_weights
from idgen.errors import IdgenError
from idgen.inspection import inspect_weights
from idgen.signatures import SIGNATURES
from idgen.version import __version__
from tests.faces.packs import export, random_iresnet, scrfd
from tests.layouts import LAYOUTS, unet, write
from tests.renders import Refused
from tests.tiny import tiny_components


def report_of(capfd: pytest.CaptureFixture[str], *argv: str | Path) -> dict:
    assert cli.main([*map(str, argv), "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def test_every_kind_has_a_layout_here() -> None:
    assert set(LAYOUTS) == {entry.kind for entry in SIGNATURES}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_published_file_is_told_from_its_keys(kind: str, tmp_path: Path) -> None:
    path, tensors = write(tmp_path, kind)
    report = inspect_weights(path)
    assert (report.kind, report.family) == (kind, LAYOUTS[kind][2])
    assert report.tensors == len(tensors)
    assert report.parameters == report.dtypes["float32"] == sum(tensor.numel() for tensor in tensors.values())
    assert report.sha256 == sha256(path) and report.bytes == path.stat().st_size


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_is_converted_holds_the_same_values_and_says_what_it_is(kind: str, tmp_path: Path) -> None:
    source, tensors = write(tmp_path, kind)
    out = tmp_path / "out" / "converted.safetensors"
    convert_weights(source, out)
    converted = load_file(out)
    if kind in ("clip-text", "arc2face-encoder"):
        tensors = {key.removeprefix("text_model."): value for key, value in tensors.items()}
    elif kind == "autoencoder":
        tensors = {key.replace("query", "to_q"): value for key, value in tensors.items()}
    assert converted.keys() == tensors.keys()
    assert all(torch.equal(converted[key], value) for key, value in tensors.items())
    before, after = inspect_weights(source), inspect_weights(out)
    assert (after.kind, after.method, after.family, after.licence) == (
        before.kind,
        before.method,
        before.family,
        before.licence,
    )
    header = load_metadata(out)
    assert header["format"] == "idgen-weights-1" and header["version"] == __version__
    assert header["source"] == source.name and header["source_sha256"] == sha256(source)
    assert str(tmp_path) not in str(header)


def test_the_models_of_the_libraries_are_recognised(tmp_path: Path) -> None:
    kinds = {"unet": "unet", "text_encoder": "clip-text", "vae": "autoencoder"}
    components = tiny_components()
    for name, kind in kinds.items():
        components[name].save_pretrained(tmp_path / name)
        (path,) = (tmp_path / name).glob("*.safetensors")
        report = inspect_weights(path)
        assert report.kind == kind
        assert any(type(components[name]).__name__ in note for note in report.notes)


@pytest.mark.parametrize(
    ("width", "words"),
    [(512, "the mini family"), (768, "Stable Diffusion 1.5"), (1024, "Stable Diffusion 2"), (2048, "SDXL"), (96, None)],
)
def test_the_base_is_told_in_words(width: int, words: str | None, tmp_path: Path) -> None:
    save_file({key: torch.zeros(shape) for key, shape in unet(width).items()}, tmp_path / "unet.safetensors")
    report = inspect_weights(tmp_path / "unet.safetensors")
    assert report.family == words
    assert any("text of width 96" in note for note in report.notes) == (words is None)


def test_an_onnx_recogniser_gets_the_names_that_its_authors_gave(tmp_path: Path) -> None:
    network = random_iresnet((1, 2, 1, 1))
    export(network, tmp_path / "w600k_r50.onnx")
    report = convert_weights(tmp_path / "w600k_r50.onnx", tmp_path / "backbone.safetensors")
    assert report.kind == "iresnet" and "blocks per stage: 1, 2, 1, 1" in report.notes
    converted = load_file(tmp_path / "backbone.safetensors")
    assert converted.keys() == network.state_dict().keys()
    assert torch.equal(converted["fc.weight"], network.state_dict()["fc.weight"])


def test_other_onnx_models_are_told_and_not_converted(refused: Refused, tmp_path: Path) -> None:
    onnx.save(scrfd(), tmp_path / "det_10g.onnx")
    assert inspect_weights(tmp_path / "det_10g.onnx").kind == "onnx"
    assert "ONNX model" in refused("convert", tmp_path / "det_10g.onnx", tmp_path / "out.safetensors")


def test_an_identity_is_told_and_not_converted(
    capfd: pytest.CaptureFixture[str], refused: Refused, tmp_path: Path
) -> None:
    path = tmp_path / "anna.safetensors"
    identity = Identity(torch.randn(2, 512), "mini")
    identity.save(path)
    report = report_of(capfd, "convert", "--inspect", path)
    assert report["kind"] == "identity" and report["metadata"]["recogniser"] == "mini"
    assert f"{identity.raw[0, 0]:.4f}"[:6] not in json.dumps(report)
    assert "identity file" in refused("convert", path, tmp_path / "out.safetensors")


def test_an_identity_is_not_replaced(refused: Refused, tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "w.safetensors")
    Identity(torch.randn(2, 512), "mini").save(tmp_path / "anna.safetensors")
    assert "is a face embedding" in refused("convert", tmp_path / "w.safetensors", tmp_path / "anna.safetensors")


def test_what_is_unknown_is_converted_all_the_same(tmp_path: Path) -> None:
    half = torch.randn(3, dtype=torch.bfloat16)
    torch.save({"model": {"a": half}, "optimizer": {"exp_avg": torch.ones(3)}}, tmp_path / "own.pth")
    report = convert_weights(tmp_path / "own.pth", tmp_path / "own.safetensors")
    assert (report.kind, report.method, report.dtypes) == ("unknown", None, {"bfloat16": 3})
    assert torch.equal(load_weights(tmp_path / "own.safetensors")["a"], half)


def test_plus_and_plus_v2_are_told_by_the_name_or_by_method(
    capfd: pytest.CaptureFixture[str], refused: Refused, tmp_path: Path
) -> None:
    path, _ = write(tmp_path, "ip-adapter-faceid-plusv2")
    renamed = path.rename(tmp_path / "weights.bin")
    report = report_of(capfd, "convert", "--inspect", renamed)
    assert report["kind"] == "ip-adapter-faceid-plus" and "plusv2" in report["notes"][0]
    report = report_of(capfd, "convert", renamed, tmp_path / "a.safetensors", "--method", "ip-adapter-faceid-plusv2")
    assert report["kind"] == "ip-adapter-faceid-plusv2" and report["output"] == str(tmp_path / "a.safetensors")
    assert report_of(capfd, "convert", "--inspect", tmp_path / "a.safetensors")["kind"] == "ip-adapter-faceid-plusv2"
    assert (
        report_of(capfd, "convert", "--inspect", renamed, "--method", "ip_faceid")["kind"] == "ip-adapter-faceid-plus"
    )
    line = refused("convert", renamed, tmp_path / "b.safetensors", "--method", "instantid")
    assert "is not instantid" in line and "IP-Adapter-FaceID-Plus" in line
    assert "unknown method 'faceid'" in refused("convert", "--inspect", renamed, "--method", "faceid")


def test_an_output_that_is_there_is_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    for kind in ("wplus", "fact"):
        source, tensors = write(tmp_path, kind)
        convert_weights(source, out)
        assert load_file(out).keys() == tensors.keys()


def test_mistakes_are_one_line(refused: Refused, tmp_path: Path) -> None:
    source, _ = write(tmp_path, "pulid-v1.1")
    assert "--inspect" in refused("convert", source)
    assert "writes nothing" in refused("convert", "--inspect", source, tmp_path / "out.safetensors")
    assert "end in .safetensors" in refused("convert", source, tmp_path / "out.bin")
    assert "is the file to read" in refused("convert", source, source)
    assert "no such weights file" in refused("convert", tmp_path / "none.bin", tmp_path / "out.safetensors")
    assert "is a folder" in refused("convert", "--inspect", tmp_path)
    assert "cannot write" in refused("convert", source, "/proc/idgen/out.safetensors")


def test_a_file_on_the_hub_comes_from_the_cache_at_its_revision(
    capfd: pytest.CaptureFixture[str], refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--someone--Adapter"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "v1").write_text("b" * 40)
    write(repo / "snapshots" / ("b" * 40), "wplus")
    source = "someone/Adapter@v1:wplus_adapter.bin"
    assert report_of(capfd, "convert", "--inspect", source)["kind"] == "wplus"
    report_of(capfd, "convert", source, tmp_path / "out.safetensors")
    assert load_metadata(tmp_path / "out.safetensors")["source"] == source
    line = refused("convert", "--inspect", "someone/Adapter@v2:wplus_adapter.bin")
    assert line.endswith("with a network run: hf download someone/Adapter wplus_adapter.bin --revision v2")


def test_damaged_metadata_does_not_pass_for_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1)}, path, {"format": "idgen-weights-1", "kind": "instantid"})
    assert inspect_weights(path).kind == "unknown"


def test_nan_is_refused_with_the_tensors_name(refused: Refused, tmp_path: Path) -> None:
    torch.save({"ip_adapter": {"1.to_k_ip.weight": torch.full((2, 768), torch.nan)}}, tmp_path / "a.bin")
    for arguments in (["--inspect"], [tmp_path / "out.safetensors"]):
        assert "'ip_adapter.1.to_k_ip.weight' holds NaN" in refused("convert", tmp_path / "a.bin", *arguments)


def test_an_error_of_a_converter_leaves_no_output(tmp_path: Path) -> None:
    state = {"text_model.final_layer_norm.weight": torch.ones(2), "final_layer_norm.weight": torch.ones(2)}
    state |= {"embeddings.token_embedding.weight": torch.ones(2, 2)}
    save_file(state, tmp_path / "twice.safetensors")
    with pytest.raises(IdgenError, match="twice"):
        convert_weights(tmp_path / "twice.safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def in_shards(folder: Path, kind: str, suffix: str = "safetensors") -> tuple[Path, dict[str, torch.Tensor]]:
    """A published layout in two shards with their index, as diffusers and transformers write them."""
    _, tensors = write(folder / "whole", kind)
    folder.mkdir(exist_ok=True)
    weight_map: dict[str, str] = {}
    names = [f"model-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    for number, name in enumerate(names):
        own = {key: value for index, (key, value) in enumerate(tensors.items()) if index % 2 == number}
        weight_map |= dict.fromkeys(own, name)
        if suffix == "bin":
            torch.save(own, folder / name)
        else:
            save_file(own, folder / name)
    index = folder / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index, tensors


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_in_shards_are_one_by_their_index_or_folder(
    suffix: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    index, tensors = in_shards(tmp_path / "model", "unet", suffix)
    shards = sorted((tmp_path / "model").glob(f"model-*.{suffix}"))
    report = report_of(capfd, "convert", "--inspect", index)
    assert report["kind"] == "unet" and report["tensors"] == len(tensors) and "2 shards" in report["notes"]
    assert report["bytes"] == sum(shard.stat().st_size for shard in shards)
    digest = hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()
    assert report["sha256"] == digest
    for source in (index, tmp_path / "model"):
        report_of(capfd, "convert", source, tmp_path / "out.safetensors")
        converted = load_file(tmp_path / "out.safetensors")
        assert converted.keys() == tensors.keys()
        assert all(torch.equal(converted[key], value) for key, value in tensors.items())
        assert load_metadata(tmp_path / "out.safetensors")["source_sha256"] == digest
        (tmp_path / "out.safetensors").unlink()
    alone = report_of(capfd, "convert", "--inspect", shards[0])
    assert any("one of 2 shards" in note for note in alone["notes"])


def test_shards_that_do_not_fit_their_index_are_refused_whole(refused: Refused, tmp_path: Path) -> None:
    index, tensors = in_shards(tmp_path / "model", "unet")
    good = index.read_text()
    first, second = sorted(tensors)[:2]
    out = tmp_path / "out.safetensors"

    def line(change: dict | str) -> str:
        index.write_text(change if isinstance(change, str) else json.dumps(change))
        return refused("convert", index, out)

    whole = json.loads(good)["weight_map"]
    outside = str(tmp_path / "elsewhere.safetensors")
    assert "outside its own folder" in line({"weight_map": whole | {first: outside}})
    assert "outside its own folder" in line({"weight_map": whole | {first: "../model/a.safetensors"}})
    assert "lacks 'more'" in line({"weight_map": whole | {"more": whole[first]}})
    assert f"also holds {first!r}" in line({"weight_map": {k: v for k, v in whole.items() if k != first}})
    assert "no such weights file" in line({"weight_map": whole | {first: "model-00003-of-00003.safetensors"}})
    assert "no file of weights" in line({"weight_map": {first: index.name}})
    for nothing in ("{}", "[]", "not JSON", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": [1]}'):
        assert "not an index" in line(nothing)
    index.write_text(good)
    shard = index.with_name(whole[second])
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    assert shard.name in refused("convert", index, out)
    shard.write_bytes(content)
    assert "is the file to read" in refused("convert", index, shard)
    assert not out.exists() and load_weights(index).keys() == tensors.keys()


def test_a_folder_without_one_index_is_told_what_to_name(refused: Refused, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    index, _ = in_shards(tmp_path / "model", "wplus")
    index.with_name("model.safetensors.index.fp16.json").write_text(index.read_text())
    assert "several indices" in refused("convert", tmp_path / "model", out)
    write(tmp_path / "one", "wplus")
    assert "such as wplus_adapter.bin" in refused("convert", tmp_path / "one", out)


def test_shards_on_the_hub_come_with_their_index(
    capfd: pytest.CaptureFixture[str], refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--someone--Model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "v1").write_text("b" * 40)
    (repo / "snapshots" / ("b" * 40)).mkdir(parents=True)
    index, _ = in_shards(repo / "snapshots" / ("b" * 40) / "unet", "unet")
    source = "someone/Model@v1:unet/model.safetensors.index.json"
    assert report_of(capfd, "convert", "--inspect", source)["kind"] == "unet"
    index.with_name("model-00002-of-00002.safetensors").unlink()
    line = refused("convert", "--inspect", source)
    assert line.endswith("hf download someone/Model unet/model-00002-of-00002.safetensors --revision v1")
