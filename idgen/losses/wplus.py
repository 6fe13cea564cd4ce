"""What the W+ Adapter's second stage trains with, on photos of whole people (Li et al., CVPR 2024, arXiv 2311.17461).

Facts from csxmli2016/w-plus-adapter `train_wild.py`. The face's code must not leak into clothes and background: outside the
face, the prediction is held to what the UNet predicts for another code, and everywhere to what it predicts without the adapter.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class WildLosses:
    """Scalars; `total` is the weighted sum."""

    reconstruction: Tensor
    disentanglement: Tensor
    preservation: Tensor
    total: Tensor


def wild_losses(
    prediction: Tensor,
    target: Tensor,
    *,
    perturbed: Tensor,
    plain: Tensor,
    face_masks: Tensor,
    disentangle: float = 2.0,
    preserve: float = 1.0,
) -> WildLosses:
    """The losses of a batch; only `prediction` gets gradients.

    Args:
        prediction: the UNet's answer to the photos' codes (batch, channels, h, w).
        target: what it should have been, the noise.
        perturbed: its answer to other codes: another person's, scaled, with noise or edited.
        plain: its answer at adapter scale 0.
        face_masks: 1 = face, (batch, 1, H, W), at any size.
        disentangle: weight of the difference to `perturbed` outside the face.
        preserve: weight of the difference to `plain`, which counts inside the face too.
    """
    prediction, perturbed, plain = prediction.float(), perturbed.detach().float(), plain.detach().float()
    outside = outside_face(face_masks, prediction.shape[-2:])
    reconstruction = F.mse_loss(prediction, target.float())
    disentanglement = F.mse_loss(prediction * outside, perturbed * outside)
    preservation = F.mse_loss(prediction, plain)
    total = reconstruction + disentangle * disentanglement + preserve * preservation
    return WildLosses(reconstruction, disentanglement, preservation, total)


def outside_face(face_masks: Tensor, size: tuple[int, ...]) -> Tensor:
    """Masks (batch, 1, H, W), 1 = face -> (batch, 1, *size), 1 = everything else; bilinear."""
    return 1 - F.interpolate(face_masks.float(), tuple(size), mode="bilinear")
