"""The denoising loss where a part of the picture matters more: the face of the person who is learned.

After MagiCapture's masked reconstruction (Hyung et al., AAAI 2024, arXiv 2309.06895, section 3.3) and SeFi-IDE's face-wise region
fit (Li et al., arXiv 2402.00631): what is not the face is not to be learned with the person.
"""

from __future__ import annotations

from torch import Tensor

from idgen.losses.diffusion import Noised


def masked_denoising_loss(prediction: Tensor, noised: Noised, masks: Tensor) -> Tensor:
    """Squared error weighted by noise level and place; with masks of ones it is `denoising_loss`.

    Args:
        prediction: (batch, channels, h, w).
        masks: (batch, 1, h, w), how much each place counts.
    """
    errors = (prediction.float() - noised.target).pow(2).mean(1, keepdim=True)  # (batch, 1, h, w)
    weights = masks * noised.weights.view(-1, 1, 1, 1)
    return (errors * weights).sum() / masks.sum().clamp_min(1e-8)
