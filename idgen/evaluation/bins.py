"""Verification sets in insightface's .bin layout: a pickle of (encoded images, whether each two of them show one person).

A pickle runs what it names, so this one may name nothing but numpy's arrays and what Python 2 writes for bytes, and even for
those own stand-ins are called, never numpy. Anything else is refused before it is called.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from idgen.errors import IdgenError
from idgen.imageio import load_array, open_image

SIDE = 112


@dataclass(frozen=True, eq=False)
class EncodedFace:
    """An aligned face as the bytes of a JPEG or PNG."""

    data: bytes
    name: str

    def pixels(self) -> np.ndarray:
        """(112, 112, 3) uint8 RGB.

        Raises:
            IdgenError: it can not be decoded, or is not square.
        """
        from PIL import Image

        try:
            with open_image(io.BytesIO(self.data)) as image:
                if image.width != image.height:
                    raise IdgenError(
                        f"{self.name} is {image.width} x {image.height} px: a .bin file holds aligned square faces"
                    )
                pixels = load_array(image)
        except IdgenError:
            raise
        except Exception as error:  # each of Pillow's decoders fails in its own way
            raise IdgenError(f"{self.name} can not be decoded: the .bin file is damaged") from error
        if len(pixels) != SIDE:
            pixels = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        return pixels

    def digest(self) -> bytes:
        return hashlib.sha256(self.data).digest()


@dataclass(frozen=True)
class PairSet:
    """Faces 2i and 2i + 1 are pair i.

    Attributes:
        faces: (2 * pairs) aligned faces.
        same: (pairs,) bool.
    """

    faces: list[EncodedFace]
    same: np.ndarray


def read_bin(path: Path) -> PairSet:
    """Read a .bin file without running anything in it.

    Raises:
        IdgenError: it is missing, truncated, names code, or holds something else than images and labels.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise IdgenError(f"no such file: {path}") from None
    except OSError as error:
        raise IdgenError(f"cannot read {path}: {error.strerror}") from None
    try:
        _check_memory(data)
        content = _Reader(io.BytesIO(data), encoding="bytes").load()
    except _Named as error:
        raise IdgenError(
            f"{path} names {error}: a verification set holds images and labels only, and idgen runs nothing that a file names"
        ) from None
    except Exception as error:  # a damaged pickle fails in any way at all
        raise IdgenError(
            f"{path} is truncated, damaged or no .bin file of insightface's ({type(error).__name__})"
        ) from None
    if not isinstance(content, (tuple, list)) or len(content) != 2:
        raise IdgenError(f"{path} holds no pair of images and labels: is it a verification set of insightface's?")
    images, labels = (_plain(part) for part in content)
    if not isinstance(images, list) or not isinstance(labels, list) or len(images) != 2 * len(labels) or not labels:
        raise IdgenError(f"{path} does not hold two images for each label: is it a verification set of insightface's?")
    faces = []
    for index, image in enumerate(images):
        if isinstance(image, list) and all(isinstance(value, int) and 0 <= value < 256 for value in image):
            image = bytes(image)  # encoded bytes that were saved as an array
        if not isinstance(image, bytes) or not image:
            raise IdgenError(f"image {index} of {path} is not the bytes of an image file")
        faces.append(EncodedFace(image, f"image {index} of {path.name}"))
    if not all(isinstance(label, (bool, int)) and label in (0, 1) for label in labels):
        raise IdgenError(f"the labels of {path} are not true or false")
    same = np.array([bool(label) for label in labels])
    if same.all() or not same.any():
        raise IdgenError(f"all pairs of {path} have one label: verification needs pairs of one person and of two")
    return PairSet(faces, same)


