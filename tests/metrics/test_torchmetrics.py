"""Figures on random data against torchmetrics, another implementation of the same formulas: to 1e-5."""

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_roc
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from idgen.metrics import frechet_distance, kernel_distance, psnr, roc_curve, ssim

FEATURES = 24


class AsTheyAre(nn.Module):
    """Feature network of features that are given as pictures (n, FEATURES, 1, 1)."""

    num_features = FEATURES

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def features(seed: int, count: int, shift: float, width: float) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(FEATURES, FEATURES, generator=random, dtype=torch.float64) / FEATURES**0.5
    return width * torch.randn(count, FEATURES, generator=random, dtype=torch.float64) @ mixing + shift


def judged(metric: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """What a metric of torchmetrics makes of two sets of features."""
    metric.set_dtype(torch.float64)
    metric.update(real[..., None, None], real=True)
    metric.update(made[..., None, None], real=False)
    return metric.compute()


@pytest.mark.parametrize("seed", range(3))
def test_frechet_and_kernel_distance(seed: int) -> None:
    real, made = features(seed, 400, 0.0, 1.0), features(seed + 10, 300, 0.3, 0.7)
    theirs = judged(FrechetInceptionDistance(feature=AsTheyAre(), normalize=True), real, made)
    assert frechet_distance(real, made) == pytest.approx(float(theirs), rel=1e-5)
    # One subset of everything: then nothing is left to chance.
    metric = KernelInceptionDistance(feature=AsTheyAre(), subsets=1, subset_size=300, normalize=True)
    theirs, _ = judged(metric, real[:300], made)
    ours = kernel_distance(real[:300], made, subsets=1, subset_size=300)
    assert ours.mean == pytest.approx(float(theirs), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("size", [(32, 48), (64, 64)])
def test_psnr_and_ssim(size: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(size[0])
    targets = torch.rand(3, *size, 3, generator=random)
    images = (targets + 0.1 * torch.randn(targets.shape, generator=random)).clamp(0, 1)
    channels_first = [x.permute(0, 3, 1, 2) for x in (images, targets)]
    for index in range(3):
        theirs = PeakSignalNoiseRatio(data_range=1.0)(channels_first[0][index], channels_first[1][index])
        assert float(psnr(images, targets)[index]) == pytest.approx(float(theirs), abs=1e-5)
    # Its mean also runs over a border that it mirrors; over whole windows alone, as Wang et al. have it, both are one.
    _, theirs = structural_similarity_index_measure(
        *(x.double() for x in channels_first), sigma=1.5, kernel_size=11, data_range=1.0, return_full_image=True
    )
    inside = theirs[..., 5:-5, 5:-5].mean((1, 2, 3))
    torch.testing.assert_close(ssim(images, targets).double(), inside, atol=1e-5, rtol=0)


def test_rates_of_accepted_pairs() -> None:
    random = torch.Generator().manual_seed(0)
    same = torch.rand(5000, generator=random) < 0.3
    scores = torch.randn(5000, generator=random, dtype=torch.float64) + 1.2 * same
    curve = roc_curve(scores, same)
    far, tar, _ = binary_roc(scores.sigmoid(), same.long())
    for wanted in (0.001, 0.01, 0.1, 0.5):
        theirs = tar[far <= wanted].max()
        ours = torch.as_tensor(curve.tar)[torch.as_tensor(curve.far) <= wanted].max()
        assert float(ours) == pytest.approx(float(theirs), abs=1e-5)
