"""What diffusers' own suite asks of every pipeline, asked of Arc2FacePipeline: calls, batches, outputs, switches."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from diffusers.models.attention_processor import FusedAttnProcessor2_0
from diffusers.schedulers import KarrasDiffusionSchedulers

from idgen.errors import IdgenError
from idgen.pipelines import Arc2FacePipeline
from tests.pipelines.conftest import make_pipe, tiny_kl
from tests.tiny import tiny_components


def images(pipe, faces, **options):
    """(images, 3, 32, 32) in [0, 1], three steps, fixed seed."""
    defaults = {"num_inference_steps": 3, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    return pipe(faces, **defaults | options).images


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_call_takes_every_argument_of_stable_diffusion_that_is_not_text():
    ours = set(inspect.signature(Arc2FacePipeline.__call__).parameters)
    theirs = set(inspect.signature(StableDiffusionPipeline.__call__).parameters)
    assert theirs - ours == {"prompt", "negative_prompt", "clip_skip", "kwargs"}
    assert ours - theirs == {"identity"}


def test_an_unknown_argument_is_an_error(pipe, faces):
    with pytest.raises(TypeError, match="num_step"):
        pipe(faces, num_step=3)


def test_same_seed_gives_the_same_images_and_another_seed_others(pipe, faces):
    first = images(pipe, faces)
    assert torch.equal(first, images(pipe, faces))
    assert not torch.allclose(first, images(pipe, faces, generator=torch.Generator().manual_seed(1)))


def test_the_identity_reaches_the_image(pipe, faces):
    latents = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    one, other = (images(pipe, face[None], latents=latents, output_type="latent") for face in faces[:2])
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("people", [1, 2, 3])
@pytest.mark.parametrize("copies", [1, 2])
def test_number_and_shape_of_images(pipe, faces, people, copies):
    out = images(pipe, faces[:people], num_images_per_prompt=copies)
    assert out.shape == (people * copies, 3, 32, 32)
    assert torch.isfinite(out).all() and out.min() >= 0 and out.max() <= 1


def test_images_come_person_by_person(pipe, faces):
    batch = images(pipe, faces[:2], num_images_per_prompt=2, generator=generators(0, 1, 2, 3))
    second = images(pipe, faces[1:2], num_images_per_prompt=2, generator=generators(2, 3))
    torch.testing.assert_close(batch[2:], second, atol=1e-5, rtol=0)


def test_a_batch_equals_its_people_one_by_one(pipe, faces):
    batch = images(pipe, faces, generator=generators(0, 1, 2))
    singles = [images(pipe, face[None], generator=generators(seed)) for seed, face in enumerate(faces)]
    torch.testing.assert_close(batch, torch.cat(singles), atol=1e-5, rtol=0)


def test_dict_and_tuple_outputs_are_equal(pipe, faces):
    options = {"num_inference_steps": 2, "output_type": "np"}
    as_dict = pipe(faces, generator=torch.Generator().manual_seed(0), **options).images
    as_tuple = pipe(faces, generator=torch.Generator().manual_seed(0), return_dict=False, **options)[0]
    np.testing.assert_array_equal(as_dict, as_tuple)


def test_pt_np_and_pil_outputs_are_equal(pipe, faces):
    pt, array, pil = (images(pipe, faces, output_type=kind) for kind in ("pt", "np", "pil"))
    np.testing.assert_allclose(pt.permute(0, 2, 3, 1).numpy(), array, atol=1e-6)
    for one, picture in zip(array, pil, strict=True):
        assert picture.size == (32, 32) and picture.mode == "RGB"
        assert np.abs(one * 255 - np.asarray(picture)).max() <= 0.51


def test_latent_output_decodes_to_the_same_image(pipe, faces):
    latents = images(pipe, faces, output_type="latent")
    assert latents.shape == (3, 8, 4, 4)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1), images(pipe, faces), atol=1e-5, rtol=0)


def test_given_latents_are_used(pipe, faces):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 8, 4, 4, generator=generator)
    torch.testing.assert_close(images(pipe, faces, latents=latents), images(pipe, faces), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(32, 64), (48, 32)])
def test_other_sizes(pipe, faces, height, width):
    assert images(pipe, faces[:1], height=height, width=width).shape == (1, 3, height, width)


def test_guidance_of_one_leaves_the_negative_side_out(pipe, faces):
    sizes = []
    pipe.unet.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    images(pipe, faces, guidance_scale=1.0)
    assert set(sizes) == {3}
    images(pipe, faces, guidance_scale=3.0)
    assert set(sizes) == {3, 6}


def test_guidance_uses_the_empty_prompt_of_the_finetuned_encoder(pipe, faces):
    explicit = pipe.text_encoder(pipe.tokenizer([""] * 3, padding="max_length", return_tensors="pt").input_ids)[0]
    torch.testing.assert_close(
        images(pipe, faces), images(pipe, faces, negative_prompt_embeds=explicit), atol=1e-5, rtol=0
    )
    assert not torch.allclose(images(pipe, faces), images(pipe, faces, negative_prompt_embeds=explicit + 1))


def test_the_text_encoder_runs_once_per_call_and_side(pipe, faces):
    batches = []
    pipe.text_encoder.encoder.register_forward_hook(
        lambda _m, _a, kwargs, _o: batches.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    images(pipe, faces, num_images_per_prompt=2)
    assert batches == [3, 1]


def test_prompt_embeds_are_computed_in_isolation_and_reused(pipe, faces):
    encoder_only = make_pipe(unet=None, vae=None)
    embeds, null = encoder_only.encode_identity(faces), encoder_only.encode_null()
    assert embeds.shape == (3, 16, 512) and null.shape == (1, 16, 512)
    rest = make_pipe(text_encoder=None, tokenizer=None)
    out = images(rest, None, prompt_embeds=embeds, negative_prompt_embeds=null)
    torch.testing.assert_close(out, images(pipe, faces), atol=1e-5, rtol=0)


@pytest.mark.parametrize("given", ["both", "neither"])
def test_identity_or_prompt_embeds_and_not_both(pipe, faces, given):
    embeds = pipe.encode_identity(faces) if given == "both" else None
    with pytest.raises(IdgenError, match="identity or prompt_embeds"):
        pipe(faces if given == "both" else None, prompt_embeds=embeds)


def test_callback_sees_and_changes_the_tensors_it_asks_for(pipe, faces):
    steps = []

    def callback(_pipe, step, _timestep, tensors):
        assert set(tensors) == set(pipe._callback_tensor_inputs)
        steps.append(step)
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else tensors

    out = images(
        pipe,
        faces,
        output_type="latent",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs,
    )
    assert steps == [0, 1, 2]
    assert out.abs().sum() == 0


def test_callback_may_raise_the_guidance(pipe, faces):
    def callback(pipe, _step, _timestep, tensors):
        pipe._guidance_scale += 1
        return tensors

    images(pipe, faces, guidance_scale=2.0, callback_on_step_end=callback)
    assert pipe.guidance_scale == 5.0


def test_callback_may_interrupt(pipe, faces):
    seen = []

    def callback(pipe, step, _timestep, tensors):
        seen.append(step)
        pipe._interrupt = True
        return tensors

    images(pipe, faces, num_inference_steps=5, callback_on_step_end=callback)
    assert seen == [0]


# Not those that need a package which idgen does not (torchsde): diffusers then exports a dummy.
SCHEDULERS = [
    entry.name for entry in KarrasDiffusionSchedulers if not hasattr(getattr(diffusers, entry.name), "_backends")
]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_of_stable_diffusion(pipe, faces, scheduler):
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    assert torch.isfinite(images(pipe, faces[:1], num_inference_steps=20)).all()


@pytest.mark.parametrize(
    "scheduler",
    [
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
        PNDMScheduler,
        LCMScheduler,
        EulerAncestralDiscreteScheduler,
    ],
)
def test_scheduler_changes_the_image(pipe, faces, scheduler):
    before = images(pipe, faces[:1], num_inference_steps=10)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    assert not torch.equal(images(pipe, faces[:1], num_inference_steps=10), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_and_near(pipe, faces, dtype):
    latents = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    full = images(pipe, faces, latents=latents)
    pipe.to(dtype)
    half = images(pipe, faces, latents=latents.to(dtype))
    assert half.dtype == dtype and torch.isfinite(half).all()
    assert (half.float() - full).abs().max() < 0.1


def test_mixed_dtypes_per_component_are_accepted(root, faces):
    pipe = Arc2FacePipeline.from_pretrained(
        root, dtype={"unet": torch.bfloat16, "text_encoder": torch.bfloat16, "default": torch.float32}
    )
    assert (pipe.unet.dtype, pipe.text_encoder.dtype, pipe.vae.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    )


def test_freeu_changes_the_image_and_is_undone(pipe, faces):
    before = images(pipe, faces)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)
    assert not torch.allclose(images(pipe, faces), before)
    pipe.disable_freeu()
    assert torch.equal(images(pipe, faces), before)


def test_fused_qkv_projections_change_nothing(pipe, faces):
    before = images(pipe, faces)
    pipe.fuse_qkv_projections(vae=False)
    assert any(isinstance(one, FusedAttnProcessor2_0) for one in pipe.unet.attn_processors.values())
    torch.testing.assert_close(images(pipe, faces), before, atol=1e-4, rtol=0)
    pipe.unfuse_qkv_projections(vae=False)
    torch.testing.assert_close(images(pipe, faces), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["tiny", "kl"])
def test_vae_slicing_and_tiling_change_nothing(faces, kind):
    pipe = make_pipe() if kind == "tiny" else make_pipe(vae=tiny_kl())
    before = images(pipe, faces)
    pipe.vae.enable_slicing()
    torch.testing.assert_close(images(pipe, faces), before, atol=1e-4, rtol=0)
    pipe.vae.disable_slicing()
    pipe.vae.enable_tiling()  # larger tiles than these images
    torch.testing.assert_close(images(pipe, faces), before, atol=1e-4, rtol=0)
    assert images(pipe, faces[:1], height=64, width=32).shape == (1, 3, 64, 32)


def test_from_pipe_shares_components_and_gives_the_same_images(pipe, faces):
    plain = StableDiffusionPipeline(
        **tiny_components(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    ours = Arc2FacePipeline.from_pipe(plain, recogniser="mini")
    ours.set_progress_bar_config(disable=True)
    assert ours.unet is plain.unet and ours.config.recogniser == "mini"
    assert torch.equal(images(ours, faces), images(pipe, faces))
    back = StableDiffusionPipeline.from_pipe(ours, vae=ours.vae)
    assert back.unet is plain.unet
