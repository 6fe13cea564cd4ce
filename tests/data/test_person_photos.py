"""A folder of photos: what is used, what is left out and why, where the face is after the cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idgen.data.person_photos import face_masks, read_photos
from idgen.errors import IdgenError
from idgen.faces.detection import Face

CAPTION = "photo of a id person"


def face_of(image: np.ndarray) -> list[Face]:
    """The pure green pixels of a picture are its face."""
    rows, columns = np.nonzero((image == (0, 255, 0)).all(-1))
    if not len(rows):
        return []
    box = np.array([columns.min(), rows.min(), columns.max(), rows.max()], np.float32)
    return [Face(box, np.zeros((5, 2), np.float32), 1.0)]


def photo(
    path: Path, width: int = 96, height: int = 64, face: tuple[int, int, int, int] | None = (60, 8, 84, 40)
) -> None:
    pixels = np.full((height, width, 3), 90, np.uint8)
    if face is not None:
        left, top, right, bottom = face
        pixels[top:bottom, left:right] = (0, 255, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_the_square_is_moved_to_the_face_and_the_box_with_it(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    photos, report = read_photos(tmp_path, face_of, 64, caption=CAPTION)
    assert report.used == ["a.png"] and photos[0].pixels.shape == (64, 64, 3)
    assert np.allclose(photos[0].box, [28.5, 8.5, 51.5, 39.5])
    green = (photos[0].pixels == (0, 255, 0)).all(-1)
    assert green[20, 40] and not green[20, 20]


def test_a_crop_in_heights_of_the_face_enlarges_it(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", 400, 400, (200, 100, 240, 140))
    photos, _ = read_photos(tmp_path, face_of, 80, caption=CAPTION, crop=2.0)
    left, _, right, _ = photos[0].box
    assert right - left == pytest.approx(40, abs=1.5) and (left + right) / 2 == pytest.approx(40, abs=1)


def test_broken_files_and_photos_without_a_face_are_left_out_and_named(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    photo(tmp_path / "b.png", face=None)
    (tmp_path / "c.jpg").write_bytes(b"not a picture")
    (tmp_path / "d.webp").write_bytes(b"")
    (tmp_path / "notes.md").write_text("no photo")
    photos, report = read_photos(tmp_path, face_of, 64, caption=CAPTION)
    assert [one.name for one in photos] == report.used == ["a.png"]
    assert report.faceless == ["b.png"] and set(report.unreadable) == {"c.jpg", "d.webp"}
    lines = report.lines()
    assert any(line.startswith("c.jpg is left out:") for line in lines)
    assert "b.png shows no face: left out" in lines and lines[-1] == "1 photos are trained on"


def test_a_photo_without_a_face_can_be_kept_or_be_an_error(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    photo(tmp_path / "b.png", face=None)
    photos, report = read_photos(tmp_path, face_of, 64, caption=CAPTION, faceless="mask")
    assert len(photos) == 2 and photos[1].box is None and report.faceless == ["b.png"]
    with pytest.raises(IdgenError, match=r"no face found in .*b\.png: .*data\.faceless"):
        read_photos(tmp_path, face_of, 64, caption=CAPTION, faceless="error")


def test_captions_come_from_the_text_beside_a_photo_and_from_the_template(tmp_path: Path) -> None:
    for name in ("a", "b"):
        photo(tmp_path / f"{name}.png")
    (tmp_path / "b.txt").write_text("smiling,\n  outdoors\n")

    def captions(template: str) -> list[str]:
        return [one.caption for one in read_photos(tmp_path, face_of, 64, caption=template)[0]]

    assert captions(CAPTION) == [CAPTION, "smiling, outdoors"]
    assert captions("photo of a id person, {}") == ["photo of a id person", "photo of a id person, smiling, outdoors"]


def test_masks_cover_the_face_and_fade_at_its_edges(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", 64, 64, (16, 16, 48, 48))
    photo(tmp_path / "b.png", 64, 64, None)
    photos, _ = read_photos(tmp_path, face_of, 64, caption=CAPTION, faceless="mask")
    masks = face_masks(photos, 8, margin=1.0, background=0.25)
    assert masks.shape == (2, 1, 8, 8)
    assert masks[0, 0, 4, 4] == 1 and masks[0, 0, 0, 0] == 0.25 and (masks[1] == 0.25).all()
    assert 0.25 < masks[0, 0, 2, 4] <= 1
    assert face_masks(photos, 8, margin=1.5)[0].sum() > face_masks(photos, 8, margin=1.0)[0].sum()


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("missing", r"cannot read the folder .*: No such file"),
        ("empty", r"no photos in .*: put 3 to 10 of one person there"),
        ("faceless", r"no face found in any of the 2 photos in .* that can be read"),
        ("broken", r"none of the 1 photos in .* can be read \(a\.png: "),
        ("caption", r"a\.png has an empty caption: write one into a\.txt, or set data\.caption"),
    ],
)
def test_a_folder_that_can_not_be_used_is_one_line(case: str, says: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    if case != "missing":
        folder.mkdir()
    if case == "faceless":
        for name in ("a", "b"):
            photo(folder / f"{name}.png", face=None)
    if case == "broken":
        (folder / "a.png").write_bytes(b"x")
    if case == "caption":
        photo(folder / "a.png")
        (folder / "a.txt").write_text(" \n")
    with pytest.raises(IdgenError, match=says) as caught:
        read_photos(folder, face_of, 64, caption="" if case == "caption" else CAPTION, faceless="mask")
    assert "\n" not in str(caught.value)
