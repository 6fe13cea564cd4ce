"""Several pipelines over the same networks and the adapter in them: who has it, in which precision, and how guidance ends."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback

from idgen.adapters.pva.person import PersonWeights, fingerprint
from idgen.errors import IdgenError
from idgen.pipelines import FACTPipeline, PVAInpaintPipeline
from tests.pipelines import test_fact, test_instantid, test_pva, test_wplus
from tests.pipelines.conftest import make_pipe
from tests.tiny_restore import tiny_restorer
from tests.tiny_sdxl import person as sdxl_person
from tests.tiny_sdxl import tiny_instantid

CODE = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def fact():
    pipe = quiet(FACTPipeline(**test_fact.components(), **test_fact.OPTIONAL))
    return pipe.load_fact(test_fact.tiny_adapter(pipe.unet), test_fact.tiny_transface())


def pva():
    pipe = quiet(PVAInpaintPipeline(**test_pva.components()))
    return pipe.load_pva(test_pva.tiny_adapter(pipe.unet), test_pva.tiny_iresnet())


# How one is made, another adapter for it, and a call with a person.
CASES = {
    "fact": SimpleNamespace(
        make=fact,
        other=lambda unet: test_fact.tiny_adapter(unet, 3),
        call=lambda pipe, **options: test_fact.latents(pipe, test_fact.person(), **options),
    ),
    "wplus": SimpleNamespace(
        make=test_wplus.make_pipe,
        other=lambda unet: test_wplus.random_(
            test_wplus.WPlusAdapter.for_unet(
                unet, test_wplus.WPlusConfig(cross_attention_dim=test_wplus.HIDDEN, groups=(2, 2, 2, 2), style_dim=12)
            )
        ),
        call=lambda pipe, **options: test_wplus.images(
            pipe, CODE, test_wplus.PROMPT, **{"num_inference_steps": 2, "start_ratio": None} | options
        ),
    ),
    "instantid": SimpleNamespace(
        make=test_instantid.make_pipe,
        other=lambda unet: tiny_instantid(unet, seed=3),
        call=lambda pipe, **options: test_instantid.latents(pipe, sdxl_person(0), **options),
    ),
    "pva": SimpleNamespace(
        make=pva,
        other=lambda unet: test_pva.tiny_adapter(unet, 3),
        call=lambda pipe, **options: test_pva.fill(pipe, test_pva.person(), **options),
    ),
}


def load(name, pipe, adapter):
    getattr(pipe, f"load_{name}")(adapter)


def unload(name, pipe):
    getattr(pipe, f"unload_{name}")()


def sibling(pipe, **options):
    # diffusers passes an autoencoder on only where its class is the one that it expects
    return quiet(type(pipe).from_pipe(pipe, vae=pipe.vae, **options))


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_whose_adapter_another_has_taken_out_says_so_and_can_be_loaded_again(name):
    case = CASES[name]
    pipe = case.make()
    twin = sibling(pipe)
    assert getattr(twin, name) is getattr(pipe, name)
    unload(name, pipe)
    with pytest.raises(IdgenError, match=f"not in this pipeline's UNet any more: load_{name}"):
        case.call(twin)
    load(name, twin, case.other(twin.unet))
    if name == "fact":
        twin.transface = test_fact.tiny_transface()
    assert case.call(twin).isfinite().all()
    unload(name, twin)
    assert not hasattr(twin.unet, "_idgen_host")


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_with_a_unet_of_its_own_leaves_the_others_adapter_alone(name):
    case = CASES[name]
    pipe = case.make()
    before = case.call(pipe)
    twin = sibling(pipe, unet=type(pipe.unet).from_config(pipe.unet.config))
    assert getattr(twin, name) is None
    load(name, twin, case.other(twin.unet))
    unload(name, twin)
    twin = sibling(pipe)
    twin.unet = type(pipe.unet).from_config(pipe.unet.config)
    unload(name, twin)
    assert torch.equal(case.call(pipe), before)


@pytest.mark.parametrize("make", [make_pipe, tiny_restorer, *(case.make for case in CASES.values())])
def test_from_pipe_leaves_the_shared_networks_in_their_precision(make):
    pipe = make().to(torch.bfloat16)
    vae = {"vae": pipe.vae} if hasattr(pipe, "vae") else {}
    twin = type(pipe).from_pipe(pipe, **vae)
    assert twin.unet is pipe.unet and {twin.dtype, pipe.unet.dtype} == {torch.bfloat16}
    assert type(pipe).from_pipe(pipe, dtype=torch.float32, **vae).unet.dtype == torch.float32


def test_from_pipe_keeps_precisions_that_differ():
    pipe = make_pipe()
    pipe.unet.to(torch.bfloat16)
    exact = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    type(pipe).from_pipe(pipe)
    assert (pipe.unet.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.float32)
    assert all(torch.equal(value, exact[name]) for name, value in pipe.unet.state_dict().items())


def test_pipelines_of_one_unet_know_whom_it_is_personalised_for():
    pipe = pva()
    twin = sibling(pipe)
    assert twin.pva is pipe.pva and twin.recogniser is pipe.recogniser
    plain = CASES["pva"].call(pipe)
    one, other = (
        PersonWeights("visual", {"modifier": torch.full((32,), value)}, fingerprint(pipe.pva)) for value in (0.5, -0.5)
    )
    alone = CASES["pva"].call(pipe.load_person(other))
    pipe.load_person(one)
    assert twin.person is one
    assert torch.equal(CASES["pva"].call(twin.load_person(other)), alone), "nothing of one person stays with the other"
    assert pipe.person is other
    pipe.unload_person()
    assert twin.person is None and torch.equal(CASES["pva"].call(twin), plain)


@pytest.mark.parametrize("name", ["fact", "wplus", "pva"])
def test_guidance_may_end_before_the_steps_do(name):
    case = CASES[name]
    pipe = case.make()
    rows = []
    pipe.unet.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    options = {"num_inference_steps": 4, "guidance_scale": 4.0}
    ended = case.call(pipe, callback_on_step_end=cutoff, **options)
    assert rows == [2, 2, 1, 1]
    assert ended.isfinite().all() and not torch.allclose(ended, case.call(pipe, **options), atol=1e-4)


def test_a_conditioning_that_is_carried_along_ends_with_the_guidance_too():
    pipe = make_pipe()
    adapter = test_fact.tiny_adapter(pipe.unet).inject(pipe.unet)
    features = torch.randn(1, 4, test_fact.WIDTH, generator=torch.Generator().manual_seed(2))
    face = torch.ones(1, 512)
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0)

    def latents(**options):
        given = {"num_inference_steps": 3, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
        return pipe(face, **given | options).images

    kwargs = adapter.condition(features).kwargs
    ended = latents(cross_attention_kwargs=kwargs, callback_on_step_end=cutoff)
    assert not torch.allclose(ended, latents(callback_on_step_end=cutoff), atol=1e-4)
    assert not torch.allclose(ended, latents(cross_attention_kwargs=kwargs), atol=1e-4)


def test_pva_takes_the_scale_and_the_tensors_that_a_callback_gives_back():
    pipe = pva()

    def run(change):
        names = pipe._callback_tensor_inputs
        options = {"num_inference_steps": 3, "guidance_scale": 4.0, "callback_on_step_end_tensor_inputs": names}
        return CASES["pva"].call(pipe, callback_on_step_end=change, **options)

    usual = run(lambda pipe, step, time, tensors: {})
    assert torch.equal(usual, CASES["pva"].call(pipe, num_inference_steps=3, guidance_scale=4.0))

    def scale(pipe, step, time, tensors):
        pipe._guidance_scale = 8.0
        return {}

    assert not torch.allclose(run(scale), usual, atol=1e-4)
    assert not torch.allclose(run(lambda pipe, step, time, tensors: {"mask": 1 - tensors["mask"]}), usual, atol=1e-4)
    name = "masked_image_latents"
    assert not torch.allclose(run(lambda pipe, step, time, tensors: {name: -tensors[name]}), usual, atol=1e-4)
    seen = []
    run(
        lambda pipe, step, time, tensors: (
            seen.append(tensors["negative_prompt_embeds"]) or {"negative_prompt_embeds": 3}
        )
    )
    assert seen[1:] == [3, 3]


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_enters_and_leaves_a_compiled_unet(name):
    case = CASES[name]
    pipe = case.make()
    unet = pipe.unet
    pipe.unet = torch.compile(unet, backend="eager")
    load(name, pipe, case.other(unet))
    assert getattr(pipe, name).unet is unet
    unload(name, pipe)
    assert not hasattr(unet, "_idgen_host")
