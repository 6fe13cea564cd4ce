"""W+ Adapter against the original: its projection, its pipeline, its losses and its edit directions."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from idgen.adapters.wplus.directions import load_ganspace
from idgen.adapters.wplus.mapping import WPlusProjector
from idgen.checkpoint import load_strict, load_weights
from idgen.losses.wplus import outside_face, wild_losses
from idgen.models.published import part
from idgen.pipelines import WPlusPipeline
from tests.conformance.golden import Golden, goldens
from tests.conformance.published import base_unet, nested_pickle


@pytest.mark.parametrize("folder", goldens("wplus_mapping"), ids=lambda folder: folder.name)
def test_tokens_equal_the_original(folder, tmp_path):
    golden = Golden(folder)
    w = golden.inputs()["w"]
    path = tmp_path / "wplus_adapter.bin"
    torch.save({"w_proj": golden.weights(), "wplus_adapter": {"1.to_q_wplus.weight": torch.ones(2, 2)}}, path)

    state = part(load_weights(path), "w_proj.")
    sizes = WPlusProjector.sizes(state, "wplus_adapter.bin", style_dim=w.shape[2])
    assert sizes["cross_attention_dim"] == golden.config["cross_attention_dim"]
    projector = WPlusProjector(**sizes)
    load_strict(projector, state, "wplus_adapter.bin")

    with torch.no_grad():
        results = {"tokens": projector(w), "uncond_tokens": projector(torch.zeros_like(w))}
    golden.check(results)
    assert torch.equal(results["uncond_tokens"], state["norm.bias"].expand_as(results["uncond_tokens"]))


@pytest.mark.parametrize("folder", goldens("wplus_losses_directions"), ids=lambda folder: folder.name)
def test_losses_and_directions_equal_the_original(folder, tmp_path):
    golden = Golden(folder)
    config, inputs = golden.config, golden.inputs()
    small = inputs["wild_mask_8x8"]
    masks = small.repeat_interleave(512 // small.shape[2], 2).repeat_interleave(512 // small.shape[3], 3)
    losses = wild_losses(
        inputs["noise_pred"],
        inputs["noise"],
        perturbed=inputs["noise_pred_augmentation"],
        plain=inputs["noise_pred_now"],
        face_masks=masks,
        disentangle=config["lambda_disen"],
        preserve=config["lambda_preserve"],
    )

    pca = {"comp": inputs["pca.comp"] * 512**-0.5, "mean": inputs["pca.mean"], "std": inputs["pca.std"]}
    torch.save(pca, tmp_path / "ffhq_pca.pt")
    start, end = config["layers"]
    direction = load_ganspace(tmp_path / "ffhq_pca.pt", config["pca_index"], (start, end))
    w = inputs["latent18"][None]
    delta = direction.delta(w, config["strength"])[0]

    golden.check(
        {
            "loss_rec": losses.reconstruction,
            "loss_disen": losses.disentanglement,
            "loss_preserve": losses.preservation,
            "loss": losses.total,
            "mask_region": outside_face(masks, inputs["noise"].shape[-2:]),
            "ganspace_delta": delta[start : start + 1],
            "ganspace_direction": delta,
        }
    )
    assert torch.equal(direction.apply(w, config["strength"])[0], w[0] + delta)


@pytest.mark.parametrize("folder", goldens("wplus_unet_pipeline"), ids=lambda folder: folder.name)
def test_unet_and_sampling_equal_the_original(folder, tmp_path):
    golden = Golden(folder)
    config, inputs, weights = golden.config, golden.inputs(), golden.weights()
    own = {key: value for key, value in weights.items() if not key.startswith("unet.")}
    pipe = WPlusPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=base_unet(golden),
        scheduler=EulerDiscreteScheduler(**config["scheduler"]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).load_wplus(nested_pickle(own, tmp_path / "wplus_adapter.bin"))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.wplus is not None

    results = {}
    for index, scale in enumerate(config["unet_scales"]):
        conditioning = pipe.wplus.condition(inputs["w"], guidance=False, scale=scale)
        with torch.no_grad():
            results[f"unet.scale{index}"] = pipe.unet(
                inputs["latent"],
                config["unet_timestep"],
                encoder_hidden_states=inputs["prompt_embeds"],
                cross_attention_kwargs=conditioning.kwargs,
            ).sample
    for index, step in enumerate(config["start_embed_steps"]):
        latents = []

        def keep(pipe, step, timestep, tensors, latents=latents):
            latents.append(tensors["latents"])
            return tensors

        results[f"pipe{index}.latent"] = pipe(
            w=inputs["w"],
            prompt_embeds=inputs["prompt_embeds"],
            negative_prompt_embeds=inputs["negative_prompt_embeds"],
            latents=inputs["latent"],
            scale=config["crossattn_scale"],
            start_step=step,
            num_inference_steps=config["steps"],
            guidance_scale=config["guidance_scale"],
            output_type="latent",
            callback_on_step_end=keep,
        ).images
        results[f"pipe{index}.latents_steps"] = torch.stack(latents)
    results |= {
        "timesteps": pipe.scheduler.timesteps,
        "sigmas": pipe.scheduler.sigmas,
        "init_noise_sigma": torch.as_tensor(pipe.scheduler.init_noise_sigma),
    }
    golden.check({name: value for name, value in results.items() if name in golden.meta["outputs"]})
