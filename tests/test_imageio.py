"""Any photo becomes an upright RGB picture, or one line."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from idgen.data.faces import FaceFolder
from idgen.errors import IdgenError
from idgen.evaluation.bins import EncodedFace
from idgen.imageio import MAX_PIXELS, load_array, load_image

# Four quarters: red, green / blue, white.
QUARTERS = np.zeros((32, 48, 3), np.uint8)
QUARTERS[:16, :24] = (255, 0, 0)
QUARTERS[:16, 24:] = (0, 255, 0)
QUARTERS[16:, :24] = (0, 0, 255)
QUARTERS[16:, 24:] = 255


def close(got, want, atol=12):
    return np.abs(np.asarray(got).astype(int) - np.asarray(want)).max() <= atol


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tiff", "ppm"])
def test_the_usual_formats_load_as_rgb(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(QUARTERS).save(path, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {}))
    image = load_image(path)
    assert image.mode == "RGB" and image.size == (48, 32)
    assert suffix == "webp" or close(image, QUARTERS)
    assert close(load_image(str(path)), image, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright_by_exif(tmp_path, orientation):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(QUARTERS)
    if orientation > 1:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert close(load_image(tmp_path / "a.png"), QUARTERS, 0)


def test_a_malformed_exif_block_does_not_lose_the_photo(tmp_path):
    Image.fromarray(QUARTERS).save(
        tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage", quality=100, subsampling=0
    )
    assert close(load_image(tmp_path / "a.jpg"), QUARTERS)


def test_cmyk_becomes_the_right_colours(tmp_path):
    Image.fromarray(QUARTERS).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert Image.open(tmp_path / "a.jpg").mode == "CMYK"
    blocks = np.asarray(load_image(tmp_path / "a.jpg"))[8::16, 12::24]
    assert close(blocks, QUARTERS[8::16, 12::24], 16)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (16, 1))
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    image = np.asarray(load_image(tmp_path / f"a.{suffix}"))
    assert image.shape == (16, 64, 3)
    assert close(image[..., 0], np.rint(ramp / 257), 1)


def test_sixteen_bit_colour_keeps_its_colours(tmp_path):
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in QUARTERS)
    (tmp_path / "a.png").write_bytes(png(48, 32, 16, 2, rows))
    assert close(load_image(tmp_path / "a.png"), QUARTERS, 1)


def test_dark_sixteen_bit_photos_stay_dark(tmp_path):
    Image.fromarray(np.full((8, 8), 200, np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png")).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_lies_over_white(tmp_path, mode):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :4, 3] = 255  # left half opaque black, right half transparent
    image = Image.fromarray(rgba)
    if mode == "P":
        image = image.convert("L").convert("P")
        image.putdata([0, 0, 0, 0, 1, 1, 1, 1] * 8)
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.info["transparency"] = 1
        image.save(tmp_path / "a.png", transparency=1)
        image = load_image(tmp_path / "a.png")
    elif mode == "PA":
        image = load_image(image.convert("PA"))
    else:
        image.convert(mode).save(tmp_path / "a.png")
        image = load_image(tmp_path / "a.png")
    pixels = np.asarray(image)
    assert image.mode == "RGB" and close(pixels[:, :4], 0, 0) and close(pixels[:, 4:], 255, 0)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_and_black_and_white_become_rgb(tmp_path, mode):
    Image.fromarray(np.tile(np.array([0, 255], np.uint8), (4, 2))).convert(mode).save(tmp_path / "a.png")
    assert np.array_equal(load_array(tmp_path / "a.png")[0], [[0] * 3, [255] * 3] * 2)


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.fromarray(QUARTERS), Image.new("RGB", (48, 32), "black")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert close(load_image(tmp_path / "a.gif"), QUARTERS)


def test_pil_images_and_arrays_pass_through():
    assert close(load_image(QUARTERS), QUARTERS, 0)
    assert close(load_image(Image.fromarray(QUARTERS)), QUARTERS, 0)
    assert load_array(QUARTERS).dtype == np.uint8


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), 3, None, b"bytes"]
)
def test_other_things_are_refused(wrong):
    with pytest.raises(IdgenError, match="an image is a file name"):
        load_image(wrong)


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (100_000, 1_000), (8_001, 8_001)])
def test_huge_images_are_refused_before_they_are_decoded(tmp_path, width, height):
    # No pixel data at all: an attempt to decode would call the file truncated.
    (tmp_path / "huge.png").write_bytes(png(width, height, 8, 2, b""))
    refused(tmp_path / "huge.png", f"{width} x {height}", "64 million", "smaller")
    assert Image.MAX_IMAGE_PIXELS, "Pillow's own limit must stay on for everybody else"


def test_the_largest_allowed_image_loads(tmp_path):
    side = int(MAX_PIXELS**0.5)
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").size == (side, side)


def test_what_is_not_an_image_is_one_line(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "header.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    refused(tmp_path / "none.png", "no such file")
    refused(tmp_path / "empty.png", "empty (0 bytes)")
    refused(tmp_path / "text.jpg", "not an image")
    refused(tmp_path / "header.png")
    refused(tmp_path, "folder")


def test_no_photo_starts_ghostscript(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given: started.append(given))
    path = tmp_path / "photo.jpg"
    Image.fromarray(QUARTERS).resize((112, 112)).save(path, "EPS")
    refused(path, "not an image")
    with pytest.raises(IdgenError, match="of the format EPS: save it as PNG"):
        load_image(Image.open(path))
    with pytest.raises(IdgenError, match="can not be decoded"):
        EncodedFace(path.read_bytes(), "image 0").pixels()
    labels = {"file_name": path.name, "mask_file_name": path.name, "person": 0, "landmarks5": [[0, 0]] * 5}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(labels))
    with pytest.raises(IdgenError, match=f"cannot read {path}"):
        FaceFolder.open(tmp_path)
    assert not started


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_truncated_images_are_one_line(tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(path)


def test_float_and_wide_integer_images_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "f.tiff")
    Image.fromarray(np.full((4, 4), 1 << 20, np.int32)).save(tmp_path / "i.tiff")
    refused(tmp_path / "f.tiff", "floating-point")
    refused(tmp_path / "i.tiff", "32-bit")


def refused(path, *words):
    with pytest.raises(IdgenError) as error:
        load_image(path)
    text = str(error.value)
    assert str(path) in text and "\n" not in text
    for word in words:
        assert word in text


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
