"""References beside the photo, as ReF-LDM's table 2 compares them: on channels and in space."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from idgen.adapters.cachekv.concat import GuidedBeside, predict_beside, with_channels
from idgen.errors import IdgenError
from idgen.pipelines import ReferenceRestorePipeline
from tests.tiny_restore import SIZE, tiny_restorer


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def photos(count: int, seed: int = 1) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)) for _ in range(count)]


def restorer(conditioning: str) -> ReferenceRestorePipeline:
    torch.manual_seed(0)
    pipe = tiny_restorer()
    unet = with_channels(pipe.unet, 2) if conditioning == "channel" else pipe.unet
    torch.nn.init.normal_(unet.conv_in.weight, std=0.2)
    made = ReferenceRestorePipeline(unet, pipe.vq, pipe.scheduler, SIZE, "independent", 2, conditioning)
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
def test_channels_for_references_start_by_ignoring_them():
    unet = tiny_restorer().unet
    wide = with_channels(unet, 3)
    noisy, lq, references = latents(2, 8, 4, 4), latents(2, 8, 4, 5)[..., :4], latents(2, 3, 8, 4, 4)
    assert wide.config.in_channels == 40
    alone = unet(torch.cat([noisy, lq], 1), 7).sample
    assert torch.allclose(predict_beside(wide, "channel", noisy, 7, lq, references), alone, atol=1e-5)
    assert torch.allclose(predict_beside(wide, "channel", noisy, 7, lq, None), alone, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(with_channels(wide, 3).parameters(), wide.parameters(), strict=True))
    with pytest.raises(IdgenError, match=r"4 references.*channels for 3"):
        predict_beside(wide, "channel", noisy, 7, lq, latents(2, 4, 8, 4, 4))
    with pytest.raises(IdgenError, match="40 channels"):
        with_channels(wide, 1)


@torch.no_grad()
def test_in_space_the_unet_sees_one_wide_picture_and_the_photos_part_comes_back():
    unet = tiny_restorer().unet
    seen = []
    unet.conv_in.register_forward_hook(lambda module, given, made: seen.append(given[0]))
    noisy, lq, references = latents(2, 8, 4, 4), latents(2, 8, 4, 5)[..., :4], latents(2, 3, 8, 4, 4)
    made = predict_beside(unet, "spatial", noisy, 7, lq, references)
    assert made.shape == noisy.shape and seen[0].shape == (2, 16, 4, 16)
    assert torch.equal(seen[0][..., :4], torch.cat([noisy, lq], 1))
    assert torch.equal(seen[0][:, :8, :, 8:12], references[:, 1]) and not seen[0][:, 8:, :, 4:].any()
    alone = predict_beside(unet, "spatial", noisy, 7, lq, None)
    assert torch.equal(alone, unet(torch.cat([noisy, lq], 1), 7).sample) and not torch.allclose(alone, made, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("conditioning", ["channel", "spatial"])
def test_guidance_compares_with_references_of_zero(conditioning):
    unet = restorer(conditioning).unet
    noisy, lq, references = latents(1, 8, 4, 4), latents(1, 8, 4, 5)[..., :4], latents(1, 2, 8, 4, 4)
    one = predict_beside(unet, conditioning, noisy, 9, lq, references)
    nobody = predict_beside(unet, conditioning, noisy, 9, lq, torch.zeros_like(references))
    made = GuidedBeside(unet, conditioning, lq, references, 1.5)(noisy, 9)
    assert torch.allclose(made, nobody + 1.5 * (one - nobody), atol=1e-5)
    assert torch.allclose(GuidedBeside(unet, conditioning, lq, references, 1)(noisy, 9), one, atol=1e-5)


@pytest.mark.parametrize("conditioning", ["channel", "spatial"])
def test_a_pipeline_of_this_kind_is_saved_loaded_and_follows_references(conditioning, tmp_path):
    pipe = restorer(conditioning)
    pipe.save_pretrained(tmp_path)
    again = ReferenceRestorePipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.config.conditioning == conditioning

    def restored(which: ReferenceRestorePipeline, image, references=None, **options):
        settings = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
        return which(image, references, **settings | options).images

    bad, anna, ben = photos(2), photos(2, seed=2), photos(2, seed=3)
    wanted = restored(pipe, bad, anna)
    assert torch.allclose(restored(again, bad, anna), wanted, atol=1e-5)
    assert not torch.allclose(restored(again, bad, ben), wanted, atol=2e-4)
    noise = latents(2, 8, 4, 4)
    both = restored(pipe, bad, [anna, []], latents=noise)
    for row, person in enumerate((anna, None)):
        alone = restored(pipe, bad[row], person, latents=noise[row : row + 1])
        assert torch.allclose(both[row : row + 1], alone, atol=1e-4)
    for wrong, words in (
        ({"references": [anna, ben[:1]]}, r"1 and 2 references.*equally many"),
        ({"references": [anna, ben, anna]}, "3 people for 2 photos"),
        ({"references": anna, "levels": [1]}, "neither cache nor levels"),
        ({"cache": "anna.safetensors"}, "neither cache nor levels"),
    ):
        with pytest.raises(IdgenError, match=words):
            restored(pipe, bad, **wrong)
    with pytest.raises(IdgenError, match="can not keep"):
        pipe.cache(anna)
    with pytest.raises(IdgenError, match="conditioning is 'beside'"):
        ReferenceRestorePipeline(pipe.unet, pipe.vq, pipe.scheduler, conditioning="beside")
