"""Where gradients of each algorithm pass, against closed forms on denoisers that are linear."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from idgen.errors import IdgenError
from idgen.models.mini_family import build_scheduler
from idgen.rewards.algorithms import GRADIENT, AlgorithmConfig, alignprop, draft, draft_lv, drtune, refl
from idgen.rewards.chain import Chain

STEPS = 8
KINDS = ("epsilon", "v_prediction")


def chain(kind: str, steps: int = STEPS) -> Chain:
    return Chain(DDIMScheduler(prediction_type=kind, set_alpha_to_one=True), steps)


def coefficients(made: Chain) -> list[tuple[float, float]]:
    """Each step as next = a * latents + b * answer."""
    abar = [float(made.scheduler.alphas_cumprod[t]) for t in made.timesteps] + [1.0]
    found = []
    for now, after in itertools.pairwise(abar):
        if made.scheduler.config.prediction_type == "epsilon":
            a = math.sqrt(after / now)
            found.append((a, math.sqrt(1 - after) - a * math.sqrt(1 - now)))
        else:
            a = math.sqrt(after * now) + math.sqrt((1 - after) * (1 - now))
            found.append((a, math.sqrt((1 - after) * now) - math.sqrt(after * (1 - now))))
    return found


def path(made: Chain, theta: float, noise: float) -> list[float]:
    """The latents of a model that answers theta * latents, before each step and at the end."""
    latents = [noise]
    for a, b in coefficients(made):
        latents.append((a + theta * b) * latents[-1])
    return latents


def by_input(made: Chain, theta: float, noise: float, first: int) -> float:
    """d end / d theta where steps from `first` on are trained and gradients also pass through the model's input."""
    steps, latents = coefficients(made), path(made, theta, noise)
    return sum(
        b * latents[i] * math.prod(a2 + theta * b2 for a2, b2 in steps[i + 1 :])
        for i, (_, b) in enumerate(steps)
        if i >= first
    )


class Linear:
    """Answers theta * latents and remembers where it was asked with gradients enabled."""

    def __init__(self, theta: float = 0.3) -> None:
        self.theta = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        self.trained: list[int] = []

    def __call__(self, latents, timestep):
        if torch.is_grad_enabled():
            self.trained.append(int(timestep))
        return self.theta * latents


