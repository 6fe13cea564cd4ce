"""WPlusPipeline: codes and identities in, edits, delay, batches, loading and saving."""

import copy
import json
import shutil
import threading

import numpy as np
import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)

from idgen import FaceEncoder, Identity, IdgenError
from idgen.adapters.wplus import WPlusAdapter, WPlusConfig
from idgen.adapters.wplus.directions import LinearDirection
from idgen.adapters.wplus.portraits import portrait, portraits_of_crops
from idgen.faces import Face, norm_crop
from idgen.faces.align import ARCFACE_TEMPLATE
from idgen.faces.torch_backend import TorchRecogniser
from idgen.models.e4e import E4E, Encoder4Editing
from idgen.models.stylegan2 import Generator
from idgen.pipelines import WPlusPipeline
from tests.tiny import HIDDEN, tiny_components

GROUPS, DIM, SIDE = (2, 2, 2, 2), 12, 32  # of a code, and of the faces that the tiny e4e sees
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
PROMPT = "photo of a woman"


def random_(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 0.5)
    return module.eval().requires_grad_(False)


def make_pipe(e4e=None, **config):
    pipe = WPlusPipeline(**tiny_components(), **NO_CHECKER)
    pipe.set_progress_bar_config(disable=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"cross_attention_dim": HIDDEN, "groups": GROUPS, "style_dim": DIM} | config
        return pipe.load_wplus(random_(WPlusAdapter.for_unet(pipe.unet, WPlusConfig(**sizes))), e4e)


@pytest.fixture(scope="module")
def e4e():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Encoder4Editing((16, 16, 16, 16), DIM, sum(GROUPS), SIDE)
        return E4E(encoder, Generator((4, 4, 4, 4), DIM, 1)).eval().requires_grad_(False)


@pytest.fixture
def pipe(e4e):
    return make_pipe(e4e)


@pytest.fixture
def w():
    return torch.randn(3, sum(GROUPS), DIM, generator=torch.Generator().manual_seed(1))


def images(pipe, *given, **options):
    defaults = {"num_inference_steps": 5, "output_type": "latent", "generator": generators(0)}
    return pipe(*given, **defaults | options).images


def generators(*seeds):
    made = [torch.Generator().manual_seed(seed) for seed in seeds]
    return made if len(made) > 1 else made[0]


def differ(one, other):
    return bool((one - other).abs().max() > 1e-3)


def close(one, other):
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def person(seed=0, references=1, crops=True):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (references, 112, 112, 3), dtype=torch.uint8, generator=generator)
    return Identity(torch.randn(references, 512, generator=generator), "w600k_r50", pixels if crops else None)


SMILE = LinearDirection(torch.ones(1, DIM))


# Codes, prompts, edits


def test_the_code_reaches_the_picture_and_prompt_and_code_may_change_places(pipe, w):
    first = images(pipe, w[0], PROMPT)
    assert torch.equal(first, images(pipe, PROMPT, w=w[0])) and torch.equal(first, images(pipe, PROMPT, w[:1]))
    assert differ(first, images(pipe, w[1], PROMPT)) and differ(first, images(pipe, w[0], "photo of a man"))
    pipe.unload_wplus()
    assert differ(first, StableDiffusionPipeline.__call__(pipe, PROMPT, **RUN, generator=generators(0)).images)


RUN = {"num_inference_steps": 5, "output_type": "latent"}


def test_scale_zero_is_stable_diffusion(pipe, w):
    plain = StableDiffusionPipeline.__call__(pipe, PROMPT, **RUN, generator=generators(0)).images
    assert torch.equal(images(pipe, w[0], PROMPT, scale=0.0), plain)
    pipe.unload_wplus()
    assert torch.equal(StableDiffusionPipeline.__call__(pipe, PROMPT, **RUN, generator=generators(0)).images, plain)


def test_edits_move_the_code_one_after_the_other(pipe, w):
    first = images(pipe, w[0], PROMPT)
    assert torch.equal(first, images(pipe, w[0], PROMPT, edits=[(SMILE, 0.0)]))
    edited = images(pipe, w[0], PROMPT, edits=[(SMILE, 2.0), (LinearDirection(torch.ones(1, DIM), (0, 4)), -1)])
    moved = w[0] + 2
    moved[:4] -= 1
    assert differ(edited, first)
    close(edited, images(pipe, moved, PROMPT))


