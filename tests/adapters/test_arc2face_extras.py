"""Arc2Face's expression and reference adapters against what the authors run: diffusers' loaders, and a second UNet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from idgen.adapters.arc2face.expression import Arc2FaceExpressionAdapter
from idgen.adapters.arc2face.reference import Arc2FaceReferenceAdapter, ReferenceConfig
from idgen.adapters.layers import attention_layers
from idgen.errors import IdgenError
from tests.adapters.bases import WIDTH, call_arguments, predict, tiny_unet
from tests.conformance.published import nested_pickle

PEOPLE = 2
RANK = 3


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def expression_file(kind: str) -> dict[str, Tensor]:
    """`exp_adapter.bin` with a projection of one layer or of two."""
    sizes = {"mlp": {"proj.0": (110, 55), "proj.2": (4 * WIDTH, 110)}, "linear": {"proj": (4 * WIDTH, 55)}}[kind]
    state = {"image_proj.norm.weight": noise(WIDTH), "image_proj.norm.bias": noise(WIDTH, seed=1)}
    for name, shape in sizes.items():
        state |= {f"image_proj.{name}.weight": noise(*shape) / 5, f"image_proj.{name}.bias": noise(shape[0])}
    for layer in attention_layers(tiny_unet("sd15")):
        if layer.cross:
            for seed, letter in enumerate("kv"):
                state[f"ip_adapter.{layer.index}.to_{letter}_ip.weight"] = noise(layer.hidden, WIDTH, seed=seed) / 3
    return state


@pytest.mark.parametrize("kind", ["mlp", "linear"])
@pytest.mark.parametrize("scale", [0.6, 1.0])
def test_expression_equals_diffusers_ip_adapter(kind, scale, tmp_path):
    state, arguments = expression_file(kind), call_arguments(tiny_unet("sd15"), 2 * PEOPLE)
    expression = noise(PEOPLE, 55)
    theirs = tiny_unet("sd15")
    groups = {
        group: {key.removeprefix(f"{group}."): value for key, value in state.items() if key.startswith(group)}
        for group in ("image_proj", "ip_adapter")
    }
    theirs._load_ip_adapter_weights([groups])
    for processor in theirs.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [scale]
    embeds = torch.cat([torch.zeros(PEOPLE, 1, 55), expression[:, None]])
    with torch.no_grad():
        expected = theirs(**arguments, added_cond_kwargs={"image_embeds": [embeds]}).sample

    unet = tiny_unet("sd15")
    path = nested_pickle(state, tmp_path / "exp_adapter.bin")
    adapter = Arc2FaceExpressionAdapter.from_pretrained(path, unet).inject(unet)
    got = predict(unet, arguments, adapter.condition(expression, scale=scale))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(got, predict(unet, arguments), atol=1e-2)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (torch.zeros(PEOPLE, 50), "people, 55"),
        (torch.full((55,), torch.nan), "NaN"),
        ([torch.zeros(55), torch.zeros(50)], "one shape"),
        ("smile", "not str"),
    ],
    ids=["length", "nan", "shapes", "type"],
)
def test_an_expression_that_does_not_fit_is_named(expression, message, tmp_path):
    unet = tiny_unet("sd15")
    path = nested_pickle(expression_file("mlp"), tmp_path / "exp_adapter.bin")
    with pytest.raises(IdgenError, match=message):
        Arc2FaceExpressionAdapter.from_pretrained(path, unet).condition(expression)


def lora_file(naming: str, kinds: tuple[str, ...] = ("attn1", "attn2")) -> dict[str, Tensor]:
    """`pytorch_lora_weights.safetensors`, in one of the namings that diffusers wrote over the years."""
    state = {}
    for layer in attention_layers(tiny_unet("sd15")):
        if layer.name.rpartition(".")[2] not in kinds:
            continue
        for seed, name in enumerate(("q", "k", "v", "out")):
            width = layer.context if name in "kv" else layer.hidden
            down, up = noise(RANK, width, seed=seed) / 2, noise(layer.hidden, RANK, seed=seed + 9) / 2
            path = f"unet.{layer.name}.to_{name}{'.0' * (name == 'out')}"
            if naming == "old":
                path = f"unet.{layer.name}.processor.to_{name}_lora"
                state |= {f"{path}.down.weight": down, f"{path}.up.weight": up}
            elif naming == "peft":
                state |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
            else:
                state |= {f"{path}.lora.down.weight": down, f"{path}.lora.up.weight": up}
    return state


def load_reference(unet: Any, state: dict[str, Tensor], folder: Any) -> Arc2FaceReferenceAdapter:
    path = folder / "pytorch_lora_weights.safetensors"
    save_file(state, path)
    return Arc2FaceReferenceAdapter.from_pretrained(path, unet)


def two_unets(state: dict[str, Tensor], latents: Tensor, prompts: Tensor, arguments: dict[str, Any]) -> Tensor:
    """What the authors' demonstration computes: one UNet writes, another with the LoRA at 0.8 reads, in its second half."""
    writer, reader = tiny_unet("sd15"), tiny_unet("sd15")
    reader.load_lora_adapter(dict(state), prefix="unet", adapter_name="ref")
    reader.set_adapters(["ref"], [0.8])
    bank: dict[str, Tensor] = {}
    for name, block in writer.named_modules():
        if name.endswith(".norm1") and "transformer_blocks" in name:
            block.register_forward_hook(lambda _m, _i, out, name=name: bank.__setitem__(name, out))
    with torch.no_grad():
        writer(latents, 0, prompts)
        half = len(latents)
        uncond = reader(
            arguments["sample"][:half], arguments["timestep"], arguments["encoder_hidden_states"][:half]
        ).sample
        for name, block in reader.named_modules():
            if name.endswith(".attn1"):
                states = bank[name.replace("attn1", "norm1")]
                block.register_forward_pre_hook(
                    lambda _m, args, kwargs, states=states: (
                        args,
                        kwargs | {"encoder_hidden_states": torch.cat([args[0], states], 1)},
                    ),
                    with_kwargs=True,
                )
        cond = reader(
            arguments["sample"][half:], arguments["timestep"], arguments["encoder_hidden_states"][half:]
        ).sample
    return torch.cat([uncond, cond])


