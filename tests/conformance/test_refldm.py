"""ReF-LDM against the original, through the published containers refldm.ckpt and vqgan.ckpt."""

import random

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

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
)
from idgen.adapters.injections.products import split_heads
from idgen.data.degradation import PRESETS, DegradationConfig, compress, degrade, draw_damage, shrink
from idgen.losses.identity import (
    WEIGHTINGS,
    clean_latents,
    face_region,
    identity_distances,
    restoration_losses,
    timestep_weights,
)
from idgen.models.published import part
from idgen.pipelines import ReferenceRestorePipeline
from tests.conformance.golden import Golden, goldens


@pytest.mark.parametrize("folder", goldens("refldm_unet_cachekv"), ids=lambda folder: folder.name)
def test_cached_references_equal_the_original(folder, tmp_path):
    golden = Golden(folder)
    inputs, sizes = golden.inputs(), golden.config["unet"]
    unet = load_unet(write_unet(tmp_path, golden.weights()), config_of(sizes))
    check_sizes(unet, sizes)
    kv = CacheKV(unet)
    x, x1, lq, t0, t1 = (inputs[name] for name in ("x", "x1", "lq", "t0", "t1"))
    latents = split_panorama(inputs["refs"], golden.config["references"])

    def predict(noisy, t, cache=None):
        sample = torch.cat([noisy, lq], 1)
        if cache is None:
            return unet(sample, t).sample
        with kv.attend(cache):
            return unet(sample, t).sample

    with torch.no_grad():
        results = {"eps.noref.t0": predict(x, t0)}
        results["refpass0"] = unet(torch.cat([latents[:, 0], torch.zeros_like(lq)], 1), 0).sample
        kv.inject()
        one, everyone = kv.build(latents[:, :1]), kv.build(latents)
        for name, cache in {"one": one, "all": everyone}.items():
            results[f"eps.{name}.t0"] = predict(x, t0, cache)
            results[f"eps.{name}.t1_reuse"] = predict(x1, t1, cache)
        results["eps.null.t0"] = predict(x, t0, kv.build(torch.zeros_like(latents)))
        null = kv.null((x.shape[-2], x.shape[-1]), latents.shape[1])
        results |= cache_statistics(kv, everyone)
        golden.check(results)
        golden.meta["outputs"] = {"eps.null.t0": golden.meta["outputs"]["eps.null.t0"]}
        golden.check({"eps.null.t0": predict(x, t0, null)})  # one null reference that weighs as many


def cache_statistics(kv, cache):
    """K and V as the original holds them: (rows * heads, head channels, references * tokens)."""
    names = [layer.name for layer in kv.layers]
    middle = next(name for name in names if name.startswith("mid_block"))
    results = {}
    for which in ("key", "value"):
        held = {}
        for name in names:
            heads = kv.unet.get_submodule(name).heads
            held[name] = split_heads(getattr(cache.layers[name], which), heads).flatten(0, 1).transpose(1, 2)
        letter = which[0]
        statistics = [[v.mean(), v.std(), v.abs().mean()] for v in held.values()]
        results[f"cache.{letter}_stats"] = torch.tensor(statistics)
        for place, name in {"first": names[0], "middle": middle, "last": names[-1]}.items():
            results[f"cache.{place}.{letter}"] = held[name]
    return results


@pytest.mark.parametrize("folder", goldens("refldm_vq_first_stage"), ids=lambda folder: folder.name)
def test_first_stage_equals_the_original(folder, tmp_path):
    golden = Golden(folder)
    image, sizes = golden.inputs()["image"], golden.config["vq"]
    losses = {"loss.discriminator.main.0.weight": torch.ones(2, 2)}
    torch.save({"state_dict": golden.weights() | losses, "epoch": 3, "optimizer_states": []}, tmp_path / "vqgan.ckpt")

    vq = load_vq(tmp_path / "vqgan.ckpt")

    details = sizes["ddconfig"]
    assert vq.config.block_out_channels == tuple(details["ch"] * factor for factor in details["ch_mult"])
    assert vq.config.layers_per_block == details["num_res_blocks"]
    assert (vq.config.num_vq_embeddings, vq.config.vq_embed_dim) == (sizes["n_embed"], sizes["embed_dim"])
    with torch.no_grad():
        z = vq.encode(image).latents
        zq, loss, (_, _, indices) = vq.quantize(z)
        golden.check(
            {
                "z": z,
                "zq": zq,
                "idx": indices,
                "dec": vq.decode(z).sample,
                "dec_noquant": vq.decode(z, force_not_quantize=True).sample,
                "vqloss": loss,
            }
        )


