"""FACTPipeline: calls, files, and a ControlNet that is only there when one is given."""

import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from idgen.adapters.fact import FACTAdapter, FACTConfig
from idgen.errors import IdgenError
from idgen.identity import Identity
from idgen.models.transface import TransFace
from idgen.pipelines import FACTControlNetPipeline, FACTPipeline
from tests.conformance.published import flat_pickle
from tests.tiny import tiny_components

HIDDEN = 32
WIDTH = 16  # of the patch features
PROMPT = "photo of a person"
OPTIONAL = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def tiny_adapter(unet, seed=0):
    sizes = {"dim": 8, "heads": 1, "dim_head": 64, "depth": 1, "embedding_dim": WIDTH, "output_dim": HIDDEN}
    torch.manual_seed(seed)
    adapter = FACTAdapter.for_unet(unet, FACTConfig(resampler=sizes)).eval()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return adapter


def tiny_transface():
    torch.manual_seed(0)
    return TransFace(dim=WIDTH, depth=1, heads=8, patch=56, patches=4).eval()


def components():
    return tiny_components(hidden=HIDDEN) | {"scheduler": DDIMScheduler()}


@pytest.fixture
def pipe():
    made = FACTPipeline(**components(), **OPTIONAL)
    made.set_progress_bar_config(disable=True)
    return made.load_fact(tiny_adapter(made.unet), tiny_transface())


def person(seed=0, references=2):
    random = torch.Generator().manual_seed(seed)
    crops = torch.randint(0, 256, (references, 112, 112, 3), generator=random, dtype=torch.uint8)
    return Identity(torch.randn(references, 512, generator=random), "mini", crops=crops)


def latents(pipe, identity, prompt=PROMPT, *, seeds=(0,), **options):
    generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    defaults = {"num_inference_steps": 2, "output_type": "latent", "generator": generator}
    return pipe(identity, prompt, **defaults | options).images


def test_the_person_reaches_the_image_and_at_scale_zero_does_not(pipe):
    plain = StableDiffusionPipeline(**components(), **OPTIONAL)
    plain.set_progress_bar_config(disable=True)
    expected = plain(
        PROMPT,
        num_inference_steps=2,
        guidance_scale=7.0,
        output_type="latent",
        generator=[torch.Generator().manual_seed(0)],
    ).images
    assert torch.equal(latents(pipe, person(), scale=0.0), expected)
    one, other = latents(pipe, person()), latents(pipe, person(1))
    assert not torch.allclose(one, expected, atol=1e-3) and not torch.allclose(one, other, atol=1e-4)
    pipe.unload_fact()
    assert pipe.unet.attn_processors.keys() == plain.unet.attn_processors.keys()
    with pytest.raises(IdgenError, match="load_fact"):
        latents(pipe, person())


def test_features_of_the_photos_give_the_same_image_as_the_identity(pipe):
    features = pipe.encode_identity(person())
    assert features.shape == (2, 4, WIDTH)
    assert torch.equal(latents(pipe, features), latents(pipe, person()))


def test_people_of_a_batch_are_each_alone_and_in_order(pipe):
    people = [person(0), person(1)]
    together = latents(pipe, people, seeds=(0, 1, 2, 3), num_images_per_prompt=2, negative_prompt="man")
    assert together.shape == (4, 8, 4, 4)
    for index, one in enumerate(people):
        seeds = (2 * index, 2 * index + 1)
        alone = latents(pipe, one, seeds=seeds, num_images_per_prompt=2, negative_prompt="man")
        torch.testing.assert_close(together[2 * index :][:2], alone, atol=1e-4, rtol=0)
    prompts = latents(pipe, person(), [PROMPT, "a man"], seeds=(0, 1))
    torch.testing.assert_close(prompts[1:], latents(pipe, person(), "a man", seeds=(1,)), atol=1e-4, rtol=0)
    with pytest.raises(IdgenError, match="2 prompts given for 3 people"):
        latents(pipe, [person(seed) for seed in range(3)], [PROMPT, "a man"])


def test_window_mask_and_guidance_with_the_same_person_change_the_image(pipe):
    usual = latents(pipe, person())
    for options in ({"window": (0.5, 1.0)}, {"mask": torch.eye(32)}, {"cfg_face": False}, {"guidance_scale": 1.0}):
        assert not torch.allclose(latents(pipe, person(), **options), usual, atol=1e-4), options


