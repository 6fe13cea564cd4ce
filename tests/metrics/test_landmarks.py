"""Landmark distance, head pose and light of faces whose answer is known."""

import math

import pytest
import torch

from idgen.metrics import head_pose, landmark_distance, light_of, light_spread
from idgen.metrics.landmarks import HEAD


def turned(yaw: float, pitch: float, roll: float) -> torch.Tensor:
    """(1, 5, 2): the mean head under a rotation, somewhere in the picture and of some size."""
    y, p, r = (math.radians(angle) for angle in (yaw, pitch, roll))
    about_y = torch.tensor([[math.cos(y), 0, -math.sin(y)], [0, 1, 0], [math.sin(y), 0, math.cos(y)]])
    about_x = torch.tensor([[1, 0, 0], [0, math.cos(p), math.sin(p)], [0, -math.sin(p), math.cos(p)]])
    about_z = torch.tensor([[math.cos(r), -math.sin(r), 0], [math.sin(r), math.cos(r), 0], [0, 0, 1]])
    points = HEAD @ (about_y @ about_x @ about_z).double().T
    return (points[:, :2] * 35 + torch.tensor([64, 50]))[None]


@pytest.mark.parametrize("angles", [(0, 0, 0), (30, 0, 0), (0, -20, 0), (0, 0, 15), (-25, 12, -8)])
def test_the_pose_of_the_mean_head_is_found_exactly(angles: tuple[float, float, float]) -> None:
    assert head_pose(turned(*angles))[0].tolist() == pytest.approx(angles, abs=1e-4)


def test_a_head_that_turns_right_shows_its_nose_to_the_right_and_one_that_looks_up_shows_it_higher() -> None:
    assert turned(20, 0, 0)[0, 2, 0] > turned(0, 0, 0)[0, 2, 0]
    assert turned(0, 20, 0)[0, 2, 1] < turned(0, 0, 0)[0, 2, 1]


def test_landmark_distance_is_in_units_of_the_eyes() -> None:
    points = turned(0, 0, 0)
    assert landmark_distance(points + torch.tensor([3.5, 0]), points).item() == pytest.approx(0.1)
    assert landmark_distance(points * 4 + torch.tensor([14, 0]), points * 4).item() == pytest.approx(0.1)
    with pytest.raises(ValueError, match="5, 2"):
        landmark_distance(points, points[:, :4])


def test_light_from_the_side_is_a_slope_and_more_light_a_higher_mean() -> None:
    ramp = torch.linspace(50, 150, 112)
    from_right = ramp[None, :, None].expand(112, 112, 3)
    lit = torch.stack([from_right, from_right.flip(1), from_right + 50, from_right.transpose(0, 1)]).to(torch.uint8)
    mean, across, down = light_of(lit).unbind(1)
    assert across[0] == pytest.approx(-float(across[1]), abs=0.01) and across[0] > 0.15
    assert mean[2] - mean[0] == pytest.approx(50 / 255, abs=0.01)
    assert down[3] > 0.15 and abs(down[0]) < 1e-6
    assert light_spread(light_of(lit)[None]).item() > 0.2 > light_spread(light_of(lit[:1].repeat(4, 1, 1, 1))[None])
