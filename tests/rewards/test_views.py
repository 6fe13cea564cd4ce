"""What rewards see: whole pictures or the part around the face, with gradients to the latents."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from idgen.errors import IdgenError
from idgen.faces import FaceEncoder
from idgen.faces.align_torch import norm_crop_torch
from idgen.rewards.identity import IdentityReward, mean_reference
from idgen.rewards.scores import Scored, everything
from idgen.rewards.views import Asked, CropView, View, WholeView, bounded, patches, vae_decoder
from tests.tiny import tiny_vae

# The five points of a face of so many pixels around (x, y).
SHAPE = torch.tensor([[-0.3, -0.25], [0.3, -0.25], [0.0, 0.05], [-0.22, 0.35], [0.22, 0.35]])


def points(x: float, y: float, size: float) -> Tensor:
    return SHAPE * size + torch.tensor([x, y])


class Found:
    """Says where faces are, whatever the pictures show."""

    def __init__(self, landmarks: Tensor, seen: list[bool]) -> None:
        self.landmarks, self.seen = landmarks, torch.tensor(seen)

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        assert not pictures.requires_grad and pictures.abs().max() <= 1
        return self.landmarks * self.seen[:, None, None], self.seen


class Recogniser(nn.Module):
    """A linear one, as a network behind FaceEncoder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(3 * 14 * 14, 6, bias=False)

    def forward(self, crops: Tensor) -> Tensor:
        return self.project(F.avg_pool2d(crops, 8).flatten(1))

    def embed(self, crops):
        return self(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1).detach()


def encoder() -> FaceEncoder:
    return FaceEncoder(lambda image: [], Recogniser(), "linear")


def test_colours_beyond_the_range_are_cut_and_may_only_come_back():
    x = torch.tensor([-2.0, -2.0, 0.5, 2.0, 2.0], requires_grad=True)
    y = bounded(x)
    assert y.tolist() == [-1, -1, 0.5, 1, 1]
    y.backward(torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0]))
    assert x.grad.tolist() == [0, -1, -1, 1, 0]


def test_the_reward_is_the_cosine_of_the_aligned_face_and_counts_no_picture_without_one():
    landmarks = torch.stack([points(32, 30, 30), points(20, 20, 20), points(32, 30, 30)])
    pictures = (torch.rand(3, 3, 64, 64) * 2 - 1).requires_grad_()
    view = View(pictures, landmarks, torch.tensor([True, False, True]))
    references, reward = torch.randn(3, 6), IdentityReward(encoder())
    scored = reward(view, Asked(references))
    wanted = F.cosine_similarity(Recogniser()(norm_crop_torch(pictures, landmarks)), references)
    assert scored.counted.tolist() == [True, False, True] and scored.values[1] == 0
    assert torch.allclose(scored.values[[0, 2]], wanted[[0, 2]], atol=1e-5)
    assert torch.allclose(scored.mean(), wanted[[0, 2]].mean(), atol=1e-5) and scored.share == pytest.approx(2 / 3)
    scored.mean().backward()
    assert pictures.grad[0].abs().sum() > 0 and pictures.grad[1].abs().sum() == 0
    with torch.no_grad():  # through 8-bit pixels, as photos are embedded
        assert torch.allclose(reward(view, Asked(references)).values, scored.values, atol=0.02)
    with pytest.raises(IdgenError, match="one a picture"):
        reward(view, Asked(references[:2]))


def test_the_rewards_gradient_is_that_of_finite_differences():
    torch.manual_seed(1)
    reward, references = IdentityReward(encoder()), torch.randn(1, 6)
    landmarks, direction = points(16, 15, 15)[None], torch.randn(1, 3, 32, 32)
    picture = (torch.rand(1, 3, 32, 32) - 0.5).requires_grad_()

    def value(at: Tensor) -> Tensor:
        return reward(View(at, landmarks, torch.tensor([True])), Asked(references)).mean()

    value(picture).backward()
    step = 1e-3 * direction
    with torch.enable_grad():
        slope = (value(picture + step) - value(picture - step)) / 2e-3
    assert float((picture.grad * direction).sum()) == pytest.approx(slope.item(), rel=2e-2)


