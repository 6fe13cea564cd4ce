"""CacheKV in Stable Diffusion UNets: right by an independent computation, gated by resolution, any number of references."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from idgen.adapters.cachekv import CacheKVAdapter, CacheKVConfig
from idgen.errors import IdgenError
from tests.adapters.bases import WIDTH, call_arguments, predict, tiny_unet

ADDED = {"text_embeds": torch.ones(1, 8), "time_ids": torch.ones(1, 6)}


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def unet():
    return tiny_unet("sd15")


@pytest.fixture
def adapter(unet):
    return CacheKVAdapter.for_unet(unet, CacheKVConfig()).inject(unet)


class Plain(AttnProcessor2_0):
    """Appends what it saw in an earlier pass: the layer's input, read by diffusers' own processor."""

    kept = None
    writing = False

    def __call__(self, attn, hidden, encoder_hidden_states=None, *args, **kwargs):
        if self.writing:
            self.kept = hidden.flatten(0, 1)[None]
        elif self.kept is not None:
            encoder_hidden_states = torch.cat([hidden, self.kept.expand(len(hidden), -1, -1)], 1)
        return super().__call__(attn, hidden, encoder_hidden_states, *args, **kwargs)


@pytest.mark.parametrize(("base", "levels"), [("sd15", None), ("sd15", [2]), ("sdxl", None), ("sd2-inpaint", None)])
def test_it_computes_what_processors_that_keep_and_append_compute(base, levels):
    unet, other = tiny_unet(base), tiny_unet(base)
    references, context = noise(3, 4, 8, 8), noise(1, 7, WIDTH, seed=2)
    added = ADDED if base == "sdxl" else None
    read = {"sd15": {"down_blocks.0": 1, "down_blocks.1": 2, "up_blocks.1": 2, "up_blocks.2": 1, "mid_block": 4}}.get(
        base
    )
    processors = {}
    for name, processor in other.attn_processors.items():
        if "attn1" in name and (levels is None or read[name.split(".attentions")[0]] in levels):
            processors[name] = Plain()
        else:
            processors[name] = processor
    other.set_attn_processor(dict(processors))
    plain = [one for one in processors.values() if isinstance(one, Plain)]
    for one in plain:
        one.writing = True
    pictures = torch.cat([references, torch.zeros(3, 1, 8, 8), references], 1) if base == "sd2-inpaint" else references
    rows = {name: value.expand(3, -1) for name, value in (added or {}).items()}
    other(pictures, torch.tensor(0), context.expand(3, -1, -1), added_cond_kwargs=rows or None)
    for one in plain:
        one.writing = False

    adapter = CacheKVAdapter.for_unet(unet, CacheKVConfig()).inject(unet)
    inputs = {"prompt_embeds": context, "levels": levels, "added_cond_kwargs": added}
    conditioning = adapter.condition(references, guidance=False, images=2, **inputs)

    arguments = call_arguments(unet, 2)
    assert torch.allclose(predict(unet, arguments, conditioning), predict(other, arguments), atol=1e-5)


def test_only_the_chosen_resolutions_read_and_the_pass_ends_there(unet, adapter):
    ran = []
    for name in ("up_blocks.2", "conv_out"):
        unet.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    inputs = {"prompt_embeds": noise(1, 7, WIDTH)}
    chosen = adapter.condition(noise(2, 4, 8, 8), levels=[4], **inputs).entries[0].parts
    assert list(chosen) == ["mid_block.attentions.0.transformer_blocks.0.attn1"] and not ran
    everywhere = adapter.condition(noise(2, 4, 8, 8), **inputs).entries[0].parts
    assert len(everywhere) == len([layer for layer in adapter.layers if not layer.cross])
    assert ran == ["up_blocks.2"]
    settled = CacheKVAdapter.for_unet(unet, CacheKVConfig(levels=(4,))).inject(unet, "settled")
    assert list(settled.condition(noise(2, 4, 8, 8), **inputs).entries[0].parts) == list(chosen)


def test_people_with_other_numbers_of_references_are_each_alone(unet, adapter):
    context = noise(1, 7, WIDTH)
    people = [noise(1, 4, 8, 8), noise(3, 4, 8, 8, seed=4)]
    arguments = call_arguments(unet, 4)
    together = predict(unet, arguments, adapter.condition(people, prompt_embeds=context))
    for index, person in enumerate(people):
        rows = [index, 2 + index]
        part = arguments | {name: arguments[name][rows] for name in ("sample", "encoder_hidden_states")}
        alone = predict(unet, part, adapter.condition(person.flip(0), prompt_embeds=context))
        assert torch.allclose(alone, together[rows], atol=1e-5), "in any order"
    plain = predict(unet, arguments)
    assert torch.allclose(together[:2], plain[:2], atol=1e-5), "rows without identity do not see references"


@pytest.mark.parametrize(
    ("latents", "inputs", "words"),
    [
        (noise(2, 3, 8, 8), {}, "3 channels"),
        (noise(4, 8, 8), {}, "references, channels"),
        ("anna.png", {}, "not str"),
        ([noise(1, 4, 8, 8), noise(1, 4, 4, 4)], {}, "one size"),
        (noise(65, 4, 8, 8), {}, "at most 64"),
        (torch.full((1, 4, 8, 8), torch.nan), {}, "NaN"),
        (noise(1, 4, 8, 8), {"levels": [3]}, r"levels \[1, 2, 4\]"),
        (noise(1, 4, 8, 8), {"levels": []}, "levels"),
        (noise(1, 4, 8, 8), {"prompt_embeds": noise(2, 7, WIDTH)}, "prompt_embeds"),
        (noise(1, 4, 8, 8), {"added_cond_kwargs": ADDED}, "takes nothing"),
    ],
)
def test_a_mistake_is_one_line(adapter, latents, inputs, words):
    with pytest.raises(IdgenError, match=words) as caught:
        adapter.condition(latents, **{"prompt_embeds": noise(1, 7, WIDTH)} | inputs)
    assert "\n" not in str(caught.value)


def test_references_are_read_by_the_unet_that_it_is_in(unet):
    adapter = CacheKVAdapter.for_unet(unet, CacheKVConfig())
    with pytest.raises(IdgenError, match=r"inject\(\) the adapter"):
        adapter.condition(noise(1, 4, 8, 8), prompt_embeds=noise(1, 7, WIDTH))
