"""`idgen convert`: what a weights file is, and the same weights as safetensors."""

from __future__ import annotations

import json
from argparse import Namespace
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
from tests.renders import Refused
from tests.tiny import tiny_components

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
    "lora-peft": (
        "adapter_model.safetensors",
        {
            f"base_model.model.{LINE}.to_k.lora_A.weight": (2, 768),
            f"base_model.model.{LINE}.to_k.lora_B.weight": (4, 2),
        },
        "Stable Diffusion 1.5",
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