def _check_memory(data: bytes) -> None:
    """Refuse a pickle that numbers what it remembers beyond its own length: the reader would make a table that long."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise ValueError("a memo index beyond the file")


class _Named(Exception):
    """The pickle names something that it has no business with."""


class _Reader(pickle.Unpickler):
    """Knows the names in `_STANDINS` and no other."""

    def find_class(self, module: str, name: str) -> Any:
        text = [part.decode("latin1") if isinstance(part, bytes) else part for part in (module, name)]
        if tuple(text) not in _STANDINS:
            raise _Named(".".join(text)[:80])
        return _STANDINS[text[0], text[1]]

    def persistent_load(self, pid: Any) -> Any:
        raise _Named("a persistent object")


class _Dtype:
    """In place of numpy.dtype: only its text, such as `u1` or `O8`."""

    def __init__(self, text: Any = "", *_: Any) -> None:
        self.text = text.decode("latin1") if isinstance(text, bytes) else str(text)
        self.order = "|"

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        self.order = order.decode("latin1") if isinstance(order, bytes) else str(order)

    def values(self, raw: Any) -> list[Any]:
        """The numbers (or, of an array of objects, the objects) in raw content."""
        if self.text.startswith("O"):
            if not isinstance(raw, list):
                raise ValueError("an array of objects without its list")
            return raw
        if self.text[:1] not in ("b", "u", "i", "?") or self.text[1:] not in ("", "1", "2", "4", "8"):
            raise ValueError(f"an array of {self.text!r}")
        if not isinstance(raw, (bytes, bytearray)):  # bytes(n) would be n bytes of nothing
            raise ValueError("an array without its bytes")
        order = self.order if self.order in "<>|=" else "="
        return list(np.frombuffer(raw, np.dtype(order + self.text)).tolist())


class _Array:
    """In place of numpy.ndarray: its values as a flat list, or a list of lists where it has two axes."""

    def __init__(self, *_: Any) -> None:
        self.content: list[Any] = []

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, _, raw = state
        self.content = _rows(dtype.values(raw), shape)


def _rows(values: list[Any], shape: Any) -> list[Any]:
    axes = (shape,) if isinstance(shape, int) else tuple(shape)
    if len(axes) == 2 and axes[0] * axes[1] == len(values):
        return [values[i * axes[1] : (i + 1) * axes[1]] for i in range(axes[0])]
    if len(axes) != 1 or axes[0] != len(values):
        raise ValueError(f"an array of shape {axes}")
    return values


def _from_buffer(raw: Any, dtype: _Dtype, shape: Any, _order: Any) -> _Array:
    array = _Array()
    array.content = _rows(dtype.values(raw), shape)
    return array


def _encode(text: str, encoding: Any = "latin1") -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise ValueError("bytes in another encoding")
    return text.encode("latin1")


def _bytes(content: Any = b"", *_: Any) -> bytes:
    return (
        content.encode("latin1")
        if isinstance(content, str)
        else bytes(content)
        if not isinstance(content, int)
        else b""
    )


def _plain(part: Any) -> Any:
    """Lists of bytes, bools and numbers, whatever they were wrapped in."""
    if isinstance(part, _Array):
        return _plain(part.content)
    if isinstance(part, (list, tuple)):
        return [_plain(item) for item in part]
    return bytes(part) if isinstance(part, bytearray) else part


def _standins() -> dict[tuple[str, str], Callable[..., Any]]:
    names: dict[tuple[str, str], Callable[..., Any]] = {("_codecs", "encode"): _encode}
    for module in ("numpy.core", "numpy._core"):
        names[f"{module}.multiarray", "_reconstruct"] = _Array
        names[f"{module}.multiarray", "scalar"] = lambda dtype, raw=b"": dtype.values(raw)[0]
        names[f"{module}.numeric", "_frombuffer"] = _from_buffer
    names["numpy", "ndarray"], names["numpy", "dtype"] = _Array, _Dtype
    for module in ("builtins", "__builtin__"):
        names[module, "bytearray"] = names[module, "bytes"] = _bytes
    return names


_STANDINS = _standins()
