"""Photos in: any image file becomes an upright 8-bit RGB picture, or one clear line of error."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from idgen.errors import IdgenError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    ImageLike: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray

# Checked against the header, before a single pixel is decoded: a 1 MB PNG can unpack to gigabytes.
MAX_PIXELS = 64_000_000
# What photos come in. Pillow knows more, by the content whatever the name: its EPS, for one, is a program for Ghostscript to run.
# HEIF is for those who registered pillow-heif.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
_LOCK = threading.Lock()


def load_image(source: ImageLike) -> Image.Image:
    """An image as PIL RGB, turned upright by its EXIF tag.

    CMYK and grey are converted, 16 bits are scaled to 8, transparency is laid over white, of an animation the first
    frame is taken.

    Args:
        source: a file, a PIL image, or a (H, W, 3) uint8 RGB array.

    Raises:
        IdgenError: no such file, empty, not an image, of none of `FORMATS`, damaged, or more than 64 million pixels.
    """
    from PIL import Image, ImageOps

    if isinstance(source, str | os.PathLike):
        image, name = _open(Path(source)), str(source)
    elif isinstance(source, Image.Image):
        image, name = source, "the image"
        if image.format not in (None, *FORMATS):  # its pixels may not be decoded yet
            raise IdgenError(f"{name} is of the format {image.format}: save it as PNG, JPEG or WebP")
        _check_size(image, name)
    else:
        return _from_array(source)
    try:
        image.load()
    except Exception as error:  # each of Pillow's decoders fails in its own way
        raise IdgenError(f"{name} is truncated or damaged: {_reason(error)}") from error
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a malformed EXIF block says nothing about the picture itself
        image = ImageOps.exif_transpose(image)
    return _to_rgb(image, name)


def load_array(source: ImageLike) -> np.ndarray:
    """`load_image` as a (H, W, 3) uint8 RGB array of its own memory."""
    import numpy as np

    return np.array(load_image(source))


def open_image(source: Path | IO[bytes]) -> Image.Image:
    """`PIL.Image.open` for what somebody else made: of `FORMATS` only; the header is read and nothing decoded.

    Raises:
        PIL.UnidentifiedImageError: no image, or one of another format.
    """
    from PIL import Image

    Image.init()  # of the formats, Pillow knows the usual ones only until it is asked for all
    return Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN])


def _open(path: Path) -> Image.Image:
    """The image with its header read and nothing decoded, or one line that says why not."""
    from PIL import UnidentifiedImageError

    if path.is_dir():
        raise IdgenError(f"{path} is a folder: name the image files in it")
    try:
        if path.stat().st_size == 0:
            raise IdgenError(f"{path} is empty (0 bytes): save it again")
        with _own_limit():
            image = open_image(path)
    except FileNotFoundError:
        raise IdgenError(f"no such file: {path}") from None
    except UnidentifiedImageError:
        raise IdgenError(f"{path} is not an image that can be read: use PNG, JPEG or WebP") from None
    except OSError as error:
        raise IdgenError(f"cannot read {path}: {_reason(error)}") from error
    except (ValueError, SyntaxError) as error:
        raise IdgenError(f"{path} is truncated or damaged: {_reason(error)}") from error
    _check_size(image, str(path))
    return image


@contextlib.contextmanager
def _own_limit() -> Iterator[None]:
    """Keep Pillow's limit, which does not tell the image's size, from speaking before ours: opening reads a header only."""
    from PIL import Image

    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on metadata that nobody here reads
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise IdgenError(
            f"{name} has {width} x {height} pixels, more than {MAX_PIXELS // 10**6} million: make it smaller first"
        )
    if width * height == 0:
        raise IdgenError(f"{name} has no pixels ({width} x {height})")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I"):  # I;16, I;16B, and I where Pillow widens 16 bits to 32
        import numpy as np

        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise IdgenError(f"{name} has 32-bit pixels: save it with 8 or 16 bits")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise IdgenError(f"{name} has floating-point pixels of unknown range: save it with 8 or 16 bits")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_array(source: Any) -> Image.Image:
    import numpy as np
    from PIL import Image

    if not isinstance(source, np.ndarray) or source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
        what = (
            f"{source.dtype} array of shape {source.shape}" if isinstance(source, np.ndarray) else type(source).__name__
        )
        raise IdgenError(f"an image is a file name, a PIL image or a uint8 RGB array (H, W, 3), not {what}")
    image = Image.fromarray(source)
    _check_size(image, "the image")
    return image


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:120] or type(error).__name__