@pytest.mark.parametrize("folder", goldens("refldm_ddim_cfg"), ids=lambda folder: folder.name)
def test_restoration_equals_the_original(folder, tmp_path):
    golden = Golden(folder)
    inputs, ldm = golden.inputs(), golden.config["ldm"]
    torch.save(golden.weights(), tmp_path / "refldm.ckpt")
    model = load_refldm(tmp_path / "refldm.ckpt", config_of(ldm["unet_config"]["params"]))
    check_sizes(model.unet, ldm["unet_config"]["params"])
    kv = CacheKV(model.unet)
    kv.inject()
    photos = split_panorama(inputs["ref_image"], golden.config["references"])
    with torch.no_grad():
        lq, latents = model.vq.encode(inputs["lq_image"]).latents, encode_references(model.vq, photos)
        cache = kv.build(latents)
        results = {"cond.lq": lq, "cond.ref": torch.cat(latents.unbind(1), -1)}
        for index, run in enumerate(golden.config["runs"]):
            assert run["eta"] == 0, "the published sampler draws no noise"
            set_timesteps(model.scheduler, run["steps"], run["schedule"])
            trajectory = []
            guided = GuidedUNet(kv, lq, cache, run["cfg_scale"])
            latent = restore(guided, model.scheduler, inputs["x_T"], lambda _, step, to=trajectory: to.append(step))
            ascending = model.scheduler.timesteps.flip(0)
            alphas = model.scheduler.alphas_cumprod
            values = {
                "timesteps": ascending,
                "alphas": alphas[ascending],
                "alphas_prev": torch.cat([model.scheduler.final_alpha_cumprod[None], alphas[ascending[:-1]]]),
                "x_steps": torch.stack([step.prev_sample for step in trajectory]),
                "pred_x0_steps": torch.stack([step.pred_original_sample for step in trajectory]),
                "latent": latent,
                "image": model.vq.decode(latent).sample,
            }
            results |= {f"run{index}.{name}": value for name, value in values.items()}
    golden.check(results)


@pytest.mark.parametrize("folder", goldens("refldm_ddim_cfg"), ids=lambda folder: folder.name)
def test_the_pipeline_restores_as_the_original(folder, tmp_path):
    golden = Golden(folder)
    inputs, sizes = golden.inputs(), golden.config["ldm"]["unet_config"]["params"]
    weights = golden.weights()
    first_stage = part(weights, "first_stage_model.")
    others = {key: value for key, value in weights.items() if not key.startswith("first_stage_model.")}
    torch.save(others, tmp_path / "refldm.ckpt")
    torch.save({"state_dict": first_stage}, tmp_path / "vqgan.ckpt")
    published = ReFLDMConfig(head_channels=sizes["num_head_channels"], size=golden.config["image"])
    pipe = ReferenceRestorePipeline.from_pretrained(tmp_path, published=published)
    pipe.set_progress_bar_config(disable=True)
    photo, references = (photos / 2 + 0.5 for photos in (inputs["lq_image"], inputs["ref_image"]))
    people = split_panorama(references, golden.config["references"])
    spacing = {"uniform_trailing": "trailing", "uniform": "leading"}
    results = {}
    for index, run in enumerate(golden.config["runs"]):
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing=spacing[run["schedule"]])
        seen = []
        settings = {
            "num_inference_steps": run["steps"],
            "guidance_scale": run["cfg_scale"],
            "latents": inputs["x_T"],
            "callback_on_step_end": lambda pipe, step, t, values, to=seen: to.append(values["latents"]),
        }
        results[f"run{index}.latent"] = pipe(photo, people, output_type="latent", **settings).images
        results[f"run{index}.x_steps"] = torch.stack(seen)
        image = pipe(photo, cache=[pipe.cache(one) for one in people], output_type="pt", **settings).images
        with torch.no_grad():
            decoded = pipe.vq.decode(results[f"run{index}.latent"]).sample
        assert torch.allclose(image, (decoded / 2 + 0.5).clamp(0, 1), atol=1e-5)
    golden.meta["outputs"] = {name: golden.meta["outputs"][name] for name in results}
    golden.check(results)


