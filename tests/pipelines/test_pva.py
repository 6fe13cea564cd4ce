"""PVAInpaintPipeline: calls, files, and what can not be filled."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from PIL import Image

from idgen.adapters.embeddings import RawEmbeddings, UnitEmbeddings
from idgen.adapters.pva import PVAAdapter, PVAConfig
from idgen.adapters.pva.prompt import PersonPrompts
from idgen.checkpoint import save_weights
from idgen.errors import IdgenError
from idgen.identity import Identity
from idgen.models.iresnet import IResNet
from idgen.pipelines import PVAInpaintPipeline
from tests.pipelines.conftest import tiny_kl
from tests.tiny import tiny_components, tiny_tokenizer, tiny_unet

HIDDEN = 32
OPTIONAL = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
HOLE = (slice(8, 24), slice(4, 20))  # of a picture of 32 x 32


def inpainting_unet(seed=0, channels=17):
    torch.manual_seed(seed)
    config = dict(tiny_unet(HIDDEN).config) | {"in_channels": channels}
    return UNet2DConditionModel.from_config(config).eval()


def components():
    scheduler = DDIMScheduler(set_alpha_to_one=False, steps_offset=1)
    return tiny_components(hidden=HIDDEN) | {"unet": inpainting_unet(), "scheduler": scheduler}


def tiny_adapter(unet, seed=0):
    torch.manual_seed(seed)
    adapter = PVAAdapter.for_unet(unet, PVAConfig(out_dim=HIDDEN, num_layer=1)).eval()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return adapter


def tiny_iresnet():
    torch.manual_seed(0)
    network = IResNet((1, 1, 1, 1), (4, 4, 4, 4)).eval()
    network.features.running_var.fill_(1e-3)
    return network


@pytest.fixture
def pipe():
    made = PVAInpaintPipeline(**components())
    made.set_progress_bar_config(disable=True)
    return made.load_pva(tiny_adapter(made.unet), tiny_iresnet())


def person(seed=0, references=2, norm=RawEmbeddings):
    vectors = torch.randn(references, 512, generator=torch.Generator().manual_seed(100 + seed))
    return norm(vectors, "ms1mv3_r50")


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8))


def hole(size=(32, 32)):
    mask = np.zeros(size[::-1], np.uint8)
    mask[HOLE] = 255
    return Image.fromarray(mask)


def fill(pipe, identity, *, seeds=(0,), image=None, mask=None, **options):
    defaults = {"num_inference_steps": 2, "output_type": "latent"}
    generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    pictures = {"image": image or picture(), "mask_image": mask or hole()}
    return pipe(identity, generator=generator, **pictures, **defaults | options).images


def test_without_a_person_it_is_diffusers_own_pipeline():
    parts = components() | {"unet": small_unet(), "vae": small_kl()}
    ours, theirs = PVAInpaintPipeline(**parts), StableDiffusionInpaintPipeline(**parts, **OPTIONAL)
    options = {"num_inference_steps": 4, "guidance_scale": 5.0, "strength": 0.8, "eta": 0.5, "output_type": "np"}
    pictures = {"image": picture(), "mask_image": hole()}
    for pipe in (ours, theirs):
        pipe.set_progress_bar_config(disable=True)
    made = ours(prompt="a man", negative_prompt="face", generator=torch.manual_seed(3), **pictures, **options).images
    expected = theirs("a man", negative_prompt="face", generator=torch.manual_seed(3), **pictures, **options).images
    assert np.array_equal(made, expected)


def small_unet():
    torch.manual_seed(0)
    return UNet2DConditionModel.from_config(
        dict(tiny_unet(HIDDEN, latent_channels=4).config) | {"in_channels": 9}
    ).eval()


def small_kl():
    torch.manual_seed(0)
    return AutoencoderKL.from_config(dict(tiny_kl().config) | {"latent_channels": 4}).eval()


def test_the_person_reaches_the_image_and_at_scale_zero_does_not(pipe):
    nobody = fill(pipe, None, prompt="photo of a person")
    assert torch.equal(fill(pipe, person(), prompt="photo of a person", scale=0.0), nobody)
    one, other = fill(pipe, person()), fill(pipe, person(1))
    assert not torch.allclose(one, nobody, atol=1e-3) and not torch.allclose(one, other, atol=1e-4)
    pipe.unload_pva()
    assert torch.equal(fill(pipe, None), nobody)
    with pytest.raises(IdgenError, match="load_pva"):
        fill(pipe, person(), prompt="photo of a person")
    with pytest.raises(IdgenError, match="is nobody"):
        fill(pipe, None, prompt="photo of a <new1> person")


def test_known_pixels_are_kept_exactly_where_asked(pipe):
    known = np.ones((32, 32), bool)
    known[HOLE] = False
    before = np.asarray(picture())
    after = np.asarray(fill(pipe, person(), composite=True, output_type="pil")[0])
    assert np.array_equal(after[known], before[known]) and not np.array_equal(after[~known], before[~known])
    decoded = np.asarray(fill(pipe, person(), output_type="pil")[0])
    assert not np.array_equal(decoded[known], before[known])


def test_a_filling_takes_the_light_of_known_pixels_where_it_meets_them(pipe):
    grey = Image.new("RGB", (32, 32), (128, 128, 128))
    after, decoded = (
        np.asarray(fill(pipe, person(), image=grey, composite=way, output_type="pil")[0], float)
        for way in (True, False)
    )
    first, last = HOLE[1].start, HOLE[1].stop - 1
    for inner, outer in ((first, first - 1), (last, last + 1)):
        step, theirs = (made[HOLE[0], inner] - made[HOLE[0], outer] for made in (after, decoded))
        apart = np.abs(decoded[HOLE[0], inner] - 128 - theirs).mean()
        # Nearly half of the way lies in the hole, though at 32 px what is too large to be light fades within a pixel.
        assert np.abs(step - theirs).mean() < 0.6 * apart, (
            "the made picture's own step is left, not the way to the photo"
        )


def test_people_of_a_batch_are_each_alone_and_in_order(pipe):
    people = [person(0, 1), person(1, 3)]
    options = {"num_images_per_prompt": 2, "guidance_scale": 4.0}
    images = [picture(0), picture(1)]
    together = fill(pipe, people, seeds=(0, 1, 2, 3), image=images, **options)
    assert together.shape == (4, 8, 4, 4)
    for index, one in enumerate(people):
        seeds = (2 * index, 2 * index + 1)
        alone = fill(pipe, one, seeds=seeds, image=images[index], **options)
        torch.testing.assert_close(together[2 * index :][:2], alone, atol=1e-4, rtol=0)
    prompts = fill(pipe, person(), seeds=(0, 1), prompt=["photo of a <new1> person", "a man"])
    torch.testing.assert_close(prompts[1:], fill(pipe, person(), seeds=(1,), prompt="a man"), atol=1e-4, rtol=0)
    with pytest.raises(IdgenError, match="2 prompts given for 3 people"):
        fill(pipe, [person(seed) for seed in range(3)], prompt=["a man", "a woman"])
    with pytest.raises(IdgenError, match="2 pictures given for 3 people"):
        fill(pipe, [person(seed) for seed in range(3)], image=images)


def test_guidance_compares_with_nobody_or_with_the_same_person(pipe):
    plain = fill(pipe, person())
    by_person, by_text = (fill(pipe, person(), guidance_scale=6.0, text_control=control) for control in (False, True))
    assert not torch.allclose(by_person, plain, atol=1e-4) and not torch.allclose(by_person, by_text, atol=1e-4)
    same_words = {"prompt": "a man", "negative_prompt": "a man"}
    control = fill(pipe, person(), guidance_scale=6.0, text_control=True, **same_words)
    torch.testing.assert_close(control, fill(pipe, person(), **same_words), atol=1e-4, rtol=0)


def test_references_have_no_order_and_any_number(pipe):
    vectors = person(0, 7).vectors
    shuffled = RawEmbeddings(vectors.flip(0), "ms1mv3_r50")
    assert torch.allclose(fill(pipe, person(0, 7)), fill(pipe, shuffled), atol=1e-4)
    assert not torch.allclose(fill(pipe, person(0, 7)), fill(pipe, RawEmbeddings(vectors[:3], "ms1mv3_r50")), atol=1e-5)


def test_the_persons_word_is_the_modifier_wherever_it_stands(pipe):
    tokens = PersonPrompts.tokenise(tiny_tokenizer(), ["photo of a <new1> person", "<new1>", "a man"])
    assert tokens.mask.nonzero().tolist() == [[0, 4], [1, 1]]
    assert tokens.input_ids[2, :4].tolist() == tiny_tokenizer()("a man").input_ids
    embeds = pipe.encode_person_prompt(["photo of a <new1> person", "a man"])
    pipe.pva.modifier.data.mul_(-1)
    changed = pipe.encode_person_prompt(["photo of a <new1> person", "a man"])
    assert torch.equal(embeds[1], changed[1]) and torch.equal(embeds[0, :4], changed[0, :4])
    assert not torch.allclose(embeds[0, 4:], changed[0, 4:], atol=1e-3)
    with pytest.raises(IdgenError, match="too long"):
        pipe.encode_person_prompt("a " * 14 + "<new1> person")


def test_identities_of_portraits(pipe):
    portraits = [picture(0).resize((256, 256)), picture(1).resize((64, 64))]
    identity = pipe.encode_identity(portraits)
    assert identity.vectors.shape == (2, 512) and identity.recogniser == "ms1mv3_r50"
    tensor = torch.from_numpy(np.array(portraits[0])).permute(2, 0, 1)[None] / 255
    assert torch.allclose(pipe.encode_identity(tensor).vectors, identity.vectors[:1], atol=1e-5)
    for wrong, message in (([], "no portrait"), (torch.ones(3, 8, 8), "n, 3, height")):
        with pytest.raises(IdgenError, match=message):
            pipe.encode_identity(wrong)
    pipe.recogniser = None
    with pytest.raises(IdgenError, match="no face recogniser in this pipeline"):
        pipe.encode_identity(portraits)


def test_what_is_saved_loads_to_the_same_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "mine")
    again = PVAInpaintPipeline.from_pretrained(tmp_path / "mine")
    again.set_progress_bar_config(disable=True)
    portrait = picture().resize((256, 256))
    assert torch.equal(again.encode_identity(portrait).vectors, pipe.encode_identity(portrait).vectors)
    assert torch.equal(fill(again, person()), fill(pipe, person()))
    half = PVAInpaintPipeline.from_pretrained(tmp_path / "mine", torch_dtype=torch.float16)
    assert next(half.pva.parameters()).dtype == torch.float16
    plain = PVAInpaintPipeline(**components())
    plain.save_pretrained(tmp_path / "nobody")
    with pytest.raises(IdgenError, match="holds no FPIP"):
        PVAInpaintPipeline.from_pretrained(tmp_path / "nobody")


def test_the_mini_family_loads_beside_its_base(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv("IDGEN_MINI", str(tmp_path))
    with pytest.raises(IdgenError, match="'inpaint' is not at") as error:
        PVAInpaintPipeline.from_pretrained("mini")
    assert "\n" not in str(error.value)
    PVAInpaintPipeline(**components() | {"unet": inpainting_unet(seed=5)}).save_pretrained(tmp_path)
    pipe.unet.save_pretrained(tmp_path / "inpaint" / "unet")
    pipe.pva.save(tmp_path / "inpaint" / "pva" / "adapter.safetensors")
    mini = PVAInpaintPipeline.from_pretrained("mini")
    mini.set_progress_bar_config(disable=True)
    assert torch.equal(fill(mini, person()), fill(pipe, person()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": hole((40, 32))}, "40 x 32 pixels and the picture 32 x 32"),
        ({"mask": Image.new("L", (32, 32))}, "covers nothing"),
        ({"mask": Image.new("L", (32, 32), 255)}, "covers everything"),
        ({"mask": Image.fromarray(np.eye(32, dtype=np.uint8)[::-1] * 255)}, "thinner than a latent"),
        ({"identity": []}, "no identity given"),
        ({"identity": Identity(torch.ones(1, 512), "buffalo_l")}, "recogniser 'buffalo_l'"),
        ({"identity": person(norm=lambda v, name: UnitEmbeddings(v / v.norm(dim=1, keepdim=True), name))}, "raw"),
        ({"identity": torch.ones(1, 512)}, "bare tensor"),
        ({"identity": RawEmbeddings(torch.ones(1, 8), "ms1mv3_r50")}, "8 numbers"),
    ],
)
def test_what_can_not_be_filled_is_told_in_one_line(pipe, options, message):
    given = {"identity": person()} | options
    with pytest.raises(IdgenError, match=message) as error:
        fill(pipe, given.pop("identity"), **given)
    assert "\n" not in str(error.value)


def test_no_picture_is_told(pipe):
    with pytest.raises(IdgenError, match="mask_image="):
        pipe(person(), image=picture())


def test_a_unet_that_is_none_of_an_inpainting_model_is_refused(tmp_path):
    with pytest.raises(IdgenError, match="8 input channels and inpainting needs 17"):
        PVAInpaintPipeline(**components() | {"unet": tiny_unet(HIDDEN)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unet": {}}, "missing: unet"),
        ({"transform_network": {}}, "'0.weight' is missing"),
        ({"face_net": {"facenet.conv1.weight": torch.ones(1)}}, "not the weights of an IResNet"),
        ({"extra": torch.ones(1)}, "1 unexpected: extra"),
        (
            {"unet": {"mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight": torch.ones(1)}},
            "do(es)? not fit|missing",
        ),
    ],
    ids=["attention", "transform", "recogniser", "unknown", "part of attn2"],
)
def test_a_published_file_that_does_not_fit_is_named(pipe, tmp_path, change, message):
    torch.save(published(pipe.pva) | change, tmp_path / "FPIP.bin")
    with pytest.raises(IdgenError, match=message) as error:
        pipe.load_pva(tmp_path / "FPIP.bin")
    assert "\n" not in str(error.value)
    assert fill(pipe, person()).isfinite().all()  # what was loaded stays


def test_a_recogniser_of_another_kind_is_named(pipe, tmp_path):
    torch.save(published(pipe.pva), tmp_path / "FPIP.bin")
    save_weights(tmp_path / "backbone.safetensors", {"some.weight": torch.ones(2)})
    with pytest.raises(IdgenError, match="not the weights of an IResNet"):
        pipe.load_pva(tmp_path / "FPIP.bin", tmp_path / "backbone.safetensors")
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(IdgenError, match="not the settings of a PVA training"):
        PVAInpaintPipeline.from_pretrained(tmp_path)
    with pytest.raises(IdgenError, match="no such folder"):
        PVAInpaintPipeline.from_pretrained(tmp_path / "nowhere")


def published(adapter):
    """FPIP.bin of an adapter."""
    state = adapter.state_dict()
    unet = {}
    for layer in adapter.layers:
        if layer.cross:
            unet[f"{layer.name}.to_visual_q.weight"] = state[f"query.{layer.index}.weight"]
            for letter in "kv":
                unet[f"{layer.name}.to_visual_{letter}.weight"] = state[f"kv.{layer.index}.to_{letter}.weight"]
    network = {key: value for key, value in state.items() if key.startswith("transform_network.")}
    network = {key.removeprefix("transform_network."): value for key, value in network.items()}
    return {"modifier_vec": state["modifier"], "transform_network": network, "unet": unet}
