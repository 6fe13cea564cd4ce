"""Photos that look unusual and are fine, and photos without the one face that is wanted: what the mini family makes of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idgen import Identity, cli
from tests.renders import Refused, portraits

SIZE, INSIDE = 384, slice(32, 352)
WALL = (120, 130, 140)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A frontal face with some wall around it."""
    scene = Image.new("RGB", (SIZE, SIZE), WALL)
    scene.paste(portraits(1)[0], (64, 64))
    return scene


# Photos that only look unusual


def rotated_by_exif(image: Image.Image, orientation: int) -> bytes:
    """A JPEG that is stored turned, with the tag that turns it back."""
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.transpose(stored[orientation]).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_alpha(image: Image.Image) -> Image.Image:
    """The face with its surroundings cut out; what is under the transparent pixels is garbage that must not show."""
    alpha = np.zeros((SIZE, SIZE), np.uint8)
    alpha[INSIDE, INSIDE] = 255
    pixels = np.asarray(image).copy()
    pixels[alpha == 0] = (255, 0, 255)
    return Image.fromarray(np.dstack([pixels, alpha]))


def on_white(image: Image.Image) -> Image.Image:
    pixels = np.full((SIZE, SIZE, 3), 255, np.uint8)
    pixels[INSIDE, INSIDE] = np.asarray(image)[INSIDE, INSIDE]
    return Image.fromarray(pixels)


def sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


UNUSUAL: dict[str, tuple[Callable[[Image.Image], bytes], Callable[[Image.Image], Image.Image]]] = {
    # name: (the file that a person hands over, the plain picture that it shows)
    **{f"exif-{n}": (lambda image, n=n: rotated_by_exif(image, n), lambda image: image) for n in range(2, 9)},
    "cmyk": (lambda image: saved(image.convert("CMYK"), "JPEG", quality=95), lambda image: image),
    "16-bit": (lambda image: saved(sixteen_bits(image), "PNG"), lambda image: image.convert("L")),
    "16-bit-tiff": (lambda image: saved(sixteen_bits(image), "TIFF"), lambda image: image.convert("L")),
    "alpha": (lambda image: saved(with_alpha(image), "PNG"), on_white),
    "grey": (lambda image: saved(image.convert("L"), "JPEG", quality=95), lambda image: image.convert("L")),
    "grey-alpha": (
        lambda image: saved(with_alpha(image).convert("LA"), "PNG"),
        lambda image: on_white(image).convert("L"),
    ),
    "palette": (lambda image: saved(image.quantize(256), "GIF"), lambda image: image.quantize(256)),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_photo_gives_the_identity_of_the_picture_it_shows(
    name: str, photo: Image.Image, tmp_path: Path
) -> None:
    as_handed_over, as_shown = UNUSUAL[name]
    (tmp_path / "unusual").write_bytes(as_handed_over(photo))
    as_shown(photo).convert("RGB").save(tmp_path / "plain.png")
    identities = []
    for file in ("unusual", "plain.png"):
        assert cli.main(["embed", str(tmp_path / file), "-o", str(tmp_path / "person.safetensors")]) == 0
        identities.append(Identity.load(tmp_path / "person.safetensors"))
    assert identities[0].similarity(identities[1]).item() > 0.97


# Photos without the one face that is wanted


def test_no_face(refused: Refused, tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 256, dtype=np.uint8)[:, None, None], (256, 256, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "sky.png")
    line = refused("embed", tmp_path / "sky.png", "-o", tmp_path / "out.safetensors")
    assert "no face" in line and "sky.png" in line


def test_a_face_of_12_px(photo: Image.Image, refused: Refused, tmp_path: Path) -> None:
    scene = Image.new("RGB", (256, 256), WALL)
    scene.paste(photo.resize((24, 24), Image.Resampling.LANCZOS), (100, 100))  # half of it is face
    scene.save(tmp_path / "crowd.png")
    line = refused("embed", tmp_path / "crowd.png", "-o", tmp_path / "out.safetensors")
    assert "crowd.png" in line and ("too small" in line or "no face" in line)


def test_many_faces_give_the_largest_one(tmp_path: Path) -> None:
    group, alone = Image.new("RGB", (768, 384), WALL), Image.new("RGB", (384, 384), WALL)
    left, middle, right = portraits(3)
    for face, size, x in ((left, 160, 20), (middle, 256, 240), (right, 160, 560)):
        group.paste(face.resize((size, size)), (x, 64))
    alone.paste(middle, (64, 64))
    group.save(tmp_path / "group.png")
    alone.save(tmp_path / "alone.png")
    identities = []
    for file in ("group.png", "alone.png"):
        assert cli.main(["embed", str(tmp_path / file), "-o", str(tmp_path / "person.safetensors")]) == 0
        identities.append(Identity.load(tmp_path / "person.safetensors"))
    assert len(identities[0]) == 1
    assert identities[0].similarity(identities[1]).item() > 0.8
