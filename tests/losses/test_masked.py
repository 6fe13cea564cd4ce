"""The masked loss is the plain one where the mask is, and blind where it is not."""

from __future__ import annotations

import torch

from idgen.losses.diffusion import Noised, denoising_loss
from idgen.losses.masked import masked_denoising_loss


def noised() -> tuple[torch.Tensor, Noised]:
    random = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(3, 4, 8, 8, generator=random) for _ in range(2))
    weights = torch.rand(3, generator=random) + 0.1
    return prediction, Noised(target, target, torch.zeros(3, dtype=torch.long), weights)


def test_masks_of_ones_give_the_plain_loss() -> None:
    prediction, at = noised()
    for value in (1.0, 0.3):
        masked = masked_denoising_loss(prediction, at, torch.full((3, 1, 8, 8), value))
        assert torch.allclose(masked, denoising_loss(prediction, at), atol=1e-6)


def test_nothing_is_learned_beside_the_mask() -> None:
    prediction, at = noised()
    masks = torch.zeros(3, 1, 8, 8)
    masks[:, :, :4] = 1
    prediction.requires_grad_(True)
    masked_denoising_loss(prediction, at, masks).backward()
    assert prediction.grad is not None
    assert prediction.grad[:, :, 4:].abs().max() == 0 < prediction.grad[:, :, :4].abs().min()


def test_a_photo_without_a_face_counts_for_less_than_one_with() -> None:
    prediction, at = noised()
    masks = torch.ones(3, 1, 8, 8)
    masks[2] = 0.1
    prediction.requires_grad_(True)
    masked_denoising_loss(prediction, at, masks).backward()
    assert prediction.grad is not None
    sizes = prediction.grad.abs().mean((1, 2, 3)) / at.weights
    assert sizes[2] < 0.3 * sizes[:2].min()


def test_no_mask_at_all_is_no_loss() -> None:
    prediction, at = noised()
    assert masked_denoising_loss(prediction, at, torch.zeros(3, 1, 8, 8)) == 0
