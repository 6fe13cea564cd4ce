"""Margins and the denoising loss against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from idgen.losses.diffusion import Noised, add_noise, denoising_loss, predicted_latents
from idgen.losses.margin import MarginHead
from idgen.models.mini_family import build_scheduler


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_margins_equal_their_papers_on_a_worked_example(kind: str) -> None:
    head = MarginHead(2, 2, kind, scale=10.0, margin=0.3)  # type: ignore[arg-type]
    head.centres.data = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    angle = 0.5
    embedding = 3 * torch.tensor([[math.cos(angle), math.sin(angle)]])
    own = math.cos(angle + 0.3) if kind == "arcface" else math.cos(angle) - 0.3
    logits = torch.tensor([[10 * own, 10 * math.sin(angle)]])
    wanted = F.cross_entropy(logits, torch.tensor([0]))
    assert torch.allclose(head(embedding, torch.tensor([0])), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["arcface", "cosface", "sphereface2"])
def test_a_margin_head_pulls_people_apart(kind: str) -> None:
    torch.manual_seed(0)
    points = torch.randn(60, 8)
    labels = torch.arange(6).repeat_interleave(10)
    embed = torch.nn.Linear(8, 8)
    head = MarginHead(8, 6, kind)  # type: ignore[arg-type]
    points += 2 * torch.randn(6, 8)[labels]
    optimizer = torch.optim.Adam([*embed.parameters(), *head.parameters()], 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        head(embed(points), labels).backward()
        optimizer.step()
    unit = F.normalize(embed(points).detach())
    cosine = unit @ unit.T
    same = labels[:, None] == labels[None]
    assert cosine[same].mean() > cosine[~same].mean() + 0.4


def test_the_true_velocity_has_no_loss_and_gives_back_the_latents() -> None:
    torch.manual_seed(0)
    scheduler = build_scheduler()
    latents = torch.randn(16, 8, 4, 4)
    noised = add_noise(scheduler, latents)
    assert float(denoising_loss(noised.target, noised)) == 0
    early = noised.timesteps < 900
    back = predicted_latents(scheduler, noised.target, noised)
    assert torch.allclose(back[early], latents[early], atol=1e-3)


def test_every_batch_covers_all_times() -> None:
    noised = add_noise(build_scheduler(), torch.zeros(10, 8, 2, 2))
    assert sorted((noised.timesteps // 100).tolist()) == list(range(10))


def test_without_a_gamma_every_time_weighs_the_same() -> None:
    noised = add_noise(build_scheduler(), torch.zeros(10, 8, 2, 2))
    assert noised.weights.tolist() == [1.0] * 10


def test_min_snr_weights_favour_the_middle_not_the_noise() -> None:
    noised = add_noise(build_scheduler(), torch.zeros(100, 8, 2, 2), gamma=5.0)
    by_time = noised.weights[noised.timesteps.argsort()]
    assert by_time[50] > by_time[-1] and by_time[30] > by_time[0]
    assert isinstance(noised, Noised) and bool(torch.isfinite(noised.weights).all())
