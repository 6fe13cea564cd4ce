"""ReF-LDM's weights, encoder and sampler: strict about files, and right about schedules and guidance."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel, VQModel

from idgen.adapters.cachekv import (
    CacheKV,
    GuidedUNet,
    ReFLDMConfig,
    encode_references,
    load_refldm,
    load_unet,
    load_vq,
    restore,
    set_timesteps,
    split_panorama,
    timesteps,
)
from idgen.adapters.cachekv.keys import describe_unet, describe_vq
from idgen.errors import IdgenError
from tests.conformance.golden import DEFAULT_ROOT, Golden

HEADS = ReFLDMConfig(head_channels=16)
PUBLISHED = json.loads((Path(__file__).parent / "refldm_keys.json").read_text())
UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def golden_state() -> dict[str, torch.Tensor]:
    return Golden(DEFAULT_ROOT / "refldm_ddim_cfg").weights()


def stored(folder: Path, state: dict[str, Any]) -> Path:
    torch.save(state, folder / "refldm.ckpt")
    return folder / "refldm.ckpt"


# Weights


@pytest.mark.parametrize(
    ("prefix", "kind", "describe", "parameters"),
    [
        (UNET, UNet2DModel, lambda state: describe_unet(state, head_channels=32, norm_groups=32, what=""), 117.8),
        ("first_stage_model.", VQModel, lambda state: describe_vq(state, norm_groups=32, what=""), 57.2),
    ],
)
def test_the_published_keys_at_full_size_are_those_of_diffusers_models(prefix, kind, describe, parameters):
    published = {key: torch.empty(shape, device="meta") for key, shape in PUBLISHED[prefix].items()}
    described = describe(published)
    with torch.device("meta"):
        model = kind(**described.config)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.1)

    def shapes(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
        return {key: value.shape for key, value in state.items()}

    assert shapes(described.keys.to_diffusers(published, "")) == shapes(model.state_dict())
    assert shapes(described.keys.to_published(model.state_dict())) == shapes(published)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers_per_block": 3},
        {"block_out_channels": (32, 96), "attends": (False, True)},
        {"block_out_channels": (64, 32, 32, 32, 64), "attends": (True, False, True, False, False)},
        {"block_out_channels": (32,), "attends": (True,)},
        {"attention_head_dim": 8, "add_attention": False},
    ],
)
def test_other_sizes_are_read_from_the_weights_and_written_back(changes):
    changes = dict(changes)
    attends = changes.pop("attends", (False, True, True))
    config = {"in_channels": 8, "out_channels": 4, "layers_per_block": 1, "attention_head_dim": 16}
    config |= {"block_out_channels": (32, 32, 64)} | changes
    config["down_block_types"] = tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends)
    config["up_block_types"] = tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends))
    unet = UNet2DModel(**config)

    heads = config["attention_head_dim"]
    names = published_names(config, attends)
    first = describe_unet(names, head_channels=heads, norm_groups=32, what="")
    assert {key: first.config[key] for key in config} == config
    published = first.keys.to_published(unet.state_dict())
    assert published.keys() == names.keys()
    again = first.keys.to_diffusers(published, "")
    assert all(torch.equal(value, again[key]) for key, value in unet.state_dict().items())


def published_names(config: dict[str, Any], attends: tuple[bool, ...]) -> dict[str, torch.Tensor]:
    """Keys and shapes as latent-diffusion's UNetModel numbers them, written down independently of the key map."""
    channels, count = config["block_out_channels"], config["layers_per_block"]
    embed = 4 * channels[0]
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def resnet(name: str, before: int, after: int) -> None:
        layer(f"{name}.in_layers.0", before)
        layer(f"{name}.in_layers.2", after, before, 3, 3)
        layer(f"{name}.emb_layers.1", after, embed)
        layer(f"{name}.out_layers.0", after)
        layer(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            layer(f"{name}.skip_connection", after, before, 1, 1)

    def attention(name: str, width: int) -> None:
        layer(f"{name}.norm", width)
        layer(f"{name}.qkv", 3 * width, width, 1)
        layer(f"{name}.proj_out", width, width, 1)

    layer("time_embed.0", embed, channels[0])
    layer("time_embed.2", embed, embed)
    layer("input_blocks.0.0", channels[0], config["in_channels"], 3, 3)
    now, skips, number = channels[0], [channels[0]], 1
    for level, width in enumerate(channels):
        for _ in range(count):
            resnet(f"input_blocks.{number}.0", now, width)
            if attends[level]:
                attention(f"input_blocks.{number}.1", width)
            now, number = width, number + 1
            skips.append(now)
        if level < len(channels) - 1:
            layer(f"input_blocks.{number}.0.op", now, now, 3, 3)
            number += 1
            skips.append(now)
    resnet("middle_block.0", now, now)
    if middle := config.get("add_attention", True):
        attention("middle_block.1", now)
    resnet(f"middle_block.{1 + middle}", now, now)
    number = 0
    for level, width in reversed(list(enumerate(channels))):
        for block in range(count + 1):
            resnet(f"output_blocks.{number}.0", now + skips.pop(), width)
            now = width
            if attends[level]:
                attention(f"output_blocks.{number}.1", width)
            if level and block == count:
                layer(f"output_blocks.{number}.{1 + attends[level]}.conv", width, width, 3, 3)
            number += 1
    layer("out.0", channels[0])
    layer("out.2", config["out_channels"], channels[0], 3, 3)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_a_first_stage_with_attention_at_some_levels_is_read_and_written_back(tmp_path):
    config = {
        "block_out_channels": (32, 64),
        "layers_per_block": 2,
        "latent_channels": 6,
        "vq_embed_dim": 4,
        "num_vq_embeddings": 12,
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    }
    vq = VQModel(**config).eval()
    published = {published_vq_name(key, 2): square(key, value) for key, value in vq.state_dict().items()}
    assert {"encoder.down.1.attn.1.q.bias", "decoder.up.1.attn.2.norm.weight"} <= published.keys()
    torch.save({"state_dict": published}, tmp_path / "vqgan.ckpt")
    loaded = load_vq(tmp_path / "vqgan.ckpt")
    assert {key: loaded.config[key] for key in config} == config
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(loaded(image).sample, vq(image).sample)


def published_vq_name(key: str, levels: int) -> str:
    """diffusers' name -> taming-transformers', written down independently of the key map."""
    key = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", key)
    for ours, theirs in {
        "mid_block.attentions.0": "mid.attn_1",
        "down_blocks": "down",
        "resnets": "block",
        "attentions": "attn",
        "samplers.0": "sample",
        "conv_norm_out": "norm_out",
        "conv_shortcut": "nin_shortcut",
        "group_norm": "norm",
        "to_out.0": "proj_out",
        ".to_": ".",
    }.items():
        key = key.replace(ours, theirs)
    return key


def square(key: str, value: torch.Tensor) -> torch.Tensor:
    """Attention projects by 1 x 1 convolutions there."""
    return value[..., None, None] if ".to_" in key and value.ndim == 2 else value


def test_averaged_weights_are_the_default(golden_state, tmp_path):
    path = stored(tmp_path, golden_state)
    averaged, live = load_refldm(path, HEADS), load_refldm(path, HEADS, ema=False)
    key = f"{UNET}out.2.weight"
    assert torch.equal(live.unet.conv_out.weight, golden_state[key])
    assert torch.equal(averaged.unet.conv_out.weight, golden_state["model_ema.diffusion_modelout2weight"])
    published = live.unet_keys.to_published(live.unet.state_dict())
    assert all(torch.equal(value, golden_state[UNET + name]) for name, value in published.items())
    assert torch.equal(load_unet(path, HEADS).conv_out.weight, averaged.unet.conv_out.weight)
    assert not averaged.unet.training and not averaged.vq.training

    without = {key: value for key, value in golden_state.items() if not key.startswith("model_ema.")}
    assert load_unet(stored(tmp_path, without), HEADS, ema=False) is not None
    with pytest.raises(IdgenError, match="ema=False"):
        load_unet(tmp_path / "refldm.ckpt", HEADS)


@pytest.mark.parametrize(
    "key",
    [
        f"{UNET}input_blocks.0.0.weight",
        f"{UNET}input_blocks.1.0.in_layers.2.weight",
        f"{UNET}input_blocks.2.0.op.weight",
        f"{UNET}input_blocks.3.1.norm.weight",
        f"{UNET}middle_block.1.qkv.bias",
        f"{UNET}output_blocks.5.0.skip_connection.bias",
        "model_ema.diffusion_modelout2weight",
        "first_stage_model.encoder.down.3.block.0.conv1.weight",
        "first_stage_model.decoder.mid.attn_1.q.bias",
        "first_stage_model.quantize.embedding.weight",
        "cond_stage_model.ref_image.post_quant_conv.bias",
        "betas",
        "posterior_mean_coef2",
    ],
)
def test_a_missing_key_is_named(golden_state, tmp_path, key):
    assert key in golden_state
    left = {name: value for name, value in golden_state.items() if name != key}
    with pytest.raises(IdgenError) as error:
        load_refldm(stored(tmp_path, left), HEADS)
    assert key.removeprefix(UNET).removeprefix("first_stage_model.") in str(error.value)


@pytest.mark.parametrize(
    "key",
    [
        "something.else",
        f"{UNET}label_emb.0.weight",
        f"{UNET}input_blocks.1.0.in_layers.7.weight",
        "model_ema.diffusion_modelelsewhere",
        "first_stage_model.encoder.extra.weight",
        "cond_stage_model.lq_image.extra.weight",
        "cond_stage_model.text.weight",
    ],
)
def test_an_unknown_key_is_named(golden_state, tmp_path, key):
    with pytest.raises(IdgenError, match=key.replace(".", r"\.")):
        load_refldm(stored(tmp_path, golden_state | {key: torch.zeros(2)}), HEADS)


def test_what_does_not_fit_is_refused(golden_state, tmp_path):
    key = f"{UNET}out.2.bias"
    with pytest.raises(IdgenError, match=r"misshapen: model\.diffusion_model\.out\.2\.bias"):
        load_refldm(stored(tmp_path, golden_state | {key: torch.zeros(3)}), HEADS)
    other = {"cond_stage_model.lq_image.quant_conv.bias": torch.ones(8)}
    with pytest.raises(IdgenError, match=r"lq_image\.quant_conv\.bias differs"):
        load_refldm(stored(tmp_path, golden_state | other), HEADS)
    with pytest.raises(IdgenError, match="do not rise evenly"):
        load_refldm(stored(tmp_path, golden_state | {"betas": torch.linspace(1e-4, 0.02, 1000)}), HEADS)
    with pytest.raises(IdgenError, match="set head_channels"):
        load_refldm(stored(tmp_path, golden_state), ReFLDMConfig(head_channels=48))
    with pytest.raises(IdgenError, match="not ReF-LDM"):
        load_unet(stored(tmp_path, {"betas": torch.ones(3)}), HEADS)
    with pytest.raises(IdgenError, match="expected"):
        ReFLDMConfig(schedule="linear")  # type: ignore[arg-type]


def test_another_noise_schedule_is_read_from_the_file(golden_state, tmp_path):
    betas = torch.linspace(0.001**0.5, 0.012**0.5, 500, dtype=torch.float64) ** 2
    other = golden_state | {"betas": betas.float(), "alphas_cumprod": (1 - betas).cumprod(0).float()}
    scheduler = load_refldm(stored(tmp_path, other), HEADS).scheduler
    assert scheduler.config.num_train_timesteps == 500
    assert torch.allclose(scheduler.alphas_cumprod, other["alphas_cumprod"], rtol=1e-5)


# Encoder


@pytest.fixture(scope="module")
def vq() -> VQModel:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return VQModel(block_out_channels=(32, 32), latent_channels=4, num_vq_embeddings=16, **blocks).eval()


@torch.no_grad()
def test_references_are_encoded_side_by_side_or_each_alone(vq):
    images = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    panorama, independent = (encode_references(vq, images, mode) for mode in ("panorama", "independent"))
    assert panorama.shape == independent.shape == (2, 3, 4, 8, 8)
    wide = vq.encode(torch.cat(list(images[1].unbind(0)), -1)[None]).latents
    assert torch.allclose(panorama[1:], split_panorama(wide, 3), atol=1e-5)
    assert torch.allclose(independent[1, 2], vq.encode(images[1, 2:]).latents[0], atol=1e-5)
    assert not torch.allclose(panorama, independent, atol=1e-2)
    alone = encode_references(vq, images[:, :1])
    assert torch.allclose(alone, encode_references(vq, images[:, :1], "independent"), atol=1e-5)


def test_encoding_refuses_what_is_no_set_of_references(vq):
    with pytest.raises(IdgenError, match="expected"):
        encode_references(vq, torch.zeros(2, 3, 16, 16))
    with pytest.raises(IdgenError, match="panorama or independent"):
        encode_references(vq, torch.zeros(1, 1, 3, 16, 16), "wide")  # type: ignore[arg-type]
    with pytest.raises(IdgenError, match="3 references"):
        split_panorama(torch.zeros(1, 4, 8, 25), 3)


# Sampler


@pytest.mark.parametrize("steps", [1, 3, 4, 7, 30, 50, 100, 333, 999, 1000])
def test_timesteps_are_those_of_the_published_formulas(steps):
    stride = 1000 // steps
    trailing = np.arange(1000, 0, -stride)[::-1] - 1
    uniform = np.arange(0, 1000, stride) + 1
    assert timesteps(steps)[::-1] == trailing.tolist()
    # The published one may end at 1000, where it fails: there is no such timestep.
    assert timesteps(steps, "uniform")[::-1] == uniform[uniform < 1000].tolist()


def test_impossible_timesteps_are_refused():
    for steps in (0, 1001):
        with pytest.raises(IdgenError, match="expected 1 to 1000"):
            timesteps(steps)
    with pytest.raises(IdgenError, match="uniform_trailing, uniform"):
        timesteps(10, "trailing")  # type: ignore[arg-type]


@torch.no_grad()
def test_guidance_goes_from_null_references_to_the_references(golden_state, tmp_path):
    model = load_refldm(stored(tmp_path, golden_state), HEADS)
    kv = CacheKV(model.unet)
    kv.inject()
    generator = torch.Generator().manual_seed(0)
    lq, latents = (torch.randn(2, 8, 8, 8, generator=generator) for _ in range(2))
    cache = kv.build(torch.randn(1, 3, 8, 8, 8, generator=generator))

    plain, null = GuidedUNet(kv, lq, cache, 1)(latents, 500), GuidedUNet(kv, lq, kv.null((8, 8), 3), 1)(latents, 500)
    for scale in (0.0, 1.5, 4.0):
        wanted = null + scale * (plain - null)
        assert torch.allclose(GuidedUNet(kv, lq, cache, scale)(latents, 500), wanted, atol=1e-4)

    assert torch.allclose(GuidedUNet(kv, lq, kv.null((8, 8), 3), 4.0)(latents, 500), null, atol=1e-4)

    set_timesteps(model.scheduler, 3)
    steps: list[int] = []
    guided = GuidedUNet(kv, lq, cache.expand(2))
    together = restore(guided, model.scheduler, latents, lambda index, step: steps.append(index))
    assert steps == list(range(len(model.scheduler.timesteps)))
    alone = restore(GuidedUNet(kv, lq[1:], cache), model.scheduler, latents[1:])
    assert torch.allclose(together[1:], alone, atol=1e-3), "a photo does not depend on the others in its batch"
