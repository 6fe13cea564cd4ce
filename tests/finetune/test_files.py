"""Saved adapters come back bit for bit, whatever the kind; what does not fit is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from idgen.checkpoint import load_metadata, load_weights, save_weights
from idgen.errors import IdgenError
from idgen.finetune import (
    active_adapters,
    adapter_parameters,
    describe,
    load_adapter,
    save_adapter,
    set_strength,
)
from idgen.headers import FINETUNE, MEANINGS
from idgen.inspection import inspect_weights
from tests.finetune.models import (
    KINDS,
    config,
    output,
    same_state,
    state,
    text_to_image,
    trained,
    unet,
    with_user_lora,
)


@pytest.mark.parametrize("base", ["sd15", "sd2-inpaint"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back_bit_for_bit(kind: str, base: str, tmp_path: Path) -> None:
    first, second = unet(base), unet(base)
    saved = trained(first, config(kind, targets="transformer"))
    save_adapter(tmp_path / "a.safetensors", first, "person")
    settings = load_adapter(tmp_path / "a.safetensors", second, "other")
    assert torch.equal(output(first), output(second))
    loaded = adapter_parameters(second, "other")
    assert list(loaded) == list(saved)
    assert all(torch.equal(value, saved[key]) and not value.requires_grad for key, value in loaded.items())
    assert settings == describe(second, "other") == describe(first, "person")


@pytest.mark.parametrize("base", ["mini", "sdxl"])
@pytest.mark.parametrize("kind", KINDS)
def test_text_encoders_are_in_the_same_file(kind: str, base: str, tmp_path: Path) -> None:
    modules = ("unet", "text_encoder", "text_encoder_2")[: 3 if base == "sdxl" else 2]
    first, second = text_to_image(base), text_to_image(base)
    trained(first, config(kind, modules=modules))
    save_adapter(tmp_path / "a.safetensors", first, "person")
    assert load_adapter(tmp_path / "a.safetensors", second).modules == modules
    assert torch.equal(output(first), output(second))
    texts = [key for key in load_weights(tmp_path / "a.safetensors") if key.startswith("text_encoder.")]
    assert all(key.startswith("text_encoder.text_model.encoder.layers.") for key in texts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_holds_the_adapter_as_trained_whatever_its_strength(kind: str, tmp_path: Path) -> None:
    first, second = unet("sd15"), unet("sd15")
    trained(first, config(kind))
    full = output(first)
    set_strength(first, "person", 0.3)
    save_adapter(tmp_path / "a.safetensors", first, "person")
    load_adapter(tmp_path / "a.safetensors", second)
    assert torch.equal(output(second), full)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_loads_beneath_a_users_lora_and_is_saved_from_there(kind: str, tmp_path: Path) -> None:
    first, second = unet("sd15"), with_user_lora(unet("sd15"))
    saved = trained(first, config(kind))
    save_adapter(tmp_path / "a.safetensors", first, "person")
    load_adapter(tmp_path / "a.safetensors", second, "person")
    assert active_adapters(second) == ["user", "person"]
    save_adapter(tmp_path / "b.safetensors", second, "person")
    again = load_weights(tmp_path / "b.safetensors")
    assert all(torch.equal(again[key], value) for key, value in saved.items()) and len(again) == len(saved)


def test_the_header_says_everything(tmp_path: Path) -> None:
    model = unet("sd2-inpaint")
    trained(model, config("lora", targets=("to_q", "to_out.0")))
    save_adapter(tmp_path / "a.safetensors", model, "person")
    header = load_metadata(tmp_path / "a.safetensors")
    settings = json.loads(header["config"])
    assert (settings["kind"], settings["rank"], settings["alpha"]) == ("lora", 4, 6.0)
    assert settings["targets"] == ["to_out.0", "to_q"] and settings["modules"] == ["unet"]
    assert json.loads(header["models"])["unet"]["in_channels"] == 9


@pytest.mark.parametrize("kind", KINDS)
def test_inspecting_a_file_says_what_it_is(kind: str, tmp_path: Path) -> None:
    pipe = text_to_image("mini")
    trained(pipe, config(kind))
    save_adapter(tmp_path / "a.safetensors", pipe, "person")
    report = inspect_weights(tmp_path / "a.safetensors")
    assert (report.kind, report.family) == ("finetune", "the mini family")
    assert report.notes == ("written by idgen (idgen-finetune-1)", MEANINGS[FINETUNE])


def test_ranks_and_alphas_that_differ_from_layer_to_layer_are_kept(tmp_path: Path) -> None:
    first, second = unet("sd15"), unet("sd15")
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    settings = config("lora", ranks={f"unet.{layer}": 2}, alphas={f"unet.{layer}": 5.0})
    trained(first, settings)
    assert (first.get_submodule(layer).scaling["person"], first.get_submodule(layer).r["person"]) == (2.5, 2)
    save_adapter(tmp_path / "a.safetensors", first, "person")
    loaded = load_adapter(tmp_path / "a.safetensors", second)
    assert (loaded.ranks, loaded.alphas) == (settings.ranks, settings.alphas)
    assert torch.equal(output(first), output(second))


def test_a_lora_that_somebody_else_put_in_is_saved_with_its_alpha(tmp_path: Path) -> None:
    first, second = with_user_lora(unet("sd15"), lora_alpha=7, alpha_pattern={"attn1.to_q": 3}), unet("sd15")
    first.requires_grad_(False)
    save_adapter(tmp_path / "a.safetensors", first, "user")
    load_adapter(tmp_path / "a.safetensors", second)
    assert torch.equal(output(first), output(second))


def test_options_without_a_place_in_the_format_are_refused(tmp_path: Path) -> None:
    model = with_user_lora(unet("sd15"), use_rslora=True)
    with pytest.raises(IdgenError, match=r"uses use_rslora: save it with peft's own"):
        save_adapter(tmp_path / "a.safetensors", model, "user")


def test_values_keep_their_dtype_or_take_the_one_asked_for(tmp_path: Path) -> None:
    first = unet("sd15")
    trained(first, config("oft"))
    save_adapter(tmp_path / "a.safetensors", first, "person")
    half, cast = unet("sd15").half(), unet("sd15").half()
    load_adapter(tmp_path / "a.safetensors", half)
    load_adapter(tmp_path / "a.safetensors", cast, dtype=torch.float16)
    assert {value.dtype for value in adapter_parameters(half, "default").values()} == {torch.float32}
    assert {value.dtype for value in adapter_parameters(cast, "default").values()} == {torch.float16}


def broken(file: Path, how: str) -> None:
    tensors, header = load_weights(file), load_metadata(file)
    first = next(iter(tensors))
    if how == "missing":
        del tensors[first]
    elif how == "unexpected":
        tensors[f"{first}.more"] = torch.ones(1)
    elif how == "elsewhere":
        tensors["unet.nowhere.to_q.lora_A.weight"] = torch.ones(4, 8)
    elif how == "misshapen":
        tensors[first] = tensors[first][:2]
    elif how == "header":
        header["config"] = "{"
    elif how == "settings":
        header["config"] = json.dumps(json.loads(header["config"]) | {"rankk": 3})
    elif how == "foreign":
        header = {}
    elif how == "empty":
        header["config"] = json.dumps(json.loads(header["config"]) | {"modules": ["unet", "text_encoder"]})
        header["models"] = json.dumps(
            json.loads(header["models"]) | {"text_encoder": {"hidden_size": 512, "num_hidden_layers": 2}}
        )
    save_weights(file, tensors, header)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", r"does not fit the models; 1 missing: unet\."),
        ("unexpected", r"1 unexpected: unet\."),
        ("elsewhere", r"1 unexpected: unet\.nowhere"),
        ("misshapen", r"1 misshapen: unet\."),
        ("header", r"the settings in its header are damaged"),
        ("settings", r"unknown setting 'rankk': did you mean 'rank'\?"),
        ("foreign", r"was not saved by idgen\.finetune: load_kohya reads"),
        ("empty", r"nothing in it is for text_encoder"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line_and_changes_nothing(how: str, says: str, tmp_path: Path) -> None:
    pipe = text_to_image("sd15")
    trained(pipe, config("lora"))
    save_adapter(tmp_path / "a.safetensors", pipe, "person")
    broken(tmp_path / "a.safetensors", how)
    other = text_to_image("sd15")
    before = state(other.unet)
    with pytest.raises(IdgenError, match=says) as caught:
        load_adapter(tmp_path / "a.safetensors", other)
    assert "\n" not in str(caught.value)
    assert same_state(other.unet, before) and active_adapters(other) == []


def test_an_adapter_for_another_base_is_refused_in_words(tmp_path: Path) -> None:
    first = unet("sd2-inpaint")
    trained(first, config("hra"))
    save_adapter(tmp_path / "a.safetensors", first, "person")
    with pytest.raises(IdgenError, match=r"made for a UNet of .* 9 input channels.*and this unet is a UNet of"):
        load_adapter(tmp_path / "a.safetensors", unet("sd15"))


@pytest.mark.parametrize("base", ["mini", "sdxl"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_diffusers_loads_a_lora_file_as_it_is(kind: str, base: str, tmp_path: Path) -> None:
    modules: Any = ("unet", "text_encoder", "text_encoder_2")[: 3 if base == "sdxl" else 2]
    first, second = text_to_image(base), text_to_image(base)
    trained(first, config(kind, modules=modules, targets="transformer"))
    save_adapter(tmp_path / "person.safetensors", first, "person")
    second.load_lora_weights(tmp_path / "person.safetensors")
    assert torch.allclose(output(first), output(second), atol=1e-5)


def test_a_foreign_lora_config_is_not_changed_by_saving(tmp_path: Path) -> None:
    model = unet("sd15")
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "user")
    before = model.peft_config["user"].to_dict()
    save_adapter(tmp_path / "a.safetensors", model, "user")
    assert model.peft_config["user"].to_dict() == before
