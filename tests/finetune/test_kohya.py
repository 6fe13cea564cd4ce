"""kohya's naming, written and read: names of both UNets and of all text encoders, alphas of their own, DoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from torch import Tensor

from idgen.checkpoint import load_metadata, load_weights, save_weights
from idgen.errors import IdgenError
from idgen.finetune import adapter_parameters, describe, load_adapter, load_kohya, save_adapter, save_kohya
from idgen.finetune.kohya import _sgm
from idgen.finetune.places import places
from idgen.signatures import recognise
from tests.adapters.bases import tiny_unet
from tests.finetune.models import config, output, same_state, state, text_to_image, trained, unet


def modules(base: str) -> Any:
    return ("unet", "text_encoder", "text_encoder_2")[: 3 if base == "sdxl" else 2]


@pytest.mark.parametrize("targets", ["attention", "all"])
@pytest.mark.parametrize("base", ["mini", "sdxl"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_what_is_written_is_read_back_bit_for_bit(kind: str, base: str, targets: str, tmp_path: Path) -> None:
    first, second = text_to_image(base), text_to_image(base)
    saved = trained(first, config(kind, modules=modules(base), targets=targets))
    save_kohya(tmp_path / "a.safetensors", first, "person")
    settings = load_kohya(tmp_path / "a.safetensors", second, "person")
    assert settings == describe(first, "person")
    loaded = adapter_parameters(second, "person")
    assert list(loaded) == list(saved) and all(torch.equal(value, saved[key]) for key, value in loaded.items())
    assert torch.equal(output(first), output(second))


def test_names_are_those_of_sd_scripts(tmp_path: Path) -> None:
    pipe = text_to_image("mini")
    trained(pipe, config("lora", modules=("unet", "text_encoder")))
    save_kohya(tmp_path / "a.safetensors", pipe, "person")
    file = load_weights(tmp_path / "a.safetensors")
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight" in file
    assert float(file["lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha"]) == 6
    assert recognise(file, tmp_path / "a.safetensors").kind == "lora-kohya"
    assert load_metadata(tmp_path / "a.safetensors")["ss_network_dim"] == "4"


def test_names_for_sdxl_are_those_of_sgm(tmp_path: Path) -> None:
    pipe = text_to_image("sdxl")
    trained(pipe, config("lora", modules=modules("sdxl")))
    save_kohya(tmp_path / "a.safetensors", pipe, "person")
    starts = {
        key.split("_text_model")[0] for key in load_weights(tmp_path / "a.safetensors") if key.startswith("lora_te")
    }
    assert starts == {"lora_te1", "lora_te2"}
    names = {
        key.split("_transformer")[0] for key in load_weights(tmp_path / "a.safetensors") if key.startswith("lora_unet")
    }
    # One layer per block here: conv_in is input block 0, the first level's blocks 1 and 2, the second level's only one 3.
    assert names == {
        f"lora_unet_{block}"
        for block in ("input_blocks_3_1", "middle_block_1", "output_blocks_0_1", "output_blocks_1_1")
    }


@pytest.mark.parametrize("each", [1, 2])
def test_sgm_names_are_the_ones_that_diffusers_reads(each: int) -> None:
    model = tiny_unet("sdxl", layers_per_block=each)
    ours = {
        f"lora_unet_{_sgm(place.name, model).replace('.', '_')}.lora_down.weight": place.name
        for place in places(model)
        if place.name.startswith(("down_blocks", "mid_block", "up_blocks"))
    }
    read = _maybe_map_sgm_blocks_to_diffusers({key: key for key in ours}, model.config)
    words = {
        "in_layers_2": "conv1",
        "out_layers_3": "conv2",
        "emb_layers_1": "time_emb_proj",
        "skip_connection": "conv_shortcut",
    }
    for name, original in read.items():
        plain = name.removeprefix("lora_unet_").removesuffix(".lora_down.weight")
        plain = (
            plain.replace("input_blocks", "down_blocks")
            .replace("middle_block", "mid_block")
            .replace("output_blocks", "up_blocks")
        )
        for sgm, diffusers in words.items():
            plain = plain.replace(sgm, diffusers)
        assert plain.replace("downsamplers_0_op", "downsamplers_0_conv") == ours[original].replace(".", "_")


@pytest.mark.parametrize("base", ["mini", "sdxl"])
def test_diffusers_reads_what_is_written(base: str, tmp_path: Path) -> None:
    first, second = text_to_image(base), text_to_image(base)
    trained(first, config("lora", modules=modules(base), targets="transformer"))
    save_kohya(tmp_path / "a.safetensors", first, "person")
    second.load_lora_weights(tmp_path / "a.safetensors")
    assert torch.allclose(output(first), output(second), atol=1e-5)


def kohya_file(model: Any, alphas: bool = True, spelling: str = "plain") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A file made by hand, and by how much each layer's weight changes. Every layer has another rank and another alpha."""
    random, tensors, changes = torch.Generator().manual_seed(0), {}, {}
    chosen = [place for place in places(model) if place.name.endswith(("to_q", "to_v", "proj_in"))]
    for index, place in enumerate(chosen):
        rank, alpha = 1 + index % 3, 0.5 + index
        outs, ins = place.layer.weight.shape[:2]
        up, down = (torch.randn(shape, generator=random) for shape in ((outs, rank), (rank, ins)))
        changes[place.name] = up @ down * ((alpha if alphas else rank) / rank)
        name = "lora_unet_" + (_sgm(place.name, model) if spelling == "sgm" else place.name).replace(".", "_")
        # As convolutions, whatever the layer is: some programs write every one so.
        tensors |= {f"{name}.lora_up.weight": up[..., None, None], f"{name}.lora_down.weight": down[..., None, None]}
        if alphas:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors, changes


