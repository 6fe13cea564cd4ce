"""The timestep-scaled identity loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from idgen.errors import IdgenError
from idgen.losses.identity import clean_latents, face_region, identity_distances, restoration_losses, timestep_weights

ABAR = torch.linspace(0.99, 0.01, 1000)


def recogniser() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(147, 8))


def test_the_weight_falls_with_noise_or_is_cut_off():
    t = torch.tensor([0, 99, 100, 499, 500, 999])
    assert torch.allclose(timestep_weights(ABAR, t), ABAR[t].sqrt())
    assert timestep_weights(ABAR, t, "t_lt_100").tolist() == [1, 1, 0, 0, 0, 0]
    assert timestep_weights(ABAR, t, "t_lt_500").tolist() == [1, 1, 1, 1, 0, 0]
    assert timestep_weights(ABAR, t, "unscaled").tolist() == [1] * 6
    with pytest.raises(IdgenError, match="sqrt_abar"):
        timestep_weights(ABAR, t, "cosine")


def test_the_right_noise_gives_the_clean_latents_back():
    clean, noise, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    abar = ABAR[t].view(-1, 1, 1, 1)
    noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    assert torch.allclose(clean_latents(noisy, noise, ABAR, t), clean, atol=1e-4)


def test_only_the_face_counts():
    image = torch.rand(1, 3, 64, 128)
    framed = image.clone()
    framed[..., :4, :], framed[..., 60:, :], framed[..., :8], framed[..., 120:] = 1, 1, 1, 1
    assert torch.equal(face_region(image), face_region(framed))
    assert face_region(image).shape == (1, 3, 112, 112)
    framed[..., 4, 8] = 2
    assert not torch.equal(face_region(image), face_region(framed))


def test_gradients_reach_the_picture_and_never_its_target():
    network, image = recogniser(), torch.rand(2, 3, 128, 128)
    assert torch.allclose(identity_distances(network, image, image), torch.zeros(2), atol=1e-6)
    made, target = image.clone().requires_grad_(), torch.rand(2, 3, 128, 128).requires_grad_()
    distances = identity_distances(network, made, target)
    assert (distances > 0).all()
    distances.sum().backward()
    assert made.grad.abs().sum() > 0 and target.grad is None


def test_the_sum_weighs_each_samples_distance():
    noise, distances, weights = torch.zeros(2, 4, 8, 8), torch.tensor([0.5, 1.0]), torch.tensor([1.0, 0.2])
    losses = restoration_losses(noise + 2, noise, distances, weights, identity_weight=0.1)
    assert losses.noise == 4
    assert losses.identity == pytest.approx(0.35)
    assert losses.total == pytest.approx(4.035)
