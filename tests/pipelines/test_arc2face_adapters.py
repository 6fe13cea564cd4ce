"""Arc2Face with its expression and reference adapters and somebody's style, all in one call."""

import pytest
import torch
from peft import LoraConfig

from idgen.adapters.arc2face.expression import Arc2FaceExpressionAdapter, ExpressionConfig
from idgen.adapters.arc2face.reference import Arc2FaceReferenceAdapter, ReferenceConfig
from tests.tiny import HIDDEN

SIZES = {"cross_attention_dim": HIDDEN, "embedding_dim": 55, "num_tokens": 4, "ratio": 1}


def randomised(adapter):
    torch.manual_seed(0)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return adapter.eval()


@pytest.fixture
def expression(pipe):
    adapter = Arc2FaceExpressionAdapter.for_unet(pipe.unet, ExpressionConfig(projection=SIZES))
    return randomised(adapter).inject(pipe.unet)


@pytest.fixture
def reference(pipe):
    return randomised(Arc2FaceReferenceAdapter.for_unet(pipe.unet, ReferenceConfig(rank=2))).inject(pipe.unet)


def add_style(pipe):
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe.unet.add_adapter(config, "style")


def numbers(people):
    return torch.randn(people, 55, generator=torch.Generator().manual_seed(2))


def latents(pipe, faces, *conditionings, **kwargs):
    together = sum(conditionings[1:], conditionings[0]).kwargs if conditionings else {}
    generator = [torch.Generator().manual_seed(seed) for seed in range(len(faces))]
    options = {"num_inference_steps": 2, "output_type": "latent", "generator": generator}
    return pipe(faces, cross_attention_kwargs=together | kwargs or None, **options).images


def test_an_expression_and_a_style_lora_compose(pipe, faces, expression):
    plain, smiling = latents(pipe, faces), expression.condition(numbers(3))
    with_expression = latents(pipe, faces, smiling)
    add_style(pipe)
    styled, both = latents(pipe, faces), latents(pipe, faces, smiling)
    results = [plain, with_expression, styled, both]
    for index, one in enumerate(results):
        assert all(not torch.allclose(one, other, atol=1e-3) for other in results[:index])
    assert pipe.unet.active_adapters() == ["style"]
    off = latents(pipe, faces, smiling, scale=0.0)  # diffusers' own scale is the LoRA's
    torch.testing.assert_close(off, with_expression, atol=1e-5, rtol=0)
    expression.eject()
    assert torch.equal(latents(pipe, faces), styled)


def test_each_person_has_an_expression_of_their_own(pipe, faces, expression):
    batch = latents(pipe, faces[:2], expression.condition(numbers(2)))
    first = latents(pipe, faces[:1], expression.condition(numbers(2)[0]))
    torch.testing.assert_close(batch[:1], first, atol=1e-5, rtol=0)


def test_a_reference_an_expression_and_a_style_compose(pipe, faces, expression, reference):
    with torch.no_grad():
        photos = pipe.vae.encode(torch.rand(3, 3, 32, 32) * 2 - 1).latents * pipe.vae.config.scaling_factor
    kept = reference.condition(photos, prompt_embeds=pipe.encode_identity(faces))
    smiling = expression.condition(numbers(3))
    add_style(pipe)
    alone, all_three = latents(pipe, faces, kept), latents(pipe, faces, kept, smiling)
    assert not torch.allclose(alone, latents(pipe, faces), atol=1e-3)
    assert not torch.allclose(all_three, alone, atol=1e-3)
    assert not torch.allclose(all_three, latents(pipe, faces, smiling), atol=1e-3)