@pytest.mark.parametrize(("base", "spelling"), [("sd15", "plain"), ("sdxl", "plain"), ("sdxl", "sgm")])
@pytest.mark.parametrize("alphas", [True, False])
def test_every_layer_keeps_its_own_rank_and_alpha(alphas: bool, base: str, spelling: str, tmp_path: Path) -> None:
    model = unet(base)
    tensors, changes = kohya_file(model, alphas, spelling)
    save_weights(tmp_path / "a.safetensors", tensors)
    load_kohya(tmp_path / "a.safetensors", model, "style")
    for layer, change in changes.items():
        assert torch.allclose(model.get_submodule(layer).get_delta_weight("style").flatten(1), change, atol=1e-5), layer
    # And goes on into idgen's own format, alphas and all.
    save_adapter(tmp_path / "b.safetensors", model, "style")
    other = unet(base)
    load_adapter(tmp_path / "b.safetensors", other, "style")
    assert torch.equal(output(other), output(model)) and not torch.equal(output(other), output(unet(base)))


def test_magnitudes_with_and_without_axes_of_one_are_read(tmp_path: Path) -> None:
    first = unet("sd15")
    trained(first, config("dora"))
    save_kohya(tmp_path / "a.safetensors", first, "person")
    tensors = load_weights(tmp_path / "a.safetensors")
    assert all(value.ndim == 2 for key, value in tensors.items() if key.endswith("dora_scale"))
    save_weights(
        tmp_path / "b.safetensors",
        {key: value.flatten() if key.endswith("dora_scale") else value for key, value in tensors.items()},
    )
    for file in ("a", "b"):
        second = unet("sd15")
        assert load_kohya(tmp_path / f"{file}.safetensors", second).kind == "dora"
        assert torch.equal(output(first), output(second))


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    pipe = text_to_image("mini")
    trained(pipe, config("lora", modules=("unet", "text_encoder")))
    save_kohya(tmp_path / "a.safetensors", pipe, "person")
    save_adapter(tmp_path / "own.safetensors", pipe, "person")
    alone = text_to_image("mini").unet
    before = state(alone)
    with pytest.raises(IdgenError, match=r"keys fit no layer of unet: lora_te_text_model"):
        load_kohya(tmp_path / "a.safetensors", alone)
    with pytest.raises(IdgenError, match=r"has no LoRA in kohya's naming: `idgen convert --inspect`"):
        load_kohya(tmp_path / "own.safetensors", alone)
    with pytest.raises(IdgenError, match=r"made for the mini family"):
        load_kohya(tmp_path / "a.safetensors", {"unet": unet("sd15"), "text_encoder": pipe.text_encoder})
    tensors = load_weights(tmp_path / "a.safetensors")
    gone = next(key for key in tensors if key.startswith("lora_unet") and key.endswith("lora_up.weight"))
    save_weights(tmp_path / "b.safetensors", {key: value for key, value in tensors.items() if key != gone})
    fresh = text_to_image("mini")
    with pytest.raises(IdgenError, match=r"1 missing: unet\."):
        load_kohya(tmp_path / "b.safetensors", fresh)
    assert same_state(alone, before) and not hasattr(fresh.unet, "peft_config")
    trained(fresh, config("oft"))
    with pytest.raises(IdgenError, match=r"holds LoRA and DoRA, and this adapter is oft"):
        save_kohya(tmp_path / "c.safetensors", fresh, "person")