@pytest.mark.parametrize("folder", goldens("refldm_train_loss"), ids=lambda folder: folder.name)
def test_training_loss_equals_the_original(folder, tmp_path):
    golden = Golden(folder)
    inputs, config = golden.inputs(), golden.config
    weights = golden.weights()
    torch.save(weights, tmp_path / "refldm.ckpt")
    sizes = config["ldm"]["unet_config"]["params"]
    model = load_refldm(tmp_path / "refldm.ckpt", config_of(sizes), ema=False)
    unet, vq, scheduler = model.unet, model.vq.requires_grad_(False), model.scheduler
    recogniser = stand_in_recogniser(part(weights, "perceptual_loss.model."))
    kv = CacheKV(unet)
    kv.inject()
    t, noise = inputs["t"], inputs["noise"]

    with torch.no_grad():
        z0, lq = (vq.encode(inputs[name]).latents for name in ("gt_image", "lq_image"))
        references = encode_references(vq, split_panorama(inputs["ref_image"], config["references"]))
        rebuilt = vq.decode(z0).sample
    noisy = scheduler.add_noise(z0, noise, t)
    with kv.attend(kv.build(references)):
        eps = unet(torch.cat([noisy, lq], 1), t).sample
    latents = clean_latents(noisy, eps, scheduler.alphas_cumprod, t)
    pictures = vq.decode(latents).sample
    distances = identity_distances(recogniser, pictures, rebuilt)
    results = {
        "z0": z0,
        "img_rec": rebuilt,
        "id_cropped_resized": face_region(rebuilt),
        "x_t": noisy,
        "eps": eps,
        "pred_x0": latents,
        "pred_img": pictures,
        "id_per_sample_unscaled": distances,
        "scale": timestep_weights(scheduler.alphas_cumprod, t),
    }
    for kind in WEIGHTINGS:
        scale = timestep_weights(scheduler.alphas_cumprod, t, kind)
        losses = restoration_losses(eps, noise, distances, scale, config["perceptual_loss_scale"])
        named = {"total": losses.total, "simple": losses.noise, "id_scaled_mean": losses.identity}
        results |= {f"{kind}.{name}": value for name, value in named.items()}
    results["sqrt_abar.total"].backward()

    gradients = model.unet_keys.to_published({name: p.grad for name, p in unet.named_parameters()})
    results["grad.norms"] = torch.stack([gradients[key].norm() for key in part(weights, "model.diffusion_model.")])
    stored = [name.removeprefix("grad.") for name in golden.meta["outputs"] if name.startswith("grad.")]
    results |= {f"grad.{name}": gradients[name] for name in stored if name != "norms"}
    golden.check(results)


@pytest.mark.parametrize("folder", goldens("refldm_degradation"), ids=lambda folder: folder.name)
def test_degradation_equals_the_original(folder):
    golden = Golden(folder)
    image = golden.inputs()["image"].numpy()
    height, width = image.shape[:2]
    results = {}
    for preset, options in golden.config["options"].items():
        config = DegradationConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
        if preset in PRESETS and folder.name == "refldm_degradation":
            assert config == PRESETS[preset]
        for index, seed in enumerate(golden.config["seeds"]):
            recorder = RecordingState(seed)
            damage = draw_damage(config, height, width, generators=(random.Random(seed), recorder))
            small = shrink(image, damage)
            values = {
                "draws": np.float32(recorder.uniforms),
                "sizes_wh": np.array([damage.size[::-1], (width, height)]),
                "kernel": damage.kernel,
                "prejpeg": small,
                "postjpeg": compress(small, damage.quality),
                "lq": degrade(image, damage),
            }
            results |= {f"{preset}.{index}.{name}": torch.from_numpy(value) for name, value in values.items()}
    golden.check(results)


class RecordingState(np.random.RandomState):
    """Remembers what `uniform` gave, in the order of the calls."""

    def __init__(self, seed):
        super().__init__(seed)
        self.uniforms = []

    def uniform(self, *args):
        self.uniforms.append(super().uniform(*args))
        return self.uniforms[-1]


def stand_in_recogniser(weights) -> nn.Module:
    """What took ArcFace's place when the golden was made; sizes as its weights say."""
    (out, channels, kernel, _), (dim, features) = weights["0.weight"].shape, weights["3.weight"].shape
    network = nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride=kernel), nn.PReLU(out), nn.Flatten(), nn.Linear(features, dim)
    )
    network.load_state_dict(weights)
    return network.requires_grad_(False)


def config_of(sizes) -> ReFLDMConfig:
    """What the weights do not show."""
    return ReFLDMConfig(head_channels=sizes["num_head_channels"])


def check_sizes(unet, sizes) -> None:
    """The sizes that were read from the weights are those of the config."""
    channels = [sizes["model_channels"] * factor for factor in sizes["channel_mult"]]
    assert unet.config.block_out_channels == tuple(channels)
    assert unet.config.layers_per_block == sizes["num_res_blocks"]
    assert (unet.config.in_channels, unet.config.out_channels) == (sizes["in_channels"], sizes["out_channels"])
    attends = [2**level in sizes["attention_resolutions"] for level in range(len(channels))]
    assert [kind.startswith("Attn") for kind in unet.config.down_block_types] == attends


def write_unet(folder, weights):
    """refldm.ckpt with the UNet only; its average holds the weights, the live ones are a decoy."""
    state = {f"model.{key}": torch.zeros_like(value) for key, value in weights.items()}
    averaged = {f"model_ema.{key.replace('.', '')}": value for key, value in weights.items()}
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    torch.save(state | averaged | counters, folder / "refldm.ckpt")
    return folder / "refldm.ckpt"