def test_a_batch_without_any_face_has_a_gradient_of_zero():
    picture = torch.zeros(2, 3, 32, 32, requires_grad=True)
    view = View(picture, torch.zeros(2, 5, 2), torch.zeros(2, dtype=torch.bool))
    scored = IdentityReward(encoder())(view, Asked(torch.ones(2, 6)))
    assert scored.mean() == 0
    scored.mean().backward()
    assert picture.grad.abs().sum() == 0


def test_a_ceiling_stops_the_gradient_above_it():
    values = torch.tensor([0.5, 0.9], requires_grad=True)
    mean = Scored(values, torch.ones(2, dtype=torch.bool)).mean(0.8)
    assert mean.item() == pytest.approx(0.65)
    mean.backward()
    assert values.grad.tolist() == [0.5, 0.0] and everything(values).share == 1


def test_several_photos_make_the_mean_of_unit_embeddings():
    photos = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    assert mean_reference(photos).tolist() == [0.5, 0.5]
    assert Asked(photos, ["a", "b"]).repeat(2).references.shape == (4, 2)
    assert Asked(photos, ["a", "b"]).repeat(2).prompts == ["a", "b", "a", "b"]


def test_patches_hold_the_aligned_crop_and_stay_on_the_grid():
    landmarks = torch.stack([points(64, 60, 50), points(110, 20, 40)])
    corner, side = patches(landmarks, torch.tensor([True, True]), (32, 32), 4, margin=1)
    assert side < 32
    for place, (x, y) in zip(landmarks, corner.tolist(), strict=True):
        assert 0 <= x <= 32 - side and 0 <= y <= 32 - side
        inside = (place >= torch.tensor([x, y]) * 4) & (place < (torch.tensor([x, y]) + side) * 4)
        assert inside.all()
    corner, side = patches(landmarks, torch.tensor([False, False]), (32, 24), 4, margin=1)
    assert (corner.tolist(), side) == ([[6, 10], [6, 10]], 12)


class Local(nn.Module):
    """A decoder that sees one latent beyond each side: fourfold."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(4, 48, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        return 0.5 * F.pixel_shuffle(self.convolution(latents), 4)


def test_a_crop_shows_the_same_face_as_the_whole_picture_with_the_same_gradient():
    torch.manual_seed(0)
    find = Found(torch.stack([points(50, 48, 22), points(90, 60, 20), points(0, 0, 9)]), [True, True, False])
    reward, references, decoder = IdentityReward(encoder()), torch.randn(3, 6), Local()
    results = {}
    for name, look in {"whole": WholeView(decoder, find), "crop": CropView(decoder, find)}.items():
        torch.manual_seed(1)
        latents = torch.randn(3, 4, 32, 32).requires_grad_()
        view = look(latents)
        scored = reward(view, Asked(references))
        scored.mean().backward()
        results[name] = (scored.values.detach(), latents.grad, view)
    whole, crop = results["whole"], results["crop"]
    assert whole[2].whole and not crop[2].whole
    assert crop[2].pictures.shape[-1] < 0.7 * whole[2].pictures.shape[-1]
    assert torch.allclose(whole[0], crop[0], atol=1e-4)
    assert torch.allclose(whole[1], crop[1], atol=1e-5) and crop[1][2].abs().sum() == 0


def test_crops_find_the_face_in_a_cheap_preview():
    asked = []

    def preview(latents):
        asked.append(torch.is_grad_enabled())
        return torch.zeros(len(latents), 3, 64, 64)

    latents = torch.randn(1, 4, 16, 16).requires_grad_()
    view = CropView(Local(), Found(points(32, 30, 14)[None], [True]), preview)(latents)
    assert asked == [False] and view.pictures.requires_grad


def test_autoencoders_of_both_kinds_decode_scaled_latents():
    tiny = tiny_vae()
    latents = torch.randn(1, 8, 4, 4)
    assert torch.equal(vae_decoder(tiny)(latents), tiny.decode(latents / 0.8).sample)
    shapes = {"block_out_channels": (4, 4), "norm_num_groups": 4, "latent_channels": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    full = AutoencoderKL(**shapes, **blocks, scaling_factor=0.5, shift_factor=0.1)
    latents = torch.randn(1, 4, 4, 4)
    assert torch.equal(vae_decoder(full)(latents), full.decode(latents / 0.5 + 0.1).sample)
