"""Identity losses over the noise levels, and denoising losses of models that predict v or the noise."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from idgen.losses.diffusion import add_noise, denoising_loss, noised_at, predicted_latents
from idgen.losses.identity import schedule_weights
from idgen.losses.masked import masked_denoising_loss

KINDS = ("v_prediction", "epsilon")


def scheduler(kind: str) -> DDIMScheduler:
    return DDIMScheduler(prediction_type=kind)


def test_the_three_schedules_scale_by_signal_not_at_all_and_within_a_window():
    abar, t = torch.linspace(0.99, 0.0, 1000), torch.tensor([0, 399, 400, 999])
    assert torch.allclose(schedule_weights("scaled", abar, t, 400), abar[t].sqrt())
    assert schedule_weights("naive", abar, t, 400).tolist() == [1, 1, 1, 1]
    assert schedule_weights("window", abar, t, 400).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_answer_gives_the_clean_latents_back_and_costs_nothing(kind):
    clean = torch.randn(4, 2, 4, 4)
    noised = add_noise(scheduler(kind), clean)
    assert torch.allclose(predicted_latents(scheduler(kind), noised.target, noised), clean, atol=1e-3)
    assert denoising_loss(noised.target, noised) == 0


def test_by_min_snr_both_kinds_weigh_the_same_mistake_in_the_picture_alike():
    clean, noise, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([50, 400, 800])
    error, costs = 0.01 * torch.randn(3, 2, 4, 4), []
    for kind in KINDS:
        noised = noised_at(scheduler(kind), clean, noise, t, gamma=5.0)
        abar = scheduler(kind).alphas_cumprod[t].view(-1, 1, 1, 1)
        # What moves the predicted clean latents by `error`.
        factor = -1 / (1 - abar).sqrt() if kind == "v_prediction" else -(abar / (1 - abar)).sqrt()
        shifted = noised.target + factor * error
        assert torch.allclose(predicted_latents(scheduler(kind), shifted, noised), clean + error, atol=1e-3)
        costs.append((shifted - noised.target).pow(2).mean((1, 2, 3)) * noised.weights)
    # Each kind's weights have a mean of 1 over all times: alike up to one factor.
    ratio = costs[0] / costs[1]
    assert torch.allclose(ratio, ratio[:1].expand(3), rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "sampler",
    [
        DDIMScheduler,
        PNDMScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
    ],
)
def test_noise_is_what_the_model_was_trained_on_whatever_it_is_sampled_with(sampler, kind):
    given = sampler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind)
    training = DDPMScheduler.from_config(given.config)
    clean, noise, t = torch.randn(4, 2, 4, 4), torch.randn(4, 2, 4, 4), torch.tensor([0, 50, 500, 950])
    for steps in (None, 20):  # also when a picture was sampled in between
        if steps:
            given.set_timesteps(steps)
        noised = noised_at(given, clean, noise, t)
        assert torch.equal(noised.noisy, training.add_noise(clean, noise, t))
        wanted = noise if kind == "epsilon" else training.get_velocity(clean, noise, t)
        assert torch.equal(noised.target, wanted)
        assert torch.allclose(predicted_latents(given, noised.target, noised), clean, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weighs_one_photo_alone_as_it_does_among_others(kind):
    clean, noise, t = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4), torch.arange(1000)
    every = noised_at(scheduler(kind), clean.expand(1000, -1, -1, -1), noise.expand(1000, -1, -1, -1), t, gamma=5.0)
    assert float(every.weights.mean()) == pytest.approx(1, abs=1e-4)
    for time in (20, 900):
        one = noised_at(scheduler(kind), clean, noise, t[time : time + 1], gamma=5.0)
        wrong = one.target + 1
        assert float(denoising_loss(wrong, one)) == pytest.approx(float(every.weights[time]), rel=1e-5)
        masked = masked_denoising_loss(wrong, one, torch.ones(1, 1, 4, 4))
        assert float(masked) == pytest.approx(float(every.weights[time]), rel=1e-5)


def test_the_last_time_is_the_last_of_the_schedule(monkeypatch):
    """In float32 the last of 256 places rounds up to 1."""
    monkeypatch.setattr(torch, "rand", lambda count, device: torch.full((count,), 1 - 2**-18, device=device))
    noised = add_noise(scheduler("epsilon"), torch.zeros(256, 1, 2, 2))
    assert noised.timesteps.max() == 999
