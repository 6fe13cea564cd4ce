"""The third look at landmarks: its geometry, and that it can be learned."""

from __future__ import annotations

import pytest
import torch

from idgen.faces.align import template
from idgen.models.landmark_network import EXTENT, LandmarkNetwork, crop_faces, from_crop, to_crop
from idgen.models.mini_detector import MiniDetector

FACE = torch.from_numpy(template(112)).float()


def marked(landmarks: torch.Tensor, size: int = 160) -> torch.Tensor:
    """Grey pictures with a bright spot at every landmark."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    places = torch.stack([x, y], -1).float()
    distance = (places[None, None] - landmarks[:, :, None, None]).norm(dim=-1)
    return torch.exp(-((distance / 2.5) ** 2)).sum(1)[:, None].expand(-1, 3, -1, -1) * 0.9


def drawn(count: int, error: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """True landmarks and wrong ones, (count, 5, 2) each."""
    generator = torch.Generator().manual_seed(seed)
    truth = FACE + 25 + 2 * torch.randn(count, 5, 2, generator=generator)
    return truth, truth + error * torch.randn(count, 5, 2, generator=generator)


def test_crop_and_back():
    truth, placed = drawn(4, 4)
    assert torch.allclose(from_crop(placed, to_crop(placed, truth)), truth, atol=1e-3)
    # Landmarks of the template's own shape are where the template has them, however the face is turned.
    turned = FACE @ torch.tensor([[0.0, 2.0], [-2.0, 0.0]]) + 300
    assert torch.allclose(to_crop(turned[None], turned[None]), torch.zeros(1, 5, 2), atol=1e-4)


def test_the_crop_shows_what_the_answer_is_about():
    truth, placed = drawn(3, 3)
    crops = crop_faces(marked(truth), placed)
    corner = torch.tensor([20.0, 36.0])
    spots = (to_crop(placed, truth) * EXTENT + FACE - corner + 0.5) * 64 / EXTENT - 0.5
    for crop, points in zip(crops, spots, strict=True):
        for x, y in points.tolist():
            assert crop[0, round(y), round(x)] > 0.75


def test_autocast_moves_neither_the_crop_nor_the_landmarks():
    points = torch.from_numpy(template(112))[None].float() * 1.3 + 7
    pictures = torch.rand(1, 3, 160, 160)

    def placed() -> list[torch.Tensor]:
        shifts = to_crop(points, points + 2)
        return [crop_faces(pictures, points), shifts, from_crop(points, shifts)]

    with torch.autocast("cpu", torch.bfloat16):
        made = placed()
    assert all(torch.equal(one, other) for one, other in zip(made, placed(), strict=True))


def test_it_learns_and_a_detector_uses_it():
    torch.manual_seed(0)
    network = LandmarkNetwork((8, 16, 16))
    optimizer = torch.optim.Adam(network.parameters(), 4e-3)
    for step in range(150):
        truth, placed = drawn(32, 2.5, seed=step + 1)
        loss = (network(crop_faces(marked(truth), placed)) - to_crop(placed, truth)).norm(dim=-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    truth, placed = drawn(64, 2.5, seed=0)
    better = network.refine(marked(truth), placed)
    assert (better - truth).norm(dim=-1).mean() < 0.6 * (placed - truth).norm(dim=-1).mean()


def test_detectors_with_and_without_it(monkeypatch: pytest.MonkeyPatch):
    assert MiniDetector().landmarks is None
    torch.manual_seed(0)
    detector = MiniDetector(landmarks=(8, 16, 16)).eval()
    seen = []

    def refine(self: LandmarkNetwork, pictures: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
        seen.append(pictures.shape)
        return landmarks + 1

    picture = torch.randint(0, 256, (90, 120, 3), dtype=torch.uint8)
    monkeypatch.setattr(LandmarkNetwork, "refine", lambda self, pictures, landmarks: landmarks)
    before = detector.detect([picture], threshold=0.0)[0].landmarks
    monkeypatch.setattr(LandmarkNetwork, "refine", refine)
    after = detector.detect([picture], threshold=0.0)[0].landmarks
    assert torch.allclose(after, before + 1) and seen == [(len(before), 3, 90, 120)]
    assert len(detector.detect([picture], threshold=1.0)[0].landmarks) == 0 and len(seen) == 1
