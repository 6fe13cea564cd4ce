"""The distance of feature maps against its definition."""

from __future__ import annotations

import torch

from idgen.losses.perceptual import feature_distance
from idgen.models.probe import AttributeProbe


def test_the_distance_is_that_of_directions_summed_over_depths() -> None:
    # One place, two channels: 3-4 and 4-3 point 0.6, 0.8 and 0.8, 0.6; lengths do not count.
    a = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
    b = torch.tensor([40.0, 30.0]).reshape(1, 2, 1, 1)
    assert torch.allclose(feature_distance([a], [b]), torch.tensor([0.08]))
    assert torch.allclose(feature_distance([a, a], [b, 5 * a]), torch.tensor([0.08]))
    opposite = feature_distance([a.expand(1, 2, 3, 5)], [-a.expand(1, 2, 3, 5)])
    assert torch.allclose(opposite, torch.tensor([4.0]))


def test_gradients_reach_the_pictures_that_were_made_and_no_others() -> None:
    torch.manual_seed(0)
    reader = AttributeProbe({"glasses": ["glasses", "none"]}, widths=(8, 12, 16)).eval().requires_grad_(False)
    made, wanted = torch.randn(2, 2, 3, 128, 128).requires_grad_(True).unbind()
    distance = feature_distance(reader.maps(made), reader.maps(wanted))
    assert distance.shape == (2,) and (distance > 0).all()
    grads = torch.autograd.grad(distance.sum(), [made, wanted], allow_unused=True)
    assert grads[0].abs().sum() > 0 and (grads[1] is None or grads[1].abs().sum() == 0)
    assert [tuple(m.shape[1:]) for m in reader.maps(made)] == [(8, 32, 32), (12, 16, 16), (16, 8, 8)]
