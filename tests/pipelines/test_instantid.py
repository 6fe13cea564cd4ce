"""InstantIDPipeline: who is in the pictures, who reads what, and what is refused."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import ControlNetModel, EulerDiscreteScheduler, MultiControlNetModel, StableDiffusionXLPipeline
from diffusers.callbacks import SDXLControlnetCFGCutoffCallback
from PIL import Image

from idgen.adapters.embeddings import RawEmbeddings, UnitEmbeddings
from idgen.adapters.instantid import InstantIDAdapter, draw_keypoints
from idgen.adapters.schedule import StepScales, sampling_timesteps
from idgen.errors import IdgenError
from idgen.pipelines import InstantIDImg2ImgPipeline, InstantIDPipeline
from tests.tiny_sdxl import FACE, SIZE, person, sdxl_components, tiny_controlnet, tiny_instantid

PROMPT = "photo of a man"


def make_pipe(cls=InstantIDPipeline, **overrides):
    components = sdxl_components() | {"controlnet": tiny_controlnet()} | overrides
    pipe = cls(**components, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe.load_instantid(tiny_instantid(pipe.unet))


@pytest.fixture
def pipe():
    return make_pipe()


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def latents(pipe, identity, prompt=PROMPT, *args, **options):
    """(images, 4, 8, 8) after two steps, fixed seed."""
    defaults = {"num_inference_steps": 2, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    return pipe(identity, prompt, *args, **defaults | options).images


def heard(net: ControlNetModel) -> list[torch.Tensor]:
    """What a ControlNet reads from now on."""
    read: list[torch.Tensor] = []
    # The deepest place where the context is seen: its own cross-attention.
    name, layer = next((name, module) for name, module in net.named_modules() if name.endswith("attn2"))
    assert name
    layer.register_forward_pre_hook(
        lambda _m, _a, kwargs: read.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    return read


def white(columns: slice) -> torch.Tensor:
    mask = torch.zeros(SIZE, SIZE)
    mask[:, columns] = 1
    return mask


LEFT, RIGHT = white(slice(0, SIZE // 2)), white(slice(SIZE // 2, None))


# Who is in the pictures


def test_the_identity_reaches_the_picture_through_the_unet_and_through_identitynet(pipe):
    anna, ben = person(0), RawEmbeddings(person(5).raw, "glintr100")
    same = {"landmarks": FACE}
    for off in ({"scale": 0.0}, {"controlnet_conditioning_scale": 0.0}):
        assert not torch.allclose(latents(pipe, anna, **same, **off), latents(pipe, ben, **same, **off), atol=1e-4)
    off = {"scale": 0.0, "controlnet_conditioning_scale": 0}
    assert torch.equal(latents(pipe, anna, **same, **off), latents(pipe, ben, **same, **off))


def test_a_batch_of_people_and_prompts_equals_each_alone(pipe):
    people = [person(0), person(1, references=3), person(2)]
    prompts = ["photo of a man", "photo of a woman", "a face"]
    batch = latents(pipe, people, prompts, num_images_per_prompt=2, generator=generators(*range(6)))
    for index, (one, prompt) in enumerate(zip(people, prompts, strict=True)):
        seeds = generators(2 * index, 2 * index + 1)
        alone = latents(pipe, one, prompt, num_images_per_prompt=2, generator=seeds)
        torch.testing.assert_close(batch[2 * index : 2 * index + 2], alone, atol=1e-4, rtol=0)


def test_one_prompt_serves_all_people_and_one_person_all_prompts(pipe):
    people, prompts = [person(0), person(1)], ["photo", "face"]
    assert torch.equal(
        latents(pipe, people, "photo", negative_prompt="smiling"),
        latents(pipe, people, ["photo"] * 2, negative_prompt=["smiling"] * 2),
    )
    assert torch.equal(latents(pipe, person(0), prompts), latents(pipe, [person(0)] * 2, prompts))
    assert latents(pipe, people, None).shape == (2, 4, 8, 8)


def test_given_prompt_embeds_serve_all_people(pipe):
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    embeds = dict(zip(names, pipe.encode_prompt(PROMPT, device="cpu"), strict=True))
    people = [person(0), person(1)]
    torch.testing.assert_close(latents(pipe, people, None, **embeds), latents(pipe, people, PROMPT), atol=1e-5, rtol=0)


def test_every_reference_of_a_person_counts(pipe):
    three = person(0, references=3)
    assert not torch.allclose(latents(pipe, three), latents(pipe, three.select([0, 1])), atol=1e-4)


def test_two_people_in_one_picture_each_within_a_mask(pipe):
    anna, ben, cleo = person(0), person(1), person(2)
    same = {"landmarks": torch.stack([FACE, FACE + 9]), "controlnet_conditioning_scale": 0.0, "num_inference_steps": 1}
    both = latents(pipe, [[anna, ben]], mask=[LEFT, RIGHT], **same)
    alone = latents(pipe, anna, mask=LEFT, **same | {"landmarks": FACE})
    other = latents(pipe, [[anna, cleo]], mask=[LEFT, RIGHT], **same)
    assert both.shape == (1, 4, 8, 8)
    assert not torch.allclose(both, alone, atol=1e-4) and not torch.allclose(both, other, atol=1e-4)
    again = latents(pipe, [[ben, anna]], mask=torch.stack([RIGHT, LEFT]), **same)
    torch.testing.assert_close(both, again, atol=1e-5, rtol=0)
    pictures = latents(pipe, [[anna, ben], [cleo, anna]], mask=[LEFT, RIGHT], generator=generators(0, 1))
    single = latents(pipe, [[cleo, anna]], mask=[LEFT, RIGHT], generator=generators(1))
    torch.testing.assert_close(pictures[1:], single, atol=1e-4, rtol=0)


def test_identitynet_sees_all_people_of_a_picture(pipe):
    read, drawn = heard(pipe.controlnet), []
    pipe.controlnet.controlnet_cond_embedding.register_forward_pre_hook(lambda _m, args: drawn.append(args[0]))
    latents(pipe, [[person(0), person(1)]], mask=[LEFT, RIGHT])
    alone = [pipe.instantid.condition(person(seed)).entries[0].tokens for seed in range(2)]
    torch.testing.assert_close(read[0], torch.cat(alone, 1))
    nose = drawn[0][0, 2] > 0.99  # blue alone, and the last mouth corner's magenta
    assert nose[:, : SIZE // 2].any() and nose[:, SIZE // 2 :].any(), "a face in each half"


# Who reads what


def test_identitynet_reads_the_faces_and_the_unet_the_prompt(pipe):
    net, unet = heard(pipe.controlnet), heard(pipe.unet)
    latents(pipe, person(0))
    prompt, negative, *_ = pipe.encode_prompt(PROMPT, device="cpu")
    torch.testing.assert_close(net[0], pipe.instantid.condition(person(0)).entries[0].tokens)
    torch.testing.assert_close(unet[0], torch.cat([negative, prompt]))


def test_tokens_are_made_once_per_call(pipe, monkeypatch):
    made, project = [], pipe.instantid.project
    monkeypatch.setattr(pipe.instantid, "project", lambda *given: made.append(1) or project(*given))
    latents(pipe, [person(0), person(1)])
    assert len(made) == 1


def test_a_further_controlnet_reads_the_prompt(pipe):
    pose = tiny_controlnet(seed=7)
    both = InstantIDPipeline.from_pipe(pipe, controlnet=[pipe.controlnet, pose])
    both.set_progress_bar_config(disable=True)
    assert isinstance(both.controlnet, MultiControlNetModel) and both.instantid is pipe.instantid
    picture = Image.new("RGB", (SIZE, SIZE), "red")
    faces, prompt = heard(pipe.controlnet), heard(pose)
    without = latents(both, person(0), control_image=picture, controlnet_conditioning_scale=[0.8, 0.0])
    torch.testing.assert_close(without, latents(pipe, person(0)), atol=1e-5, rtol=0)
    assert faces[0].shape[1] == 3 and prompt[0].shape[1] == pipe.tokenizer.model_max_length
    assert not torch.allclose(latents(both, person(0), control_image=picture), without, atol=1e-4)
    people = [person(0), person(1)]
    batch = latents(both, people, control_image=[picture], generator=generators(0, 1))
    torch.testing.assert_close(
        batch[1:], latents(both, people[1], control_image=picture, generator=generators(1)), atol=1e-4, rtol=0
    )
    for wrong in (None, [picture, picture]):
        with pytest.raises(IdgenError, match="1 ControlNets beside IdentityNet"):
            latents(both, person(0), control_image=wrong)


def test_a_conditioning_of_another_adapter_joins(pipe):
    other = tiny_instantid(pipe.unet, seed=3).inject(pipe.unet, "other")
    conditioning = other.condition(person(4))
    joined = latents(pipe, person(0), cross_attention_kwargs=conditioning.kwargs)
    assert not torch.allclose(joined, latents(pipe, person(0)), atol=1e-4)


def test_guess_mode_asks_identitynet_for_the_rows_with_identity_only(pipe):
    read = heard(pipe.controlnet)
    for people in ([person(0)], [person(0), person(1)]):
        guessed = latents(pipe, people, guess_mode=True)
        assert torch.isfinite(guessed).all() and not torch.allclose(guessed, latents(pipe, people), atol=1e-4)
    tokens = pipe.instantid.condition(person(0)).entries[0].tokens
    torch.testing.assert_close(read[0], tokens[1:])
    assert torch.isfinite(latents(pipe, person(0), guess_mode=True, guidance_scale=1.0)).all()


def test_the_step_window_is_identitynets(pipe):
    options = {"num_inference_steps": 4, "scale": 0.0}
    steps = {}

    def run(**window):
        seen = []
        keep = lambda _pipe, _step, _time, tensors: seen.append(tensors["latents"]) or {}  # noqa: E731
        latents(pipe, person(0), callback_on_step_end=keep, **options, **window)
        return seen

    always, never = run(), run(controlnet_conditioning_scale=0.0)
    steps = run(control_guidance_end=0.5)
    assert torch.equal(steps[1], always[1]) and not torch.equal(steps[2], always[2])
    late = run(control_guidance_start=0.5)
    assert torch.equal(late[1], never[1]) and not torch.equal(late[2], never[2])


def test_the_face_in_the_unet_has_a_schedule(pipe):
    times = sampling_timesteps(pipe.scheduler, 2)
    never = StepScales(times, torch.zeros(2))
    assert torch.equal(latents(pipe, person(0), schedule=never), latents(pipe, person(0), scale=0.0))


def test_without_guidance_nobody_is_computed(pipe):
    read = heard(pipe.controlnet)
    off = latents(pipe, person(0), guidance_scale=1.0)
    torch.testing.assert_close(read[0], pipe.instantid.condition(person(0), guidance=False).entries[0].tokens)
    assert not torch.allclose(off, latents(pipe, person(0)), atol=1e-4)


def test_guidance_may_end_before_the_steps_do(pipe):
    read = heard(pipe.controlnet)
    cutoff = SDXLControlnetCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    out = latents(pipe, person(0), num_inference_steps=4, callback_on_step_end=cutoff)
    assert torch.isfinite(out).all() and [len(tokens) for tokens in read] == [2, 2, 1, 1]


def test_callbacks_see_the_tensors_they_ask_for(pipe):
    seen = []

    def callback(pipe, step, _timestep, tensors):
        assert set(tensors) == set(pipe._callback_tensor_inputs)
        seen.append(step)
        pipe._interrupt = step == 1
        return tensors

    names = pipe._callback_tensor_inputs
    latents(
        pipe,
        person(0),
        num_inference_steps=4,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=names,
    )
    assert seen == [0, 1]


# Where the face is


def test_landmarks_a_picture_of_them_and_the_identitys_own_are_the_same_thing(pipe):
    drawn = draw_keypoints(FACE.numpy(), (SIZE, SIZE))
    by_points = latents(pipe, person(0, landmarks=False), landmarks=FACE)
    pixels = torch.from_numpy(np.array(drawn)).permute(2, 0, 1) / 255
    for picture in (drawn, [drawn], pixels, pixels[None]):
        assert torch.equal(latents(pipe, person(0), keypoints_image=picture), by_points)
    two = latents(pipe, [person(0)] * 2, landmarks=torch.stack([FACE, FACE + 9]), generator=generators(0, 0))
    torch.testing.assert_close(two[:1], by_points, atol=1e-4, rtol=0)
    assert not torch.allclose(two[1:], by_points, atol=1e-4)
    own = latents(pipe, person(0))
    wide = latents(pipe, person(0), width=2 * SIZE)
    assert own.shape == by_points.shape and wide.shape == (1, 4, 8, 16)
    assert not torch.allclose(own, by_points, atol=1e-4), "an identity's own are put where a portrait has its face"


# Pipelines over the same modules


def test_threads_never_mix_people_on_one_unet_and_one_identitynet(pipe):
    pipes = [
        InstantIDPipeline.from_pipe(
            pipe,
            scheduler=EulerDiscreteScheduler.from_config(pipe.scheduler.config),
            # A fast tokenizer can not be shared by threads.
            tokenizer=copy.deepcopy(pipe.tokenizer),
            tokenizer_2=copy.deepcopy(pipe.tokenizer_2),
        )
        for _ in "ab"
    ]
    people = [person(0), person(1)]
    expected = [latents(one, identity) for one, identity in zip(pipes, people, strict=True)]
    wrong, finished = [], []

    def work(index):
        pipes[index].set_progress_bar_config(disable=True)
        for _ in range(6):
            if not torch.allclose(latents(pipes[index], people[index]), expected[index], atol=1e-4):
                wrong.append(index)
        finished.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and sorted(finished) == [0, 1]


def test_after_a_call_the_modules_are_as_they_were_for_others(pipe):
    plain = StableDiffusionXLPipeline.from_pipe(pipe)
    plain.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "output_type": "latent"}
    before = plain(PROMPT, generator=torch.Generator().manual_seed(0), **options).images
    latents(pipe, person(0))
    with pytest.raises(IdgenError, match="no identity given"):
        latents(pipe, [])
    assert torch.equal(plain(PROMPT, generator=torch.Generator().manual_seed(0), **options).images, before)
    assert pipe.cross_attention_kwargs is None
    pipe.unload_instantid()
    assert "idgen" not in str(vars(pipe.unet).keys()) and pipe.instantid is None


def test_img2img_begins_with_the_picture(pipe):
    img2img = InstantIDImg2ImgPipeline.from_pipe(pipe)
    img2img.set_progress_bar_config(disable=True)
    start = [Image.new("RGB", (SIZE + 5, SIZE), colour) for colour in ("navy", "orange")]
    people, options = [person(0), person(1)], {"strength": 0.6, "num_inference_steps": 4}
    batch = latents(
        img2img, people, PROMPT, start, num_images_per_prompt=2, generator=generators(0, 1, 2, 3), **options
    )
    assert batch.shape == (4, 4, 8, 8)
    alone = latents(
        img2img, people[1], PROMPT, start[1], num_images_per_prompt=2, generator=generators(2, 3), **options
    )
    torch.testing.assert_close(batch[2:], alone, atol=1e-4, rtol=0)
    one = latents(img2img, people[1], PROMPT, start[1], **options)
    assert not torch.allclose(one, latents(img2img, people[0], PROMPT, start[1], **options), atol=1e-4)
    assert not torch.allclose(one, latents(img2img, people[1], PROMPT, start[0], **options), atol=1e-4)
    guessed = latents(img2img, people[1], PROMPT, start[1], guess_mode=True, **options)
    assert torch.isfinite(guessed).all()
    with pytest.raises(IdgenError, match="no picture to begin with"):
        latents(img2img, people[0])
    with pytest.raises(IdgenError, match="3 pictures to begin with"):
        latents(img2img, people, PROMPT, [*start, start[0]])
    with pytest.raises(IdgenError, match="InstantIDImg2ImgPipeline"):
        latents(pipe, people[0], PROMPT, start[0])


@pytest.mark.parametrize("offload", [cpu_offload_with_hook, cpu_offload])
def test_offloaded_modules_give_the_same(pipe, offload):
    expected = latents(pipe, person(0))
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            offload(module, "cpu")
    torch.testing.assert_close(latents(pipe, person(0)), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_compiled_modules_give_the_same(pipe):
    expected = latents(pipe, person(0))
    torch._dynamo.reset()
    pipe.unet = torch.compile(pipe.unet, backend="aot_eager")
    net, pipe.controlnet = pipe.controlnet, torch.compile(tiny_controlnet(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(latents(pipe, person(0)), expected, atol=1e-4, rtol=0)
    pipe.controlnet = torch.compile(net, backend="aot_eager")  # which has listened before
    torch.testing.assert_close(latents(pipe, person(0)), expected, atol=1e-4, rtol=0)
    pose = torch.compile(tiny_controlnet(seed=7), backend="aot_eager")
    both = InstantIDPipeline.from_pipe(pipe, controlnet=MultiControlNetModel([pipe.controlnet, pose]))
    off = {"control_image": Image.new("RGB", (SIZE, SIZE)), "controlnet_conditioning_scale": [0.8, 0.0]}
    torch.testing.assert_close(latents(both, person(0), **off), expected, atol=1e-4, rtol=0)


# Outputs


def test_output_types_agree(pipe):
    people = [person(0), person(1)]
    pt, array, pil = (latents(pipe, people, output_type=kind) for kind in ("pt", "np", "pil"))
    assert pt.shape == (2, 3, SIZE, SIZE) and pt.min() >= 0 and pt.max() <= 1
    np.testing.assert_allclose(pt.permute(0, 2, 3, 1).numpy(), array, atol=1e-6)
    assert np.abs(array[0] * 255 - np.asarray(pil[0])).max() <= 0.51
    as_tuple = pipe(
        people,
        PROMPT,
        num_inference_steps=2,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
        return_dict=False,
    )[0]
    np.testing.assert_array_equal(array, as_tuple)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite(pipe, dtype):
    pipe.to(dtype)
    out = latents(pipe, person(0), scale=0.1, output_type="pt")
    assert out.dtype == dtype and torch.isfinite(out).all()


# What is refused


@pytest.mark.parametrize(
    ("identity", "options", "message"),
    [
        (UnitEmbeddings(person(0).unit(), "glintr100"), {}, "needs raw embeddings"),
        (person(0).raw, {}, "bare tensor"),
        (RawEmbeddings(person(0).raw, "w600k_r50"), {}, "'buffalo_l'.*'antelopev2'"),
        (person(0, landmarks=False), {}, "no landmarks"),
        (RawEmbeddings(person(0).raw, "glintr100"), {}, "no landmarks"),
        ([], {}, "no identity"),
        ([[person(0)], [person(1), person(2)]], {}, "same number of people"),
        ([[person(0), person(1)]], {}, "mask each"),
        ([[person(0), person(1)]], {"mask": [LEFT]}, "mask each"),
        (person(0), {"mask": torch.ones(SIZE, 2 * SIZE)}, "proportions"),
        (person(0), {"landmarks": FACE[:4]}, "landmarks of shape"),
        (person(0), {"landmarks": FACE.expand(2, 5, 2)}, "landmarks of shape"),
        (person(0), {"landmarks": [FACE.tolist(), FACE[:4].tolist()]}, "differ in number"),
        (person(0), {"landmarks": FACE * float("nan")}, "not finite"),
        (person(0), {"landmarks": FACE, "keypoints_image": Image.new("RGB", (SIZE, SIZE))}, "and not both"),
        (person(0), {"keypoints_image": Image.new("RGB", (32, 32)), "height": SIZE}, "draw it at that size"),
        (person(0), {"keypoints_image": np.full((SIZE, SIZE, 3), 255, np.uint8)}, "outside"),
        (person(0), {"keypoints_image": "face.png"}, "keypoints_image is a PIL image"),
        (person(0), {"width": 63}, "multiples of 8"),
        ([person(0)] * 2, {"prompt": ["a", "b", "c"]}, "2 given as identity for 3 pictures"),
        (person(0), {"control_image": Image.new("RGB", (SIZE, SIZE))}, "0 ControlNets beside IdentityNet"),
        (person(0), {"scale": float("nan")}, "finite"),
        (person(0), {"num_images_per_prompt": 0}, "images"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(pipe, identity, options, message):
    with pytest.raises(IdgenError, match=message) as error:
        latents(pipe, identity, **options)
    assert "\n" not in str(error.value)


def test_an_unknown_argument_is_an_error(pipe):
    with pytest.raises(TypeError, match="num_step"):
        pipe(person(0), PROMPT, num_step=3)


def test_without_an_adapter_or_an_identitynet_that_fits_the_call_is_refused(pipe):
    components = pipe.components
    bare = InstantIDPipeline(**components, add_watermarker=False)
    with pytest.raises(IdgenError, match="no InstantID adapter"):
        latents(bare, person(0))
    pipe.unet = sdxl_components(seed=1)["unet"]
    with pytest.raises(IdgenError, match="not in this pipeline's UNet"):
        latents(pipe, person(0))
    other = ControlNetModel.from_config({**tiny_controlnet().config, "cross_attention_dim": 16})
    wrong = make_pipe(controlnet=other)
    with pytest.raises(IdgenError, match="must be IdentityNet"):
        latents(wrong, person(0))
    assert isinstance(wrong.instantid, InstantIDAdapter)