def test_a_batch_of_people_and_prompts_equals_its_members(pipe, w):
    prompts = ["photo of a woman", "photo of a man", "smiling person"]
    run = {"num_images_per_prompt": 2, "negative_prompt": "face", "edits": [(SMILE, 1.0)]}
    batch = images(pipe, w, prompts, generator=generators(*range(6)), **run)
    assert len(batch) == 6
    for index in range(3):
        alone = images(pipe, w[index], prompts[index], generator=generators(2 * index, 2 * index + 1), **run)
        close(batch[2 * index : 2 * index + 2], alone)
    embeds = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    for people, texts in ((w[0], prompts[:2]), (w[:2], prompts[:1]), (list(w[:2]), PROMPT)):
        assert len(images(pipe, people, texts, guidance_scale=1.0)) == 2
    given = images(pipe, w[:2], prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], generator=generators(0, 1))
    close(given, images(pipe, w[:2], PROMPT, generator=generators(0, 1)))


# The delay


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, UniPCMultistepScheduler, HeunDiscreteScheduler])
def test_the_adapter_rests_up_to_and_including_the_start_step(pipe, w, scheduler):
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    order = pipe.scheduler.order

    def path(**options):
        seen = []

        def keep(pipe, step, timestep, tensors):
            seen.append(tensors["latents"])
            return tensors

        images(pipe, w[0], PROMPT, callback_on_step_end=keep, **options)
        return seen

    base = path(scale=0.0)
    for options, rested in (
        ({"start_ratio": None}, 0),
        ({"start_ratio": 0.0}, 1),
        ({}, 2),  # int(0.2 * 5) = 1: steps 0 and 1
        ({"start_step": 2}, 3),
    ):
        steps = path(**options)
        same = [bool(torch.equal(*pair)) for pair in zip(steps, base, strict=True)]
        # Of a second-order step the second half looks from the next timestep, where the adapter acts again.
        whole = max(0, rested * order - (order - 1))
        assert all(same[:whole]) and not any(same[rested * order :]), options
    assert torch.equal(path(start_step=5)[-1], base[-1])


def test_own_timesteps_count_for_the_delay(pipe, w):
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    times = [900, 600, 300, 100]
    one, two = ({"timesteps": times, "start_ratio": 0.5}, {"timesteps": times, "start_step": 2})
    assert torch.equal(images(pipe, w[0], PROMPT, **one), images(pipe, w[0], PROMPT, **two))
    assert differ(images(pipe, w[0], PROMPT, **one), images(pipe, w[0], PROMPT, timesteps=times))


def test_the_authors_bound_on_the_delay(pipe):
    rests = pipe._schedule(1.0, None, 50, {}).factors == 0
    assert rests.sum() == 31


# Faces


def test_an_identity_stands_for_the_code_of_its_crops(pipe, e4e):
    anna, ben = person(0), person(1, references=2)
    codes = pipe.encode_identity([anna, ben])
    assert codes.shape == (2, sum(GROUPS), DIM)
    close(codes[0], e4e(portraits_of_crops(anna.crops, SIDE))[0])
    close(codes[1], torch.cat([pipe.encode_identity(ben.select(index)) for index in range(2)]).mean(0))
    assert torch.equal(images(pipe, anna, PROMPT), images(pipe, codes[0], PROMPT))
    mixed = images(pipe, [anna, codes[1]], PROMPT, generator=generators(0, 1))
    close(mixed, images(pipe, [anna, ben], PROMPT, generator=generators(0, 1)))


def scene(side=400):
    """A smooth picture, and where in it a face's five points would be: the template, enlarged and turned a little."""
    y, x = np.mgrid[0:side, 0:side] / side
    pixels = np.stack([x, y, 0.5 + 0.4 * np.sin(9 * x) * np.cos(7 * y)], -1) * 255
    turn = 2.2 * np.array([[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]])
    points = (ARCFACE_TEMPLATE - 56) @ turn.T + side / 2
    return pixels.astype(np.uint8), points.astype(np.float32)


def test_a_crop_is_reframed_to_where_the_photo_has_it():
    pixels, points = scene()
    direct = portrait(pixels, points, 64)
    again = portraits_of_crops(torch.from_numpy(norm_crop(pixels, points))[None], 64)[0]
    inside = slice(10, 54)
    assert (again - direct)[:, inside, inside].abs().max() < 0.06
    border = torch.cat([again[:, :6].flatten(), again[:, -6:].flatten(), again[:, :, :6].flatten()])
    assert (border == 1).all(), "white surrounds what the crop shows"


