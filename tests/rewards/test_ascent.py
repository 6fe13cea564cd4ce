"""Guidance by a reward at sampling time: up the gradient, at any solver, without a trace afterwards."""

from __future__ import annotations

import copy
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from idgen import FaceEncoder, Identity
from idgen.errors import IdgenError
from idgen.models.mini_family import build_scheduler
from idgen.pipelines import Arc2FacePipeline
from idgen.rewards.ascent import RewardGuidance, clean_latents, guide_identity
from idgen.rewards.scores import Scored
from idgen.rewards.views import Asked, PictureView, View
from tests.tiny import tiny_components, tiny_vae

WANTED = F.normalize(torch.randn(2, 8, generator=torch.Generator().manual_seed(1)), dim=-1)


def whole(latents: Tensor) -> View:
    """Latents as they are."""
    seen = torch.ones(len(latents), dtype=torch.bool)
    return View(latents, torch.zeros(len(latents), 5, 2), seen)


class Direction:
    """How far the mean over the places points where it should."""

    needs_whole = False

    def __init__(self, blind: int | None = None) -> None:
        self.blind = blind

    def __call__(self, view: View, asked: Asked) -> Scored:
        assert asked.references is not None
        counted = torch.arange(len(view.pictures)) != (-1 if self.blind is None else self.blind)
        return Scored(F.cosine_similarity(view.pictures.mean((2, 3)), asked.references), counted)


def guidance(strength: float = 0.05, start: float = 0.3, **reward: Any) -> RewardGuidance:
    return RewardGuidance(whole, Direction(**reward), Asked(WANTED), strength, start)


def sample(scheduler: Any, steps: int = 10) -> Tensor:
    """By a model that answers half of what it is shown."""
    torch.manual_seed(0)
    latents = torch.randn(2, 8, 4, 4)
    scheduler.set_timesteps(steps)
    for time in scheduler.timesteps:
        latents = scheduler.step(0.5 * latents, time, latents, return_dict=False)[0]
    return latents


def reward_of(latents: Tensor) -> Tensor:
    return Direction()(whole(latents), Asked(WANTED)).values


def test_each_picture_goes_up_the_reward_by_the_strength():
    clean = torch.randn(2, 8, 4, 4)
    shift = guidance(0.05).shift(clean)
    assert torch.allclose(shift.square().mean((1, 2, 3)).sqrt(), torch.tensor([0.05, 0.05]), atol=1e-6)
    assert (reward_of(clean + shift) > reward_of(clean)).all()


def test_what_lies_beyond_a_picture_comes_back_and_goes_no_further():
    def brightness(sign: float) -> RewardGuidance:
        def reward(view: View, asked: Asked) -> Scored:
            return Scored(sign * view.pictures.mean((1, 2, 3)), torch.ones(len(view.pictures), dtype=torch.bool))

        reward.needs_whole = False
        return RewardGuidance(PictureView(lambda latents: latents), reward, Asked(WANTED[:1]), 0.05)

    values = torch.tensor([1.5, 0.2, -1.5, 0.1]).reshape(1, 1, 2, 2)
    assert brightness(1).shift(values).sign().flatten().tolist() == [0, 1, 1, 1]
    assert brightness(-1).shift(values).sign().flatten().tolist() == [-1, -1, 0, -1]


def test_what_the_reward_can_not_tell_is_left_alone():
    shift = guidance(blind=1).shift(torch.randn(2, 8, 4, 4))
    assert shift[0].abs().max() > 0
    assert shift[1].abs().max() == 0


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_every_solver_draws_what_is_rewarded_and_is_left_as_it_was(kind):
    scheduler = kind.from_config(build_scheduler().config)
    plain = sample(scheduler)
    pipe = SimpleNamespace(scheduler=scheduler)
    guided = sample(guidance().guided(pipe).scheduler)
    assert (reward_of(guided) > reward_of(plain) + 0.05).all()
    assert pipe.scheduler is scheduler
    assert type(scheduler) is kind
    assert torch.equal(sample(scheduler), plain)


def test_a_guided_step_takes_what_the_solver_takes():
    scheduler = DDIMScheduler.from_config(build_scheduler().config)
    step = guidance().guided(SimpleNamespace(scheduler=scheduler)).scheduler.step
    assert inspect.signature(step) == inspect.signature(scheduler.step)  # pipelines pass eta and generator by it


def test_no_strength_changes_nothing():
    pipe = SimpleNamespace(scheduler=build_scheduler())
    plain = sample(pipe.scheduler)
    assert torch.equal(sample(guidance(0.0).guided(pipe).scheduler), plain)


