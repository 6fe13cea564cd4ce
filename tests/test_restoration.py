"""Whole photos: whose face is restored, from whose references, and what is said of it.

Faces are squares of one colour and people are colours, so that every answer is known; the networks are stand-ins.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from idgen import restoration
from idgen.adapters.cachekv.cache import CachedLayer, ReferenceCache
from idgen.errors import IdgenError
from idgen.faces.detection import Face
from idgen.identity import Identity
from idgen.restoration import read_references, restore_photo

SIZE = 32
POINTS = np.array([[0.25, 0.35], [0.75, 0.35], [0.5, 0.6], [0.3, 0.82], [0.7, 0.82]], np.float32)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


class Encoder:
    """Finds the faces that a test put into its photo, and takes their colour for who they are."""

    recogniser = "colours"

    def __init__(self, *boxes):
        self.boxes = boxes

    def detect(self, image):
        faces = []
        for left, top, side in self.boxes:
            box = np.array([left, top, left + side, top + side], np.float32)
            faces.append(Face(box, POINTS * side + [left, top], 0.9))
        return sorted(faces, key=lambda face: -face.area)

    def embed_aligned(self, crops):
        return torch.from_numpy(crops).float().mean((1, 2)) - 80

    def __call__(self, photos):
        arrays = [np.array(photo) for photo in photos]
        raw = torch.stack([torch.from_numpy(array).float().mean((0, 1)) - 80 for array in arrays])
        points = torch.from_numpy(POINTS * arrays[0].shape[0])[None].expand(len(arrays), -1, -1)
        return Identity(raw, self.recogniser, landmarks=points)


class Pipe:
    """Answers with the inverse colours of the photo, and remembers whom it was given."""

    def __init__(self):
        self.config = SimpleNamespace(size=SIZE)
        self.given = []

    def cache(self, portraits, **options):
        assert all(portrait.size == (SIZE, SIZE) for portrait in portraits)
        layers = {"mid": CachedLayer(2, torch.zeros(1, 4, 8), torch.zeros(1, 4, 8))}
        return ReferenceCache(layers, len(portraits), 1, torch.zeros(1))

    def __call__(self, photos, cache, generator, **settings):
        self.given += list(zip(cache, [int(one.initial_seed()) for one in generator], strict=True))
        return SimpleNamespace(images=[Image.fromarray(255 - np.asarray(photo)) for photo in photos])


def scene(*faces):
    """A grey photo with squares of colours, and the encoder that finds them."""
    photo = np.full((200, 320, 3), 90, np.uint8)
    photo[..., 0] = 60  # not quite grey
    for colour, left, top, side in faces:
        photo[top : top + side, left : left + side] = colour
    return Image.fromarray(photo), Encoder(*((left, top, side) for _, left, top, side in faces))


def person(colour, count=2):
    photos = [Image.new("RGB", (64, 64), colour)] * count
    return read_references(Pipe(), Encoder(), photos)


def colour_at(image, left, top, side):
    return image.getpixel((left + side // 2, top + side // 2))


THREE = ((RED, 20, 40, 60), (GREEN, 120, 40, 80), (BLUE, 240, 40, 50))


def test_of_several_faces_the_one_who_matches_is_restored():
    photo, encoder = scene(*THREE)
    pipe, red = Pipe(), person(RED)
    done = restore_photo(pipe, encoder, photo, [red], seed=7)
    assert [one.person for one in done.faces] == [0] and done.faces[0].similarity > 0.9 and not done.notes
    assert pipe.given == [(red, 7)]
    assert colour_at(done.image, *THREE[0][1:])[0] < 10, "restored"
    for untouched in THREE[1:]:
        assert colour_at(done.image, *untouched[1:]) == untouched[0]
    assert done.image.size == photo.size and colour_at(photo, *THREE[0][1:]) == RED, "the photo itself is left alone"


def test_several_people_have_each_their_own_face():
    photo, encoder = scene(*THREE)
    pipe, people = Pipe(), [person(BLUE), person(RED)]
    done = restore_photo(pipe, encoder, photo, people)
    assert [one.person for one in done.faces] == [1, 0], "largest first"
    assert [cache for cache, _ in pipe.given] == [people[1], people[0]]


def test_all_faces_are_restored_each_from_its_own_references():
    photo, encoder = scene(*THREE)
    pipe, people = Pipe(), [person(BLUE), person(RED)]
    done = restore_photo(pipe, encoder, photo, people, face="all", seed=3)
    assert [one.person for one in done.faces] == [None, 1, 0]
    assert pipe.given == [(None, 3), (people[1], 4), (people[0], 5)]
    alone = restore_photo(Pipe(), encoder, photo, face="all")
    assert [one.person for one in alone.faces] == [None] * 3 and "no references" in alone.notes[0]


def test_the_largest_face_is_restored_whoever_it_is():
    photo, encoder = scene(*THREE)
    done = restore_photo(Pipe(), encoder, photo, [person(RED), person(GREEN)], face="largest")
    assert [(one.person, tuple(one.box[:2])) for one in done.faces] == [(1, (120, 40))]
    without = restore_photo(Pipe(), encoder, photo)
    assert [one.person for one in without.faces] == [None] and tuple(without.faces[0].box[:2]) == (120, 40)


def test_a_face_unlike_the_references_is_doubted():
    photo, encoder = scene(THREE[0])
    done = restore_photo(Pipe(), encoder, photo, [person(BLUE)])
    assert len(done.notes) == 1 and "not like its references" in done.notes[0]
    with pytest.raises(IdgenError, match="not like its references"):
        restore_photo(Pipe(), encoder, photo, [person(BLUE)], strict=True)
    two = restore_photo(Pipe(), encoder, photo, [person(RED), person(BLUE)])
    assert [one.person for one in two.faces] == [0] and "2 people for 1" in two.notes[0]


def test_a_face_that_is_sharp_already_is_doubted(monkeypatch):
    random = np.random.default_rng(0)
    crops = torch.from_numpy(random.integers(180, 200, (1, 112, 112, 3), np.uint8))
    red = person(RED)
    red = replace(red, identity=Identity(red.identity.raw[:1], "colours", crops))
    photo, encoder = scene(THREE[0])
    assert not restore_photo(Pipe(), encoder, photo, [red]).notes
    sharp = np.array(photo)
    sharp[40:100, 20:80] = random.integers(0, 2, (60, 60, 1)) * np.array(RED)
    done = restore_photo(Pipe(), encoder, Image.fromarray(sharp), [red])
    assert "as sharp as its references" in done.notes[0]
    monkeypatch.setattr(restoration, "SAME_PERSON", 1.1)  # what is sharp shows who it is better than what is not
    assert not restore_photo(Pipe(), encoder, photo, [red]).notes
    assert "not like its references" in restore_photo(Pipe(), encoder, Image.fromarray(sharp), [red]).notes[0]


def test_a_grey_photo_stays_grey():
    photo, encoder = scene(THREE[0])
    grey = photo.convert("L")
    done = restore_photo(Pipe(), encoder, grey, [person(RED)])
    values = np.asarray(done.image).astype(int)
    assert np.ptp(values, axis=-1).max() == 0 and not np.array_equal(done.image, grey.convert("RGB"))


def test_an_aligned_photo_is_taken_as_it_is():
    pipe, red = Pipe(), person(RED)
    done = restore_photo(pipe, Encoder(), Image.new("RGB", (SIZE, SIZE), RED), [red], aligned=True)
    assert done.image.getpixel((4, 4)) == (0, 255, 255) and done.faces[0].box is None
    with pytest.raises(IdgenError, match="one face"):
        restore_photo(pipe, Encoder(), Image.new("RGB", (SIZE, SIZE)), [red, red], aligned=True)


def test_a_photo_without_a_face_or_an_unknown_choice_is_refused(tmp_path):
    photo, _ = scene()
    photo.save(tmp_path / "bad.png")
    with pytest.raises(IdgenError, match=r"no face found in .*bad.png.*--aligned"):
        restore_photo(Pipe(), Encoder(), tmp_path / "bad.png", [])
    with pytest.raises(IdgenError, match="'match', 'all', 'largest'"):
        restore_photo(Pipe(), Encoder(), photo, face="best")


def test_people_whom_no_recogniser_saw_are_given_the_largest_face():
    photo, encoder = scene(*THREE)
    unknown = Pipe().cache([Image.new("RGB", (SIZE, SIZE))])
    done = restore_photo(Pipe(), encoder, photo, [unknown])
    assert done.faces[0].similarity is None and tuple(done.faces[0].box[:2]) == (120, 40)
