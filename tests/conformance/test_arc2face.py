"""Arc2Face against the original, through the published layout: pickled encoder with old keys, UNet, SD 1.5 base."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, PNDMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file

from idgen.adapters.arc2face import Arc2FaceConfig
from idgen.adapters.injections.prompt_token import embed_tokens, encode_embeddings
from idgen.pipelines import Arc2FacePipeline
from tests.conformance.golden import Golden, goldens
from tests.tiny import tiny_text_encoder, tiny_tokenizer, tiny_unet, tiny_vae, word_tokenizer


@pytest.mark.parametrize("folder", goldens("arc2face_id_projection"), ids=lambda folder: folder.name)
def test_identity_projection_equals_the_original(folder, tmp_path):
    golden = Golden(folder)
    config, inputs = golden.config["text_encoder"], golden.inputs()
    write_encoder(tmp_path / "arc2face", golden.weights("text_encoder."), config)
    hidden, length = config["hidden_size"], inputs["input_ids"].shape[1]
    tiny_unet(hidden, latent_channels=4).save_pretrained(tmp_path / "arc2face" / "arc2face")
    words = dict(zip(Arc2FaceConfig().prompt.split(), golden.config["prompt_words"], strict=True))
    tokenizer = word_tokenizer(words, bos=config["bos_token_id"], eos=config["eos_token_id"], length=length)
    base = write_base(tmp_path / "base", tokenizer, hidden, PNDMScheduler(skip_prk_steps=True, steps_offset=1))

    pipe = Arc2FacePipeline.from_pretrained(tmp_path / "arc2face", base=base)

    assert tokenizer(Arc2FaceConfig().prompt, padding="max_length").input_ids == inputs["input_ids"][0].tolist()
    with torch.no_grad():
        plain = encode_embeddings(pipe.text_encoder, embed_tokens(pipe.text_encoder, inputs["input_ids"]))
    results = {
        "prompt_embeds_n1": pipe.encode_identity(inputs["face"]),
        "prompt_embeds_batch": pipe.encode_identity(inputs["faces"]),
        "uncond_embeds": pipe.encode_null(),
        "no_substitution": plain[:, : golden.meta["outputs"]["no_substitution"]["shape"][1]],
    }
    golden.check(results)

    position = golden.config["id_position"]
    differs = (results["prompt_embeds_n1"] - plain)[0].abs().amax(-1) > 1e-4
    assert not differs[:position].any(), "words ahead of the face must not change"
    assert differs[position:].all(), "the face must reach every later word"


@pytest.mark.parametrize("folder", goldens("arc2face_unet_step"), ids=lambda folder: folder.name)
def test_sampling_equals_the_original(folder, tmp_path):
    golden = Golden(folder)
    config, inputs = golden.config, golden.inputs()
    hidden, channels = config["unet"]["cross_attention_dim"], config["unet"]["in_channels"]
    tokenizer = tiny_tokenizer(length=inputs["prompt_embeds"].shape[1])
    encoder = tiny_text_encoder(tokenizer, hidden)  # plays no part: prompt embeddings are given
    write_encoder(tmp_path / "arc2face", old_keys(encoder), encoder.config.to_dict())
    write_unet(tmp_path / "arc2face" / "arc2face", golden.weights("unet."), config["unet"])
    scheduler = PNDMScheduler.from_config(config["base_scheduler_PNDM"])
    base = write_base(tmp_path / "base", tokenizer, hidden, scheduler, channels)

    pipe = Arc2FacePipeline.from_pretrained(tmp_path / "arc2face", base=base)
    assert isinstance(pipe.scheduler, DPMSolverMultistepScheduler)
    guided, latents = trajectory(pipe, config, inputs)

    images = config["num_images_per_prompt"]
    cond = inputs["prompt_embeds"].repeat_interleave(images, dim=0)
    uncond = inputs["uncond_embeds"].expand_as(cond)
    with torch.no_grad():
        both = pipe.unet(inputs["latents"].repeat(2, 1, 1, 1), inputs["timestep"][0], torch.cat([uncond, cond])).sample
    eps_uncond, eps_cond = both.chunk(2)
    golden.check(
        {
            "eps_uncond": eps_uncond,
            "eps_cond": eps_cond,
            "eps_cfg": eps_uncond + config["guidance_scale"] * (eps_cond - eps_uncond),
            "timesteps": pipe.scheduler.timesteps,
            "sigmas": pipe.scheduler.sigmas,
            "traj_eps_cfg": torch.stack(guided),
            "traj_latents": torch.stack(latents),
        }
    )


def trajectory(pipe, config, inputs):
    """The guided prediction and the latents of every step of a call."""
    guided, latents = [], []
    step = pipe.scheduler.step

    def record(model_output, *args, **kwargs):
        guided.append(model_output)
        return step(model_output, *args, **kwargs)

    pipe.scheduler.step = record
    pipe.set_progress_bar_config(disable=True)
    pipe(
        prompt_embeds=inputs["prompt_embeds"],
        negative_prompt_embeds=inputs["uncond_embeds"],
        latents=inputs["latents"],
        num_inference_steps=config["num_inference_steps"],
        guidance_scale=config["guidance_scale"],
        num_images_per_prompt=config["num_images_per_prompt"],
        output_type="latent",
        callback_on_step_end=lambda _pipe, _i, _t, tensors: latents.append(tensors["latents"]) or {},
    )
    return guided, latents


def write_base(folder: Path, tokenizer, hidden, scheduler, channels=4) -> Path:
    """A Stable Diffusion folder; its own UNet and text encoder are decoys."""
    StableDiffusionPipeline(
        vae=tiny_vae(channels),
        text_encoder=tiny_text_encoder(tokenizer, hidden),
        tokenizer=tokenizer,
        unet=tiny_unet(hidden, latent_channels=channels),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def write_encoder(folder: Path, weights, config) -> None:
    """encoder/ as the authors published it: a pickle with transformers 4's keys."""
    (folder / "encoder").mkdir(parents=True)
    length = config["max_position_embeddings"]
    weights = weights | {"text_model.embeddings.position_ids": torch.arange(length)[None]}
    torch.save(weights, folder / "encoder" / "pytorch_model.bin")
    described = config | {"architectures": ["CLIPTextModelWrapper"], "model_type": "clip_text_model"}
    (folder / "encoder" / "config.json").write_text(json.dumps(described))


def write_unet(folder: Path, weights, config) -> None:
    folder.mkdir(parents=True)
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"} | config))


def old_keys(encoder):
    return {f"text_model.{key}": value for key, value in encoder.state_dict().items()}