NOISE = torch.full((1, 1, 2, 2), 0.7, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 3, STEPS, 100])
def test_draft_has_the_gradient_of_its_last_steps(kind, k):
    made, model = chain(kind), Linear()
    out = draft(model, made, NOISE, last_steps=k)
    assert torch.allclose(out, torch.full_like(NOISE, path(made, 0.3, 0.7)[-1]), rtol=1e-5)
    out.mean().backward()
    assert float(model.theta.grad) == pytest.approx(by_input(made, 0.3, 0.7, max(0, STEPS - k)), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_chains_gradient_is_that_of_finite_differences(kind):
    made = chain(kind, 4)
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(2, 1, 1, 3, dtype=torch.float64)

    def end(weight):
        return draft(lambda x, t: torch.tanh(x @ weight) * (1 + t / 1000), made, noise, last_steps=4)

    assert torch.autograd.gradcheck(end, (weight,), eps=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_refl_trains_one_late_step_and_predicts_the_clean_latents_from_it(kind):
    made = chain(kind)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        model = Linear()
        out = refl(model, made, NOISE, window=0.5)
        (timestep,) = model.trained
        index = made.timesteps.tolist().index(timestep)
        seen.add(index)
        abar, before = float(made.scheduler.alphas_cumprod[timestep]), path(made, 0.3, 0.7)[index]
        if kind == "epsilon":
            a, b = 1 / math.sqrt(abar), -math.sqrt(1 / abar - 1)
        else:
            a, b = math.sqrt(abar), -math.sqrt(1 - abar)
        assert out.mean().item() == pytest.approx((a + 0.3 * b) * before, rel=1e-4)
        out.mean().backward()
        assert float(model.theta.grad) == pytest.approx(b * before, rel=1e-4)
    assert seen == {4, 5, 6, 7}


def test_draft_lv_adds_last_steps_on_the_result_noised_anew():
    made, model = chain("epsilon"), Linear()
    torch.manual_seed(0)
    out = draft_lv(model, made, NOISE, copies=3)
    assert out.shape == (4, 1, 2, 2)
    torch.manual_seed(0)
    last = int(made.timesteps[-1])
    abar, end = float(made.scheduler.alphas_cumprod[last]), path(made, 0.3, 0.7)[-1]
    a, b = coefficients(made)[-1]
    for copy in out[1:]:
        noisy = math.sqrt(abar) * end + math.sqrt(1 - abar) * torch.randn_like(NOISE)
        assert torch.allclose(copy, (a + 0.3 * b) * noisy[0], rtol=1e-4)
    out[1:].mean().backward()  # the copies alone: nothing passes through the chain that made the first
    assert model.trained == [last] * 4 and torch.isfinite(model.theta.grad)


@pytest.mark.parametrize("truncation", ["uniform", "gaussian"])
def test_alignprop_draws_how_many_last_steps_are_trained(truncation):
    made, counts = chain("epsilon"), []
    for seed in range(60):
        torch.manual_seed(seed)
        model = Linear()
        alignprop(model, made, NOISE, truncation=truncation)
        assert model.trained == made.timesteps.tolist()[-len(model.trained) :]
        counts.append(len(model.trained))
    if truncation == "uniform":
        assert set(counts) == set(range(1, STEPS + 1))
    else:
        assert sum(counts) / len(counts) == pytest.approx(STEPS * 8 / 50, abs=0.5) and max(counts) <= 4


@pytest.mark.parametrize("kind", KINDS)
def test_drtune_trains_steps_spread_over_the_chain_along_its_linear_path_alone(kind):
    made = chain(kind)
    starts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        model = Linear()
        drtune(model, made, NOISE, trained_steps=3, early_stop=0).mean().backward()
        indices = [made.timesteps.tolist().index(t) for t in model.trained]
        assert len(indices) == 3 and indices[1] - indices[0] == indices[2] - indices[1] == STEPS // 3
        starts.add(indices[0])
        steps, latents = coefficients(made), path(made, 0.3, 0.7)
        wanted = sum(steps[i][1] * latents[i] * math.prod(a for a, _ in steps[i + 1 :]) for i in indices)
        assert float(model.theta.grad) == pytest.approx(wanted, rel=1e-4)
    assert len(starts) > 1


def test_drtune_may_stop_early():
    made, lengths = chain("epsilon"), set()
    for seed in range(30):
        torch.manual_seed(seed)
        asked = []

        def model(latents, timestep, asked=asked):
            asked.append(int(timestep))
            return latents.detach()

        drtune(model, made, NOISE, trained_steps=1, early_stop=0.25)
        lengths.add(len(asked))
    assert lengths == {6, 7, 8}


@pytest.mark.parametrize("name", sorted(GRADIENT))
def test_every_algorithm_raises_a_reward_of_a_linear_model(name):
    torch.manual_seed(0)
    made, theta = chain("v_prediction"), torch.zeros(2, requires_grad=True)
    wanted = torch.tensor([1.0, -2.0])

    def reward(latents):
        return -(latents.mean((2, 3)) - wanted).pow(2).sum(1)

    def model(latents, timestep):
        return theta.view(1, 2, 1, 1).expand_as(latents)

    config, noise = AlgorithmConfig(name=name), torch.randn(4, 2, 2, 2)
    before = reward(made.sample(model, noise)).mean()
    for _ in range(20):
        loss = -reward(config.latents(model, made, noise)).mean()
        (gradient,) = torch.autograd.grad(loss, theta)
        theta.data -= 0.1 * gradient / gradient.norm()
    assert reward(made.sample(model, noise)).mean() > before


def test_the_chain_takes_over_any_schedulers_noise_and_samples_as_ddim_does():
    scheduler = build_scheduler()
    scheduler.set_timesteps(5)
    latents = noise = torch.randn(2, 3, 4, 4)
    for time in scheduler.timesteps:
        latents = scheduler.step(torch.tanh(latents), time, latents).prev_sample
    assert torch.equal(Chain(build_scheduler(), 5).sample(lambda x, t: torch.tanh(x), noise), latents)
    euler = EulerDiscreteScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    assert Chain(euler, 3).scheduler.config.prediction_type == "v_prediction"
    with pytest.raises(IdgenError, match="at least 1"):
        Chain(euler, 0)
