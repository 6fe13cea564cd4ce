"""The shipped detector and recognisers on rendered people whom no training saw."""

import numpy as np
import pytest
import torch
from PIL import Image

from idgen import FaceEncoder
from idgen.identity import Identity
from idgen.synthetic import Renderer, sample_person, sample_shot

FIRST, PEOPLE, SHOTS = 300_000, 16, 3  # the test people: see docs/RESULTS.md


@pytest.fixture(scope="module")
def renders():
    people = [FIRST + index for index in range(PEOPLE) for _ in range(SHOTS)]
    shots = [shot for _ in range(PEOPLE) for shot in range(SHOTS)]
    sampled = [sample_person(0, person) for person in people]
    takes = [sample_shot(0, person, shot) for person, shot in zip(sampled, shots, strict=True)]
    return Renderer("cpu").render(sampled, takes, size=128)


@pytest.fixture(scope="module")
def encoder():
    return FaceEncoder.from_pretrained("mini", device="cpu")


def photos(renders):
    return [np.ascontiguousarray(image) for image in np.asarray(renders.images)]


def test_the_detector_finds_the_face_and_its_landmarks(encoder, renders):
    errors = []
    for image, truth in zip(photos(renders), np.asarray(renders.landmarks5), strict=True):
        faces = encoder.detect(image)
        if faces:
            between_eyes = np.linalg.norm(truth[1] - truth[0])
            # In profile the eyes nearly coincide: measure against the face's size then.
            scale = max(between_eyes, 0.3 * max(faces[0].size))
            errors.append(np.linalg.norm(faces[0].landmarks - truth, axis=-1).mean() / scale)
    # The bars of docs/RESULTS.md.
    assert len(errors) >= 0.98 * len(renders.images)
    assert np.mean(errors) < 0.04


def test_faces_of_fifteen_pixels_are_found_in_a_larger_picture(encoder, renders):
    side, step = 26, 64
    corners = [(x, y) for y in range(20, 4 * step, step) for x in range(20, 4 * step, step)]
    found = 0
    for start in range(0, len(renders.images), len(corners)):
        scene = Image.new("RGB", (4 * step, 4 * step), (120, 110, 100))
        for image, corner in zip(photos(renders)[start:], corners, strict=False):
            scene.paste(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS), corner)
        centres = np.stack([face.landmarks.mean(0) for face in encoder.detect(scene)])
        away = np.abs(centres[:, None] - np.array(corners) - side / 2).max(-1)  # (faces, corners)
        found += int((away.min(0) < side / 4).sum())
    assert found >= 0.95 * len(renders.images)


# Floors under what the first set of weights reached, far from the bars.
@pytest.mark.parametrize(("name", "floor"), [("mini", 0.85), ("judge", 0.75)])
def test_photos_of_one_person_are_more_alike_than_photos_of_two(name, floor, renders):
    encoder = FaceEncoder.from_pretrained(name, device="cpu")
    found = [image for image in photos(renders) if encoder.detect(image)]
    people = [i // SHOTS for i, image in enumerate(photos(renders)) if encoder.detect(image)]
    identity = encoder(found)
    cosines, owner = identity.similarity(identity), torch.tensor(people)
    alike = owner[:, None] == owner[None]
    pairs = torch.triu(torch.ones_like(alike), 1)
    same, different = cosines[alike & pairs], cosines[~alike & pairs]
    # The probability that a pair of one person is more alike than a pair of two.
    assert (same[:, None] > different[None]).float().mean() > floor


def test_the_judge_and_the_mini_recogniser_have_nothing_in_common(encoder, renders):
    image = photos(renders)[0]
    judged = FaceEncoder.from_pretrained("judge", device="cpu")(image)
    with pytest.raises(Exception, match="different recognisers"):
        Identity.concat([encoder(image), judged])


def test_a_face_is_the_same_person_small_and_large_and_moved(encoder, renders):
    frontal = sample_shot(0, sample_person(0, FIRST), 0, frontal=True)
    portrait = Image.fromarray(
        np.asarray(Renderer("cpu").render([sample_person(0, FIRST)], [frontal], size=256).images[0])
    )
    scene = Image.new("RGB", (900, 600), (90, 110, 130))
    scene.paste(portrait, (560, 200))
    identity = encoder([portrait, portrait.resize((128, 128), Image.Resampling.LANCZOS), scene])
    assert identity.similarity(identity).min() > 0.8


def test_of_two_people_in_a_photo_the_chosen_one_is_embedded(encoder):
    people = [sample_person(0, FIRST + index) for index in (3, 4)]
    shots = [sample_shot(0, person, 0, frontal=True) for person in people]
    left, right = (
        Image.fromarray(np.asarray(image)) for image in Renderer("cpu").render(people, shots, size=256).images
    )
    scene = Image.new("RGB", (700, 300), (90, 110, 130))
    scene.paste(left, (20, 20))
    scene.paste(right.resize((180, 180), Image.Resampling.LANCZOS), (420, 60))
    alone = [encoder(left), encoder(right)]
    for index in (0, 1):
        chosen = encoder(scene, select=index)
        assert chosen.similarity(alone[index]) > chosen.similarity(alone[1 - index]) + 0.2


def test_clutter_without_a_face_is_no_face(encoder):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    clutter = np.array(Image.fromarray(blocks).resize((400, 300), Image.Resampling.BICUBIC))
    assert encoder.detect(clutter) == []
    assert encoder.detect(np.full((300, 400, 3), 127, np.uint8)) == []
