"""Filled holes have no seam."""

import torch

from idgen.blending import fill_seamlessly, membrane

SIZE = 64
HOLE = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.bool)
HOLE[..., 20:50, 13:45] = True


def texture(seed: int) -> torch.Tensor:
    return torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_a_made_picture_of_another_light_takes_the_photos_and_keeps_its_detail():
    photo, detail = texture(0), texture(1)
    made = torch.where(HOLE, detail, photo) + torch.tensor([0.1, -0.1, 0.2])[None, :, None, None]
    filled = fill_seamlessly(photo, made, HOLE)
    torch.testing.assert_close(filled, torch.where(HOLE, detail, photo), atol=1e-5, rtol=0)


def test_a_slope_between_photo_and_made_is_carried_through_the_hole():
    slope = (torch.linspace(-1, 1, SIZE).expand(1, 1, SIZE, SIZE) + torch.linspace(0, 0.5, SIZE)[:, None]) / 5
    filled = fill_seamlessly(slope, torch.zeros_like(slope), HOLE)
    assert (filled - slope).abs().max() < 3 / 5 / 127.5, "linear functions are harmonic"


def test_a_shirt_below_the_hole_meets_what_was_made_and_does_not_tint_it():
    made = torch.zeros(1, 3, SIZE, SIZE)
    photo = made.clone()
    photo[:, 2, 50:] = 1
    filled = fill_seamlessly(photo, made, HOLE)[0, 2, :, 13:45]
    assert (filled[50] - filled[49]).mean() < 0.4, "no edge where the shirt begins"
    assert filled[35].max() < 0.1 and filled[20:40].mean() < 0.04, (
        "a membrane alone carries 0.27 there, 0.11 in the mean"
    )


def test_known_pixels_keep_their_bits_and_a_hole_at_the_border_is_filled():
    hole = HOLE.clone()
    hole[..., 50:, 30:] = True
    photo, made = texture(0), texture(1) + 0.15
    filled = fill_seamlessly(photo, made.bfloat16(), hole)
    assert torch.equal(filled[~hole.expand(1, 3, -1, -1)], photo[~hole.expand(1, 3, -1, -1)])
    inside = filled[hole.expand(1, 3, -1, -1)]
    assert (inside - made[hole.expand(1, 3, -1, -1)]).mean() < -0.1 and inside.std() < 0.1


def test_rows_do_not_touch_each_other_and_odd_sizes_and_no_hole_work():
    hole = torch.cat([HOLE, torch.ones_like(HOLE), torch.zeros_like(HOLE)])[..., :37, :61]
    photo, made = (torch.cat([texture(seed + i) for i in range(3)])[..., :37, :61] for seed in (0, 3))
    together = fill_seamlessly(photo, made, hole)
    for row in range(3):
        alone = fill_seamlessly(*(x[row : row + 1] for x in (photo, made, hole)))
        torch.testing.assert_close(together[row : row + 1], alone)
    assert torch.equal(together[1], made[1]) and torch.equal(together[2], photo[2])


def test_a_membrane_carries_what_is_around_a_hole_into_it_whatever_the_range():
    values = torch.full((1, 3, SIZE, SIZE), 200.0)
    torch.testing.assert_close(membrane(torch.where(HOLE, 0.0, values), HOLE), values)
