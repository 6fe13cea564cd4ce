"""Embedding for measuring: as the encoder does it, in batches, and zeros where there is no face."""

import numpy as np
import pytest
import torch

from idgen.faces import FaceEncoder
from idgen.faces.detection import Face
from idgen.metrics.embedding import detect_landmarks, embed_at, embed_faces

POINTS = np.array([[48, 60], [78, 60], [63, 80], [52, 96], [75, 96]], np.float32)


class Network:
    """Embeds a crop as its mean colour in 4 x 4 cells."""

    def embed(self, crops: np.ndarray) -> torch.Tensor:
        return self.forward(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(crops, 4).flatten(1)


def detector(image: np.ndarray) -> list[Face]:
    """No face in a black picture, otherwise a small one and the largest one at POINTS."""
    if not image.any():
        return []
    return [
        Face(np.array([0, 0, 9, 9], np.float32), POINTS / 10, 0.99),
        Face(np.array([30, 30, 100, 110], np.float32), POINTS, 0.8),
    ]


@pytest.fixture
def encoder() -> FaceEncoder:
    return FaceEncoder(detector, Network(), "test")


def pictures(count: int) -> torch.Tensor:
    return torch.randint(1, 256, (count, 128, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_vectors_are_those_of_the_encoder(encoder: FaceEncoder) -> None:
    images = pictures(3)
    ours, theirs = embed_faces(encoder, images), encoder([image.numpy() for image in images]).raw
    assert torch.allclose(ours, theirs, atol=0.01)


def test_a_picture_without_a_face_gives_zeros_in_its_own_place(encoder: FaceEncoder) -> None:
    images = pictures(3)
    images[1] = 0
    vectors = embed_faces(encoder, images)
    assert (vectors.abs().sum(1) > 0).tolist() == [True, False, True]


def test_pictures_of_nobody_are_as_wide_as_others(encoder: FaceEncoder) -> None:
    images = pictures(3)
    nobody = embed_faces(encoder, torch.zeros_like(images))
    assert torch.equal(nobody, torch.zeros_like(embed_faces(encoder, images)))


def test_the_largest_face_is_taken(encoder: FaceEncoder) -> None:
    landmarks, seen = detect_landmarks(encoder, pictures(1))
    assert seen.all() and torch.equal(landmarks[0], torch.from_numpy(POINTS))


def test_any_number_of_pictures_is_embedded_in_order(encoder: FaceEncoder) -> None:
    images = pictures(70)  # more than one batch
    landmarks = torch.from_numpy(POINTS).expand(70, 5, 2)
    every = embed_at(encoder, images, landmarks)
    assert torch.allclose(every[67:68], embed_at(encoder, images[67:68], landmarks[:1]), atol=1e-6)