def test_a_mask_whitens_and_the_photos_edge_is_white():
    pixels, points = scene()
    mask = np.zeros(pixels.shape[:2], np.float32)
    mask[:, :200] = 1
    plain, masked = portrait(pixels, points, 64), portrait(pixels, points, 64, mask)
    assert (masked[:, :, -8:] == 1).all() and torch.equal(masked[:, 20:44, :8], plain[:, 20:44, :8])
    assert torch.equal(portrait(pixels, points, 64, np.ones_like(mask)), plain)
    assert (portrait(pixels, points - 200, 64)[:, :8, :8] == 1).all()
    with pytest.raises(IdgenError, match="does not fit a photo"):
        portrait(pixels, points, 64, mask[:100])


def finder(*faces):
    return FaceEncoder(lambda pixels: list(faces), TorchRecogniser(torch.nn.Identity()), "stub")


def test_photos_become_codes(pipe, e4e):
    pixels, points = scene()
    low, high = points.min(0) - 40, points.max(0) + 40
    faces = finder(Face(np.concatenate([low, high]), points, 0.9))
    codes = pipe.encode([pixels, 255 - pixels], faces=faces)
    assert codes.shape == (2, sum(GROUPS), DIM)
    close(codes[:1], e4e(portrait(pixels, points, SIDE)[None]))
    mask = np.zeros(pixels.shape[:2], bool)
    mask[100:300, 100:300] = True
    close(pipe.encode(pixels, mask, faces=faces), e4e(portrait(pixels, points, SIDE, mask)[None]))
    for arguments, words in (
        (([],), "0 photos"),
        (([pixels], [mask, mask]), "2 masks"),
        ((pixels, mask[:50]), "does not fit a photo"),
    ):
        with pytest.raises(IdgenError, match=words):
            pipe.encode(*arguments, faces=faces)
    with pytest.raises(IdgenError, match="no face found in photo 0"):
        pipe.encode(pixels, faces=finder())


# Beside others


