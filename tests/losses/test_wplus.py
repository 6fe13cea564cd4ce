"""The losses of the W+ Adapter's second stage: what each of them looks at."""

import torch

from idgen.losses.wplus import wild_losses


def example():
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randn(2, 4, 16, 16, generator=generator) for _ in range(4)]
    masks = torch.zeros(2, 1, 128, 128)
    masks[:, :, :64] = 1  # the upper half is face
    return pictures, masks


def losses(pictures, masks, **weights):
    prediction, target, perturbed, plain = pictures
    return wild_losses(prediction, target, perturbed=perturbed, plain=plain, face_masks=masks, **weights)


def test_another_code_may_change_the_face_and_nothing_else():
    pictures, masks = example()
    before = losses(pictures, masks)
    pictures[2] = pictures[2].clone()
    pictures[2][:, :, :8] += 5
    assert torch.equal(losses(pictures, masks).disentanglement, before.disentanglement)
    pictures[2][:, :, 8:] += 5
    assert losses(pictures, masks).disentanglement > 2 * before.disentanglement


def test_only_the_prediction_gets_gradients():
    pictures, masks = example()
    pictures = [picture.requires_grad_() for picture in pictures]
    losses([pictures[0], pictures[1].detach(), *pictures[2:]], masks).total.backward()
    assert pictures[0].grad.abs().sum() > 0
    assert pictures[2].grad is None and pictures[3].grad is None


def test_weights_of_zero_leave_the_plain_denoising_loss():
    pictures, masks = example()
    result = losses(pictures, masks, disentangle=0.0, preserve=0.0)
    assert torch.equal(result.total, torch.nn.functional.mse_loss(pictures[0], pictures[1]))


def test_half_precision_predictions_are_compared_in_float32():
    pictures, masks = example()
    assert losses([picture.half() for picture in pictures], masks).total.dtype == torch.float32