def test_what_a_call_can_not_use_is_named(pipe):
    with pytest.raises(TypeError, match="num_step"):
        latents(pipe, person(), num_step=3)
    with pytest.raises(IdgenError, match="no prompt"):
        latents(pipe, person(), None)
    with pytest.raises(IdgenError, match="no identity"):
        latents(pipe, [])
    with pytest.raises(IdgenError, match="no crops"):
        latents(pipe, Identity(torch.ones(1, 512), "mini"))
    pipe.transface = None
    with pytest.raises(IdgenError, match="no TransFace"):
        latents(pipe, person())


def test_a_controlnet_shares_the_pipelines_modules_and_acts(pipe):
    before = latents(pipe, person())
    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(pipe.unet)
    torch.nn.init.normal_(controlnet.controlnet_mid_block.weight)
    posed = FACTControlNetPipeline.from_pipe(
        pipe, controlnet=controlnet, vae=pipe.vae
    )  # Stable Diffusion's needs no vae=
    posed.set_progress_bar_config(disable=True)
    assert posed.unet is pipe.unet and posed.fact is pipe.fact
    image = Image.new("RGB", (32, 32), "red")
    one, other = latents(posed, person(), image=image), latents(posed, person(1), image=image)
    assert not torch.allclose(one, before, atol=1e-4) and not torch.allclose(one, other, atol=1e-4)
    assert torch.equal(latents(pipe, person()), before)
    with pytest.raises(TypeError, match="image"):
        latents(pipe, person(), image=image)


def test_what_is_saved_loads_to_the_same_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "mine")
    again = FACTPipeline.from_pretrained(tmp_path / "mine")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(latents(again, person()), latents(pipe, person()))
    half = FACTPipeline.from_pretrained(tmp_path / "mine", torch_dtype=torch.float16)
    assert next(half.fact.parameters()).dtype == torch.float16


def write_published(folder, adapter, transface, name="adapter_maj_mask_large_new_reg001_faceshuffle_00290001.ckpt"):
    """The authors' files."""
    paths = {f"gates.{layer.index}.fuser.": f"{layer.name}.processor." for layer in adapter.layers if layer.cross}
    state = {}
    for key, value in adapter.state_dict().items():
        ours = next((prefix for prefix in paths if key.startswith(prefix)), "resampler.")
        state[paths.get(ours, "local_fac_prj.") + key.removeprefix(ours)] = value
    folder.mkdir(exist_ok=True)
    flat_pickle(state, folder / name)
    head = {"feature.0.weight": torch.ones(1), "senet.0.weight": torch.ones(1), "mask_token": torch.ones(1)}
    flat_pickle(transface.state_dict() | head, folder / "ms1mv2_model_TransFace_S.pt")


def test_the_published_files_load_beside_a_base(pipe, tmp_path):
    StableDiffusionPipeline(**components(), **OPTIONAL).save_pretrained(tmp_path / "base")
    folder = tmp_path / "published"
    write_published(folder, pipe.fact, pipe.transface)
    loaded = FACTPipeline.from_pretrained(folder, base=tmp_path / "base")
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(latents(loaded, person()), latents(pipe, person()))
    write_published(folder, pipe.fact, pipe.transface, "adapter_film_mask_large_new.ckpt")
    with pytest.raises(IdgenError, match="adapter='maj'"):
        FACTPipeline.from_pretrained(folder, base=tmp_path / "base")
    assert FACTPipeline.from_pretrained(folder, base=tmp_path / "base", adapter="film").transface is not None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nowhere", {}, "no such folder"),
        (".", {}, "has none"),
        ("published", {"base": "no such base"}, "no such folder"),
        ("published", {"base": "."}, "cannot load Stable Diffusion"),
    ],
)
def test_what_is_not_there_is_named(pipe, tmp_path, name, options, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_published(tmp_path / "published", pipe.fact, pipe.transface)
    with pytest.raises(IdgenError, match=message) as error:
        FACTPipeline.from_pretrained(name, **options)
    assert "\n" not in str(error.value)
