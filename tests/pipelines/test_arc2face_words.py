"""Arc2Face led by a text base's words: the sum is the one that is promised, and the pipeline stays as it was."""

import pytest
import torch
from diffusers import DDIMScheduler

from idgen.adapters.arc2face.words import PLAIN, LedUNet, lead_by_words, load_text_base
from idgen.errors import IdgenError

SMILING = "a photo of a person smiling"


@pytest.fixture
def base(root):
    return load_text_base(root)


def pictures(pipe, faces, guidance_scale=1.0):
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(faces))]
    options = {"num_inference_steps": 2, "output_type": "latent", "generator": generators}
    return pipe(faces, guidance_scale=guidance_scale, **options).images


def embedded(base, text):
    return base.encode_prompt([text], "cpu", 1, do_classifier_free_guidance=False)[0]


@pytest.mark.parametrize("halves", [1, 2])
def test_a_step_adds_what_the_words_change_in_the_base(pipe, base, halves):
    noisy, told, plain = torch.randn(3, 8, 4, 4), embedded(base, SMILING), embedded(base, PLAIN)
    face = torch.randn(3 * halves, *told.shape[1:])
    rows = noisy.repeat(halves, 1, 1, 1)
    with torch.no_grad():
        change = (
            base.unet(noisy, 5, told.expand(3, -1, -1)).sample - base.unet(noisy, 5, plain.expand(3, -1, -1)).sample
        )
        wanted = pipe.unet(rows, 5, face).sample + 1.5 * change.repeat(halves, 1, 1, 1)
        led = LedUNet(pipe.unet, base.unet, told, plain, 1.5)
        for found in (led(rows, 5, face).sample, led(rows, 5, encoder_hidden_states=face, return_dict=False)[0]):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_each_picture_follows_its_own_prompt(pipe, base, faces, guidance_scale):
    faces, before = faces[:1].expand(2, -1), pipe.unet
    without = pictures(pipe, faces, guidance_scale)
    led = pictures(lead_by_words(pipe, base, [PLAIN, SMILING], 100), faces, guidance_scale)
    torch.testing.assert_close(led[0], without[0], atol=1e-4, rtol=0)
    assert (led[1] - without[1]).abs().mean() > 0.01
    one_for_all = pictures(lead_by_words(pipe, base, [SMILING], 100), faces, guidance_scale)
    torch.testing.assert_close(one_for_all[1], led[1], atol=1e-3, rtol=1e-3)
    assert pipe.unet is before and torch.equal(pictures(pipe, faces, guidance_scale), without)


def test_adapters_of_the_pipeline_go_on_acting(pipe, base, faces):
    led = lead_by_words(pipe, base, [SMILING])
    before = pictures(led, faces)
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.mul_(1.1)
    assert not torch.allclose(pictures(led, faces), before)


def test_mistakes_are_said(pipe, base, faces):
    for prompts, scale, said in (
        ([], 1.0, "no prompt"),
        ([SMILING], -1.0, "scale"),
        ([SMILING], float("nan"), "scale"),
    ):
        with pytest.raises(IdgenError, match=said):
            lead_by_words(pipe, base, prompts, scale)
    with pytest.raises(IdgenError, match="3 prompts for 2 rows"):
        pictures(lead_by_words(pipe, base, [SMILING] * 3), faces[:1].expand(2, -1))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="epsilon")
    with pytest.raises(IdgenError, match="another prediction type"):
        lead_by_words(pipe, base, [SMILING])


def test_a_base_that_is_none_is_said(tmp_path):
    with pytest.raises(IdgenError, match="no such folder"):
        load_text_base(tmp_path / "nothing")
    with pytest.raises(IdgenError, match="not complete"):
        load_text_base(tmp_path)
