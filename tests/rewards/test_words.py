"""The words reward: prompts of anybody's own are understood as captions are, and what they name is looked for."""

from __future__ import annotations

import pytest
import torch

from idgen.errors import IdgenError
from idgen.evaluation.prompts import asked_for, read_caption
from idgen.evaluation.rendered import attributes_of
from idgen.models.probe import AttributeProbe
from idgen.rewards.ascent import guide_words
from idgen.rewards.views import Asked, PictureView, View
from idgen.rewards.words import WordsReward
from idgen.synthetic.captions import caption, caption_rng
from tests.tiny import tiny_vae

CLASSES = {"glasses": ["glasses", "none", "sunglasses"], "expression": ["smiling", "neutral"]}


def reader() -> AttributeProbe:
    torch.manual_seed(0)
    made = AttributeProbe(CLASSES, widths=(8, 8), size=32).eval().requires_grad_(False)
    for head in made.heads.values():
        torch.nn.init.normal_(head.weight)  # readings that differ by more than float32 rounds away
    return made


def pictures(count: int) -> View:
    drawn = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return PictureView(lambda latents: latents)(drawn.requires_grad_(True))


def test_a_prompt_without_its_photo_is_understood_as_the_caption_of_one():
    for person in range(300000, 300100):
        for shot, attributes in enumerate(attributes_of([person], range(2), 0)[0]):
            text = caption(attributes, caption_rng(0, person, shot))
            assert asked_for(text) == read_caption(text, attributes, person, shot).asked, text


def test_a_prompt_that_names_nothing_asks_for_nothing():
    assert asked_for("a photo of a id person") == {}


def test_the_reward_is_the_likelihood_of_what_is_named():
    view = pictures(2)
    scored = WordsReward(reader())(view, Asked(prompts=["a woman wearing sunglasses", "a photo"]))
    read = reader()(view.pictures)[0]["glasses"].log_softmax(-1)
    assert scored.counted.tolist() == [True, False]
    assert scored.values.tolist() == pytest.approx([read[0, 2].item(), 0.0])
    (gradient,) = torch.autograd.grad(scored.mean(), view.pictures)
    assert gradient[0].abs().max() > 0
    assert gradient[1].abs().max() == 0


def test_guidance_makes_the_words_likelier():
    torch.manual_seed(0)
    vae, prompts = tiny_vae(), ["a man wearing glasses", "a woman wearing sunglasses"]
    guidance = guide_words(reader(), vae, prompts, strength=0.01)
    clean = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))

    def likelihood(latents: torch.Tensor) -> torch.Tensor:
        return WordsReward(reader())(guidance.view(latents), Asked(prompts=prompts)).values

    assert (likelihood(clean + guidance.shift(clean)) > likelihood(clean)).all()


def test_a_prompt_for_each_picture_is_needed():
    with pytest.raises(IdgenError, match="prompt"):
        WordsReward(reader())(pictures(2), Asked(prompts=["a smiling man"]))
