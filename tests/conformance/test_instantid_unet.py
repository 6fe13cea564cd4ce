"""InstantID's attention, IdentityNet and sampling against the original, from the published files."""

from __future__ import annotations

import json
import re

import pytest
import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler
from safetensors.torch import save_file
from torch import Tensor

from idgen.adapters.embeddings import RawEmbeddings
from idgen.adapters.instantid import FaceCall, InstantIDAdapter, face_tokens
from idgen.adapters.instantid.sources import load_identitynet
from idgen.pipelines import InstantIDPipeline
from tests.conformance.golden import Golden, goldens
from tests.conformance.published import base_unet, nested_pickle


def published_adapter(golden: Golden, unet, folder):
    path = nested_pickle(golden.weights("adapter."), folder / "ip-adapter.bin")
    return InstantIDAdapter.from_pretrained(path, unet, dim_head=golden.config["resampler"]["dim_head"]).inject(unet)


def published_identitynet(golden: Golden, folder):
    folder = folder / "ControlNetModel"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(golden.meta["controlnet_config"]))
    save_file(golden.weights("controlnet."), folder / "diffusion_pytorch_model.safetensors")
    return load_identitynet(folder)


def person(golden: Golden, inputs: dict[str, Tensor]) -> RawEmbeddings:
    """All references of the golden's one person."""
    return RawEmbeddings(inputs["embedding"].reshape(-1, golden.config["resampler"]["embedding_dim"]), "glintr100")


def guided_batch(golden: Golden, inputs: dict[str, Tensor]) -> dict:
    """[uncond x images, cond x images], as UNet and IdentityNet are called."""
    images = golden.config["num_images_per_prompt"]
    return {
        "sample": torch.cat([inputs["latents"]] * 2),
        "timestep": inputs["timestep"].reshape(-1)[0],
        "encoder_hidden_states": inputs["text"].repeat_interleave(images, 0),
        "added_cond_kwargs": {
            "text_embeds": inputs["pooled"].repeat_interleave(images, 0),
            "time_ids": inputs["time_ids"].repeat(2 * images, 1),
        },
    }


@pytest.mark.parametrize("folder", goldens("instantid_ip_attention"), ids=lambda folder: folder.name)
@torch.no_grad()
def test_attention_over_face_tokens(folder, tmp_path):
    golden = Golden(folder)
    inputs, unet = golden.inputs(), base_unet(golden)
    adapter = published_adapter(golden, unet, tmp_path)
    images = golden.config["num_images_per_prompt"]
    results = {"face_tokens": face_tokens(adapter.condition(person(golden, inputs), images=images))}
    for name in golden.meta["outputs"]:
        if match := re.fullmatch(r"eps_scale_([\d.]+)", name):
            conditioning = adapter.condition(person(golden, inputs), images=images, scale=float(match[1]))
            results[name] = unet(**guided_batch(golden, inputs), cross_attention_kwargs=conditioning.kwargs).sample
    golden.check(results)


@pytest.mark.parametrize("folder", goldens("instantid_identitynet"), ids=lambda folder: folder.name)
@torch.no_grad()
def test_identitynet_and_the_whole_call(folder, tmp_path):
    golden = Golden(folder)
    config, inputs, unet = golden.config, golden.inputs(), base_unet(golden)
    adapter, net = published_adapter(golden, unet, tmp_path), published_identitynet(golden, tmp_path)
    images = config["num_images_per_prompt"]

    batch = guided_batch(golden, inputs)
    conditioning = adapter.condition(person(golden, inputs), images=images, scale=config["ip_adapter_scale"])
    picture = inputs["kps_image"].expand(2 * images, -1, -1, -1)
    with FaceCall(net, conditioning).speaking():  # it must read the faces, and is handed the prompt
        down, mid = net(
            **batch,
            controlnet_cond=picture,
            conditioning_scale=config["controlnet_conditioning_scale"],
            return_dict=False,
        )
    results = {f"down_residual.{index:02d}": residual for index, residual in enumerate(down)}
    results |= {"mid_residual": mid, "face_tokens": face_tokens(conditioning)}
    eps = unet(
        **batch,
        cross_attention_kwargs=conditioning.kwargs,
        down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
    ).sample
    negative, positive = results["eps_uncond"], results["eps_cond"] = eps.chunk(2)
    results["eps_cfg"] = negative + config["guidance_scale"] * (positive - negative)

    steps = []

    def keep(_pipe, _step, _timestep, tensors):
        steps.append(tensors["latents"])
        return {}

    pipe = InstantIDPipeline(
        vae=AutoencoderTiny(encoder_block_out_channels=(4,) * 4, decoder_block_out_channels=(4,) * 4),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        controlnet=net,
        scheduler=EulerDiscreteScheduler(**config["scheduler"]),
    )
    adapter.eject()
    pipe.load_instantid(adapter)
    pipe.set_progress_bar_config(disable=True)
    height, width, top, left, *target = (int(number) for number in config["time_ids"])
    pipe(
        person(golden, inputs),
        prompt_embeds=inputs["text"][1:],
        negative_prompt_embeds=inputs["text"][:1],
        pooled_prompt_embeds=inputs["pooled"][1:],
        negative_pooled_prompt_embeds=inputs["pooled"][:1],
        keypoints_image=inputs["kps_image"],
        latents=inputs["pipe_latents"],
        scale=config["ip_adapter_scale"],
        controlnet_conditioning_scale=config["controlnet_conditioning_scale"],
        guidance_scale=config["guidance_scale"],
        num_images_per_prompt=images,
        num_inference_steps=config["num_inference_steps"],
        original_size=(height, width),
        crops_coords_top_left=(top, left),
        target_size=tuple(target),
        callback_on_step_end=keep,
        output_type="latent",
    )
    results |= {
        "pipe_traj_latents": torch.stack(steps),
        "pipe_timesteps": pipe.scheduler.timesteps.float(),
        "pipe_sigmas": pipe.scheduler.sigmas,
        "init_noise_sigma": torch.as_tensor(pipe.scheduler.init_noise_sigma).reshape(1).float(),
    }
    golden.check(results)