@pytest.mark.parametrize("naming", ["new", "old", "peft", "attn1 only"])
def test_reference_equals_a_second_unet_that_is_read(naming, tmp_path):
    state = lora_file(naming, ("attn1",) if naming == "attn1 only" else ("attn1", "attn2"))
    latents, prompts = noise(PEOPLE, 4, 8, 8, seed=3), noise(PEOPLE, 7, WIDTH, seed=4)
    arguments = call_arguments(tiny_unet("sd15"), 2 * PEOPLE)
    expected = two_unets(state, latents, prompts, arguments)

    unet = tiny_unet("sd15")
    adapter = load_reference(unet, state, tmp_path).inject(unet)
    conditioning = adapter.condition(latents, prompt_embeds=prompts)
    torch.testing.assert_close(predict(unet, arguments, conditioning), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(predict(unet, arguments), expected, atol=1e-2)


def test_the_unet_runs_once_over_each_reference_and_not_over_nobody(tmp_path):
    unet = tiny_unet("sd15")
    adapter = load_reference(unet, lora_file("new"), tmp_path).inject(unet)
    rows = []
    unet.register_forward_pre_hook(lambda _m, args: rows.append(len(args[0])))
    adapter.condition(noise(PEOPLE, 4, 8, 8), prompt_embeds=noise(1, 7, WIDTH), images=3)
    assert rows == [PEOPLE]


def test_another_size_of_reference_than_of_picture_is_fine(tmp_path):
    unet = tiny_unet("sd15")
    adapter = load_reference(unet, lora_file("new"), tmp_path).inject(unet)
    conditioning = adapter.condition(noise(4, 16, 8), prompt_embeds=noise(1, 7, WIDTH))
    assert predict(unet, call_arguments(unet, 2), conditioning).isfinite().all()


def test_a_lora_of_other_modules_or_with_gaps_is_refused(tmp_path):
    unet, state = tiny_unet("sd15"), lora_file("new")
    gap = dict(state)
    gap.pop(next(key for key in gap if "up_blocks" in key and "to_v.lora.up" in key))
    other = state | {"unet.mid_block.attentions.0.proj_in.lora.down.weight": torch.ones(RANK, 16)}
    nothing = {key: value for key, value in other.items() if "proj_in" in key}
    for wrong, message in (
        (gap, r"1 missing: up_blocks.*to_v"),
        (other, r"1 unexpected: .*proj_in"),
        (nothing, "no LoRA"),
    ):
        with pytest.raises(IdgenError, match=message) as error:
            load_reference(unet, wrong, tmp_path)
        assert "\n" not in str(error.value)
    with pytest.raises(IdgenError, match="targets are among"):
        ReferenceConfig(targets=("attn3.q",))


@pytest.mark.parametrize(
    ("latents", "prompts", "message"),
    [
        (torch.zeros(9, 8, 8), torch.zeros(1, 7, WIDTH), "people, 4, height, width"),
        (torch.zeros(4, 8, 8), torch.zeros(2, 7, WIDTH), "encode_identity"),
        (torch.zeros(4, 8, 8), torch.zeros(1, 7, 5), "encode_identity"),
        (torch.full((4, 8, 8), torch.inf), torch.zeros(1, 7, WIDTH), "NaN"),
        ("me.jpg", torch.zeros(1, 7, WIDTH), "not str"),
    ],
    ids=["channels", "people", "width", "inf", "type"],
)
def test_a_reference_that_does_not_fit_is_named(latents, prompts, message, tmp_path):
    unet = tiny_unet("sd15")
    adapter = load_reference(unet, lora_file("new"), tmp_path).inject(unet)
    with pytest.raises(IdgenError, match=message):
        adapter.condition(latents, prompt_embeds=prompts)
    with pytest.raises(IdgenError, match=r"inject\(\)"):
        adapter.eject().condition(torch.zeros(4, 8, 8), prompt_embeds=torch.zeros(1, 7, WIDTH))