def test_two_pipelines_on_one_unet_never_mix_people(pipe, w):
    other = WPlusPipeline.from_pipe(pipe, vae=pipe.vae)  # diffusers only passes on an AutoencoderKL
    other.set_progress_bar_config(disable=True)
    other.scheduler, other.tokenizer = copy.deepcopy(pipe.scheduler), copy.deepcopy(pipe.tokenizer)
    assert other.unet is pipe.unet and other.wplus is pipe.wplus and other.e4e is pipe.e4e
    expected = [images(pipe, code, PROMPT) for code in w[:2]]
    wrong = []

    def work(one, index):
        wrong.extend(
            index for _ in range(5) if not torch.allclose(images(one, w[index], PROMPT), expected[index], atol=1e-4)
        )

    threads = [threading.Thread(target=work, args=pair) for pair in ((pipe, 0), (other, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_guidance_may_end_within_a_call(pipe, w):
    def callback(pipe, step, timestep, tensors):
        if step == 2:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        return tensors

    names = ["latents", "prompt_embeds"]
    ended = images(pipe, w[0], PROMPT, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    assert differ(ended, images(pipe, w[0], PROMPT))


def test_output_types_and_half_precision(pipe, w):
    for kind in ("pil", "np", "pt"):
        made = images(pipe, w[:2], PROMPT, output_type=kind)
        assert len(made) == 2
    pipe.to(torch.bfloat16)
    assert images(pipe, w[:2], PROMPT, output_type="pt").isfinite().all()


# Loading and saving


def load(name, **options):
    pipe = WPlusPipeline.from_pretrained(name, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def published(root, tmp_path):
    """The authors' file, and a Stable Diffusion folder."""
    folder = tmp_path / "release"
    folder.mkdir()
    adapter = make_pipe(groups=(4, 4, 4, 6), style_dim=512).wplus
    state = adapter.state_dict()
    numbers = sorted({key.split(".")[1] for key in state if key.startswith("kv.")})
    layers = {f"{n}.to_q_wplus.weight": state[f"query.{n}.weight"] for n in numbers}
    layers |= {f"{n}.to_{x}_wplus.weight": state[f"kv.{n}.to_{x}.weight"] for n in numbers for x in "kv"}
    projector = {key.removeprefix("w_proj."): value for key, value in state.items() if key.startswith("w_proj.")}
    torch.save({"w_proj": projector, "wplus_adapter": layers}, folder / "wplus_adapter.bin")
    return folder, root


def test_the_published_layout_loads(published, tmp_path):
    folder, base = published
    w = torch.randn(18, 512, generator=torch.Generator().manual_seed(1))
    pipe = load(folder, base=base)
    assert pipe.e4e is None and pipe.safety_checker is None
    expected = images(make_pipe(groups=(4, 4, 4, 6), style_dim=512), w, PROMPT)
    assert torch.equal(images(pipe, w, PROMPT), expected)
    assert torch.equal(images(load(folder / "wplus_adapter.bin", base=base), w, PROMPT), expected)
    pipe.save_pretrained(tmp_path / "mine")
    assert torch.equal(images(load(tmp_path / "mine"), w, PROMPT), expected)
    half = load(folder, base=base, dtype={"unet": torch.bfloat16, "default": torch.float32})
    assert {half.unet.dtype, half.wplus.w_proj.norm.weight.dtype} == {torch.bfloat16}
    assert half.vae.dtype == torch.float32


def test_the_authors_sampler_takes_the_place_of_pndm(published, tmp_path):
    folder, root = published
    base = shutil.copytree(root, tmp_path / "sd15")
    PNDMScheduler(skip_prk_steps=True).save_pretrained(base / "scheduler")
    index = json.loads((base / "model_index.json").read_text()) | {"scheduler": ["diffusers", "PNDMScheduler"]}
    (base / "model_index.json").write_text(json.dumps(index))
    assert isinstance(load(folder, base=base).scheduler, EulerDiscreteScheduler)
    chosen = UniPCMultistepScheduler()
    assert load(folder, base=base, scheduler=chosen).scheduler is chosen


def test_what_is_saved_loads_with_its_encoder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "mine")
    again = load(tmp_path / "mine")
    assert again.wplus.config == pipe.wplus.config
    assert torch.equal(images(again, person(), PROMPT), images(pipe, person(), PROMPT))
    torch.save({"state_dict": pipe.e4e.state_dict()}, tmp_path / "e4e_ffhq_encode.pt")
    pipe.wplus.save(tmp_path / "wplus_adapter.safetensors")
    beside = load(tmp_path, base=tmp_path / "mine")
    assert torch.equal(images(beside, person(), PROMPT), images(pipe, person(), PROMPT))


def test_sources_that_do_not_fit_are_named(published, pipe, tmp_path):
    folder, base = published
    for name, options, words in (
        ("mini", {}, "no such folder"),
        (base, {"base": base}, "holds no wplus_adapter.bin"),
        (folder, {"base": "nothing"}, "no such folder: nothing"),
        (folder, {}, "hf download stable-diffusion-v1-5"),
        ("somebody/something", {}, "hf download somebody/something"),
        (folder, {"base": base / "vae"}, "config.json"),
    ):
        with pytest.raises(IdgenError, match=words) as error:
            load(name, **options)
        assert "\n" not in str(error.value)
    torch.save({"state_dict": pipe.e4e.state_dict()}, folder / "e4e_ffhq_encode.pt")
    with pytest.raises(IdgenError, match=r"reads codes \(18, 512\), and this e4e makes \(8, 12\)"):
        load(folder, base=base)


# What is refused


def test_wrong_inputs_are_refused_in_one_line(pipe, w):
    for given, options, words in (
        ((PROMPT,), {}, "0 identities and 1 prompts"),
        ((w[0], w[1]), {}, "2 identities"),
        ((w[0],), {}, "no prompt given"),
        ((w[0, :4], PROMPT), {}, r"expected \[8, 12\]"),
        ((w[0] * torch.nan, PROMPT), {}, "NaN"),
        (([], PROMPT), {}, "no identity given"),
        ((w, [PROMPT, PROMPT]), {}, "2 prompts given for 3 people"),
        ((w[0], PROMPT), {"edits": [(SMILE, float("inf"))]}, "finite"),
        ((w[0], PROMPT), {"edits": [SMILE]}, "an edit is a pair"),
        ((w[0], PROMPT), {"edits": [(LinearDirection(torch.ones(1, 7)), 1.0)]}, "this direction edits codes"),
        ((w[0], PROMPT), {"start_ratio": 20}, "the authors' 20 is 0.2"),
        ((w[0], PROMPT), {"start_step": -1}, "counted from 0"),
        ((w[0], PROMPT), {"scale": float("nan")}, "finite"),
        ((w[0], PROMPT), {"num_images_per_prompt": 0}, "images is 0"),
        ((person(crops=False), PROMPT), {}, "has no crops"),
    ):
        with pytest.raises(IdgenError, match=words) as error:
            images(pipe, *given, **options)
        assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match="num_step"):
        pipe(w[0], PROMPT, num_step=3)


def test_what_is_not_loaded_is_named(w):
    pipe = make_pipe()
    for call in (lambda: images(pipe, person(), PROMPT), lambda: pipe.encode("photo.jpg")):
        with pytest.raises(IdgenError, match="no e4e in this pipeline"):
            call()
    pipe.unload_wplus()
    with pytest.raises(IdgenError, match="no W\\+ Adapter in this pipeline"):
        images(pipe, w[0], PROMPT)