def test_noisy_steps_are_left_alone():
    pipe = SimpleNamespace(scheduler=build_scheduler())
    plain = sample(pipe.scheduler)
    assert torch.equal(sample(guidance(start=1.0).guided(pipe).scheduler), plain)


def test_a_step_of_ddim_moves_by_the_share_of_the_picture_that_is_left():
    scheduler = build_scheduler()
    scheduler.set_timesteps(10)
    time, noisy, answer = scheduler.timesteps[6], torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)
    plain = scheduler.step(answer, time, noisy)
    guided = guidance().guided(SimpleNamespace(scheduler=scheduler)).scheduler.step(answer, time, noisy)
    share = scheduler.alphas_cumprod[scheduler.timesteps[7]].sqrt()
    moved = guided.prev_sample - plain.prev_sample
    assert torch.allclose(moved, share * guidance().shift(plain.pred_original_sample), atol=1e-5)


def test_a_copy_of_the_scheduler_is_guided_by_the_same_networks():
    guide = guidance()
    scheduler = guide.guided(SimpleNamespace(scheduler=build_scheduler())).scheduler
    copied = copy.deepcopy(scheduler)
    assert copied.reward_guidances == (guide,)
    assert torch.equal(sample(copied), sample(scheduler))


def test_guidances_add_up_each_from_its_own_step_on():
    early, late, pipe = guidance(0.02), guidance(0.05, start=0.9), SimpleNamespace(scheduler=build_scheduler())
    once = early.guided(pipe)
    twice = late.guided(once).scheduler
    twice.set_timesteps(10)
    noisy, answer = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)
    for place, acting in ((6, (early,)), (9, (early, late))):
        time = twice.timesteps[place]
        assert (twice.alphas_cumprod[time].sqrt() > 0.9) == (len(acting) == 2)
        plain = type(pipe.scheduler).from_config(twice.config)
        plain.set_timesteps(10)
        before = plain.step(answer, time, noisy)
        share = twice.alphas_cumprod[twice.timesteps[place + 1]].sqrt() if place < 9 else 1.0
        wanted = share * sum(one.shift(before.pred_original_sample) for one in acting)
        assert torch.allclose(twice.step(answer, time, noisy).prev_sample - before.prev_sample, wanted, atol=1e-5)
    assert once.scheduler.reward_guidances == (early,)  # and the pipeline guided once is so still


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_clean_latents_are_those_of_diffusers(kind):
    scheduler = DDIMScheduler.from_config(build_scheduler().config, prediction_type=kind)
    scheduler.set_timesteps(10)
    noisy, answer = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)
    expected = scheduler.step(answer, scheduler.timesteps[4], noisy).pred_original_sample
    signal = scheduler.alphas_cumprod[scheduler.timesteps[4]].sqrt()
    assert torch.allclose(clean_latents(answer, noisy, signal, kind), expected, atol=1e-5)


def test_a_mistake_is_one_line():
    euler = SimpleNamespace(scheduler=EulerDiscreteScheduler.from_config(build_scheduler().config))
    with pytest.raises(IdgenError, match="does not work with EulerDiscreteScheduler: use DDIMScheduler"):
        guidance().guided(euler)
    for strength in (-0.1, float("nan")):
        with pytest.raises(IdgenError, match="expected 0 or more"):
            guidance(strength)
    with pytest.raises(IdgenError, match="for 2 people or prompts, and the batch has 3 pictures"):
        guidance().shift(torch.randn(3, 8, 4, 4))


def test_guidance_by_a_recogniser_needs_its_own_embeddings_of_somebody():
    encoder, vae = FaceEncoder.from_pretrained("mini", device="cpu"), tiny_vae()
    with pytest.raises(IdgenError, match="give at least one photo"):
        guide_identity(encoder, vae, [None])
    with pytest.raises(IdgenError, match="'other' can not be compared with faces that 'mini' reads"):
        guide_identity(encoder, vae, [Identity(torch.ones(1, 512), "other")])


def test_a_guided_pipeline_shares_the_networks_and_leaves_the_other_as_it_is():
    pipe = Arc2FacePipeline(**tiny_components())
    pipe.set_progress_bar_config(disable=True)
    people = torch.randn(2, 512, generator=torch.Generator().manual_seed(0))

    def drawn(with_pipe: Any) -> Tensor:
        noise = torch.Generator().manual_seed(0)
        return with_pipe(people, num_inference_steps=10, output_type="latent", generator=noise).images

    plain, scheduler = drawn(pipe), pipe.scheduler
    guided = guidance(0.05, 0.6).guided(pipe)
    assert guided.unet is pipe.unet
    assert (reward_of(drawn(guided)) > reward_of(plain)).all()
    assert pipe.scheduler is scheduler
    assert torch.equal(drawn(pipe), plain)
