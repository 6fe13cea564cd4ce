"""Losses over ranked candidates, and the anchor, against formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler

from idgen.errors import IdgenError
from idgen.rewards.anchor import anchor_loss
from idgen.rewards.ranking import dpo_loss, drift_loss, extremes, patch_statistics, take, unet_features
from tests.tiny import tiny_unet


def test_dpo_begins_at_log_two_and_weighs_both_errors_alike():
    better, worse = torch.full((4,), 0.3, requires_grad=True), torch.full((4,), 0.5, requires_grad=True)
    loss = dpo_loss(better, worse, better.detach(), worse.detach(), beta=10.0)
    assert float(loss) == pytest.approx(math.log(2))
    loss.backward()
    # d/dx of -log sigmoid(-beta/2 x) at 0 is beta / 4, shared by four pairs.
    assert torch.allclose(better.grad, torch.full((4,), 10 / 16)) and torch.allclose(worse.grad, -better.grad)


def test_dpos_gradient_is_that_of_finite_differences_and_none_reaches_the_base():
    errors = [torch.rand(3, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(lambda a, b: dpo_loss(a, b, errors[2], errors[3], 3.0), errors[:2])
    dpo_loss(*errors, 3.0).backward()
    assert errors[2].grad is None and errors[3].grad is None


def drift_by_hand(x, positives, negatives, weight, radii):
    """One group, value by value."""
    n, dim = x.shape
    targets = torch.cat([x, negatives, positives])
    weights = [1.0] * n + [weight] * (len(negatives) + len(positives))
    first_positive = n + len(negatives)
    distance = [[max(float((a - b).norm()), 1e-4) for b in targets] for a in x]
    total = sum(d * w for row in distance for d, w in zip(row, weights, strict=True)) / (n * len(targets))
    scale = total / (sum(weights) / len(weights))
    unit = scale / math.sqrt(dim)
    force = torch.zeros(n, dim)
    for radius in radii:
        logits = torch.tensor(
            [[-d / (scale * radius) - (100 / radius if i == j else 0) for j, d in enumerate(row)]
             for i, row in enumerate(distance)]
        )  # fmt: skip
        affinity = (logits.softmax(1) * logits.softmax(0)).clamp_min(1e-6).sqrt() * torch.tensor(weights)
        part = torch.zeros(n, dim)
        for i in range(n):
            push, pull = affinity[i, :first_positive].sum(), affinity[i, first_positive:].sum()
            for j, target in enumerate(targets):
                c = affinity[i, j] * push if j >= first_positive else -affinity[i, j] * pull
                part[i] += c * (target - x[i]) / unit
        force += part / part.pow(2).mean().sqrt()
    return force.pow(2).mean(), force, unit


def test_drift_is_the_published_formula_and_its_gradient_the_force():
    torch.manual_seed(0)
    x, positives, negatives = torch.randn(3, 5, requires_grad=True), torch.randn(2, 5), torch.randn(2, 5)
    wanted, force, unit = drift_by_hand(x.detach(), positives, negatives, 10.0, (0.02, 0.05, 0.2))
    loss = drift_loss(x[None], positives[None], negatives[None])
    assert loss.shape == (1,) and float(loss) == pytest.approx(float(wanted), rel=1e-3)
    loss.sum().backward()
    assert torch.allclose(x.grad, -2 * force / unit / x.numel(), rtol=1e-3, atol=1e-5)


def test_drift_goes_to_the_best_and_away_from_the_worst():
    x = torch.zeros(1, 2, 3, requires_grad=True)
    best, worst = torch.tensor([[[1.0, 0, 0]]]), torch.tensor([[[0, 1.0, 0]]])
    drift_loss(x + 0.01 * torch.eye(2, 3), best, worst).sum().backward()
    step = -x.grad[0].mean(0)
    assert step[0] > 0 > step[1]
    with pytest.raises(IdgenError, match="at least one candidate"):
        drift_loss(x, best[:, :0], worst)


def test_extremes_are_disjoint_and_taken_from_their_own_row():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.3], [0.4, 0.2, 0.8, 0.6]])
    best, worst = extremes(scores, 2)
    assert best.tolist() == [[1, 2], [2, 3]] and worst.tolist() == [[3, 0], [0, 1]]
    assert take(scores, best).tolist() == [[pytest.approx(0.9), 0.5], [pytest.approx(0.8), pytest.approx(0.6)]]
    with pytest.raises(IdgenError, match="at least 6"):
        extremes(scores, 3)


def test_features_of_a_unet_are_means_and_deviations_of_patches():
    unet, context = tiny_unet(16), torch.randn(2, 3, 16)
    noisy = torch.randn(2, 8, 4, 4, requires_grad=True)
    found = unet_features(unet, lambda: unet(noisy, 10, context), ("mid_block", "down_blocks.0"))
    assert [f.shape[1] for f in found] == [1, 1, 4, 4, 16, 16] * 2
    found[0].sum().backward()
    assert noisy.grad.abs().sum() > 0 and not unet.mid_block._forward_hooks
    flat = torch.arange(16.0).view(1, 1, 4, 4)
    mean, deviation, means, _, cells, _ = patch_statistics(flat)
    assert mean.item() == 7.5 and deviation.item() == pytest.approx(float(flat.std(correction=0)), rel=1e-4)
    assert means.flatten().tolist() == [2.5, 4.5, 10.5, 12.5] and cells.flatten().tolist() == flat.flatten().tolist()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_kl_anchor_is_that_of_one_ancestral_step(kind):
    torch.manual_seed(0)
    scheduler, timesteps = DDIMScheduler(prediction_type=kind), torch.tensor([1, 400, 990, 0])
    answer, base = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    abar, total = scheduler.alphas_cumprod, 0.0
    for i, t in enumerate(timesteps[:3]):
        now, before = abar[t], abar[t - 1]
        beta = 1 - now / before
        factor = (1 - now).sqrt() / (now.sqrt() if kind == "epsilon" else 1)  # of the answer in the clean latents
        mean = before.sqrt() * beta / (1 - now) * factor
        deviation = ((1 - before) / (1 - now) * beta).sqrt()
        normal = torch.distributions.Normal
        kl = torch.distributions.kl_divergence(
            normal(mean * answer[i], deviation), normal(mean * base[i], deviation)
        ).mean()
        total += float(kl)
    assert float(anchor_loss(answer, base, timesteps, scheduler, "kl")) == pytest.approx(total / 4, rel=2e-2)
    assert float(anchor_loss(answer, base, timesteps, scheduler)) == pytest.approx(float((answer - base).pow(2).mean()))
    assert anchor_loss(base, base, timesteps, scheduler, "kl") == 0
