"""Adapters in the weights compute what they computed beside them, and leave no trace when taken out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import PeftModel

from idgen.errors import IdgenError
from idgen.finetune import (
    add_adapter,
    export_diffusers,
    export_merged,
    export_peft,
    merge,
    remove_adapter,
    set_strength,
)
from tests.finetune.models import (
    BASES,
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


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
@pytest.mark.parametrize("kind", KINDS)
def test_merging_changes_no_output_and_undo_restores_every_bit(kind: str, base: str) -> None:
    model = unet(base)
    trained(model, config(kind, targets="transformer"))
    beside, before = output(model), state(model)
    merged = merge(model)
    assert torch.allclose(output(model), beside, atol=2e-5)
    merged.undo()
    assert same_state(model, before) and torch.equal(output(model), beside)
    merged.undo()
    assert same_state(model, before)


@pytest.mark.parametrize("kind", KINDS)
def test_several_adapters_merge_at_their_strengths(kind: str) -> None:
    model = with_user_lora(unet("sd15"))
    trained(model, config(kind), "first", 1)
    trained(model, config(kind), "second", 2)
    set_strength(model, "second", 0.6)
    beside, before = output(model), state(model)
    merged = merge(model)
    assert torch.allclose(output(model), beside, atol=2e-5)
    merged.undo()
    assert same_state(model, before)


@pytest.mark.parametrize("kind", ["lora", "boft", "loha", "lokr"])
def test_convolutions_take_part(kind: str) -> None:
    model = unet("sd15")
    before = output(model)
    trained(model, config(kind, targets="all"))
    beside = output(model)
    assert (beside - before).abs().max() > 1e-3
    merged = merge(model)
    assert torch.allclose(output(model), beside, atol=5e-5)
    merged.undo()


def test_a_merged_model_takes_no_changes() -> None:
    model = unet("sd15")
    with pytest.raises(IdgenError, match="no adapter is active"):
        merge(model)
    trained(model, config("oft"))
    merged = merge(model)
    for change in (
        lambda: merge(model),
        lambda: add_adapter(model, config("lora"), "more"),
        lambda: remove_adapter(model, "person"),
        lambda: set_strength(model, "person", 0.5),
    ):
        with pytest.raises(IdgenError, match="merged into the weights of unet: undo the merge first"):
            change()
    merged.undo()
    remove_adapter(model, "person")


def test_dora_around_a_rotation_is_not_merged() -> None:
    model = unet("sd15")
    trained(model, config("dora"), "first")
    trained(model, config("oft"), "second")
    before = state(model)
    with pytest.raises(IdgenError, match="DoRA around another adapter"):
        merge(model)
    assert same_state(model, before)


@pytest.mark.parametrize(("kind", "base"), zip(KINDS, [*BASES, *BASES], strict=False))
def test_a_merged_unet_loads_without_peft(kind: str, base: str, tmp_path: Path) -> None:
    model = unet(base)
    trained(model, config(kind))
    beside, before = output(model), state(model)
    export_merged(tmp_path, model)
    plain = UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet").eval()
    assert torch.allclose(output(plain), beside, atol=2e-5)
    assert same_state(model, before)


def test_merged_text_encoders_are_exported_too(tmp_path: Path) -> None:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    pipe, plain = text_to_image("sdxl"), text_to_image("sdxl")
    trained(pipe, config("lora", modules=("text_encoder", "text_encoder_2")))
    export_merged(tmp_path, pipe)
    plain.text_encoder = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    plain.text_encoder_2 = CLIPTextModelWithProjection.from_pretrained(tmp_path / "text_encoder_2")
    assert not (tmp_path / "unet").exists()
    assert torch.allclose(output(pipe), output(plain), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_its_folder(kind: str, tmp_path: Path) -> None:
    model = with_user_lora(unet("sd15"))
    trained(model, config(kind))
    export_peft(tmp_path, model, "person")
    other = PeftModel.from_pretrained(with_user_lora(unet("sd15")), tmp_path / "unet", adapter_name="person")
    # Both lie over the user's LoRA, which peft counts as one more layer in one of them, unless the kinds are the same.
    saved, loaded = (
        {name.replace(".base_layer", ""): value for name, value in one.named_parameters() if ".person" in name}
        for one in (model, other.base_model.model)
    )
    assert saved and saved.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], value) for name, value in saved.items())
    alone, plain = unet("sd15"), unet("sd15")
    trained(alone, config(kind))
    loaded = PeftModel.from_pretrained(plain, tmp_path / "unet")
    assert torch.allclose(output(loaded.base_model.model), output(alone), atol=1e-6)


@pytest.mark.parametrize("kind", ["oft", "boft", "hra", "loha"])
def test_what_diffusers_can_not_load_is_said(kind: str, tmp_path: Path) -> None:
    model = unet("sd15")
    trained(model, config(kind))
    with pytest.raises(IdgenError, match=f"diffusers loads no {kind} adapters: export it merged or for peft"):
        export_diffusers(tmp_path / "a.safetensors", model, "person")


def test_diffusers_loads_a_lokr_into_the_unet(tmp_path: Path) -> None:
    first, second = unet("sd15"), unet("sd15")
    trained(first, config("lokr"))
    export_diffusers(tmp_path / "a.safetensors", first, "person")
    second.load_lora_adapter(str(tmp_path), weight_name="a.safetensors", prefix="unet")
    assert torch.allclose(output(first), output(second), atol=1e-5)
