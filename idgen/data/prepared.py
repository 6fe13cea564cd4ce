"""Photos made ready to train on: cut to shape, encoded and embedded once, kept on disk under the hash of their content.

A photo that can not be read never ends a training: it is left out and named in the report. What to do with photos that show no
face is for the settings to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from idgen.console import progress, say
from idgen.data.buckets import Size, bucket_sizes, nearest_bucket
from idgen.data.disk_cache import DiskCache, digest
from idgen.data.photo_sources import Photo, SourceConfig, UnreadablePhotoError, decode, open_photos
from idgen.errors import IdgenError
from idgen.evaluation.fingerprints import encoder_fingerprint
from idgen.faces.align import norm_crop
from idgen.faces.detection import MIN_SIDE, Face

VERSION = 1  # of what is kept: another one is another cache


class PhotoConfig(SourceConfig):
    """Photos, and how they are made ready."""

    faceless: Literal["skip", "mask", "error"] = Field(
        "skip", description="a photo without a face: left out, kept and told nothing of a person, or an error"
    )
    crops: int = Field(1, ge=1, description="of each photo, at different places and sizes around the face")
    zoom: float = Field(1.3, ge=1, description="with several crops: most that one is enlarged")
    aspect_ratio_buckets: bool = Field(False, description="shapes near the photos' own; squares otherwise")
    cache: Path = Field(Path("runs/photo-cache"), description="latents and embeddings, by content; may be shared")
    cache_latents: bool = Field(True, description="false encodes every photo anew whenever it is drawn")


@dataclass
class PrepareReport:
    """What became of the photos.

    Attributes:
        photos: that are trained on.
        people: with two of them or more.
        unreadable: name -> why.
        faceless: names.
        captionless: names of photos without a caption, which are trained on without words.
        policy: what was done with those without a face.
        from_cache: photos that had been made ready before.
    """

    policy: str
    photos: int = 0
    people: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    faceless: list[str] = field(default_factory=list)
    captionless: list[str] = field(default_factory=list)
    from_cache: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """What a person should know, a line each; of many alike the first three."""
        found = [f"{name} is left out: {reason}" for name, reason in list(self.unreadable.items())[:3]]
        done = {"skip": "left out", "mask": "kept, and told nothing of a person"}.get(self.policy, "")
        counted = [
            (len(self.unreadable), "could not be read and are left out"),
            (len(self.faceless), f"show no face: {done}"),
            (len(self.captionless), "have no caption"),
        ]
        found += [f"{count} photos {what}" for count, what in counted if count]
        return [*found, f"{self.photos} photos are trained on, {self.people} people have two or more"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """One photo, ready.

    Attributes:
        key: of its content in the cache.
        size: of its crops' pixels.
        vector: (dim,) raw embedding; None without a face.
        latents, landmarks: (crops, channels, h, w), (crops, 5, 2) px in each crop; None where they are made when drawn.
        data: its file, where crops are made when drawn.
    """

    name: str
    caption: str
    person: str
    key: str
    size: Size
    vector: Tensor | None
    latents: Tensor | None
    landmarks: Tensor | None
    data: bytes | None = None


Encode = Callable[[np.ndarray], Tensor]  # uint8 (n, h, w, 3) -> scaled latents (n, channels, h / f, w / f) on the CPU


class Preparer:
    """Makes photos ready.

    Args:
        encode: by the autoencoder whose weights' hash is `weights`.
        encoder: finds and embeds the faces.
        resolution: side of a square crop.
        step: sides of buckets are multiples of it.
    """

    def __init__(
        self, config: PhotoConfig, encode: Encode, weights: str, encoder: Any, resolution: int, step: int
    ) -> None:
        self.config, self.encode, self.encoder = config, encode, encoder
        self.sizes = bucket_sizes(resolution, step) if config.aspect_ratio_buckets else [(resolution, resolution)]
        made_by = {
            "version": VERSION,
            "autoencoder": weights,
            "encoder": encoder_fingerprint(encoder),  # by its weights: one that is trained anew keeps its name
            "sizes": self.sizes,
            "crops": config.crops,
            "zoom": config.zoom,
        }
        self.cache = DiskCache(config.cache, made_by)

    def __call__(self) -> tuple[list[Prepared], PrepareReport]:
        """Every photo of the source that can be used.

        Raises:
            IdgenError: none can be, (`faceless: error`) one shows no face, or the cache can not be written.
        """
        report, ready = PrepareReport(self.config.faceless), []
        for photo in progress(open_photos(self.config), None, "photos"):
            try:
                data = _read(photo)
                tensors, notes = self._prepare(photo.name, data)
            except UnreadablePhotoError as error:
                report.unreadable[photo.name] = str(error).removeprefix(f"{photo.name} ").removeprefix("is ")
                continue
            if "vector" not in tensors:
                if self.config.faceless == "error":
                    raise IdgenError(
                        f"no face found in {photo.name}: take it away, or set photos.faceless to skip or mask"
                    )
                report.faceless.append(photo.name)
                if self.config.faceless == "skip":
                    continue
            if not photo.caption:
                report.captionless.append(photo.name)
            height, width = (int(side) for side in notes["size"].split("x"))
            kept = self.config.cache_latents
            ready.append(
                Prepared(
                    photo.name,
                    photo.caption,
                    photo.person,
                    notes["key"],
                    (height, width),
                    tensors.get("vector"),
                    tensors["latents"] if kept else None,
                    tensors["landmarks"] if kept else None,
                    None if kept else data,
                )
            )
        counts: dict[str, int] = {}
        for one in ready:
            counts[one.person] = counts.get(one.person, 0) + (one.vector is not None)
        report.photos, report.people = len(ready), sum(count >= 2 for count in counts.values())
        report.from_cache = self.cache.found
        if not any(one.vector is not None for one in ready):
            raise IdgenError(_nothing(self.config.path, report))
        return ready, report

    def draw(self, photo: Prepared, crop: int) -> tuple[Tensor, Tensor]:
        """A crop's latents (channels, h, w) and landmarks (5, 2); zeros without a face."""
        if photo.latents is not None and photo.landmarks is not None:
            return photo.latents[crop].float(), photo.landmarks[crop]
        assert photo.data is not None
        pixels = decode(photo.data, photo.name)
        face = self._face(pixels)
        crops, landmarks = self._crops(pixels, face, photo.size, photo.key)
        return self.encode(crops[crop : crop + 1])[0].float(), landmarks[crop]

    def _prepare(self, name: str, data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
        key = digest(data)

        def make() -> tuple[dict[str, Tensor], dict[str, str]]:
            pixels = decode(data, name)
            face = self._face(pixels)
            size = nearest_bucket(pixels.shape[0], pixels.shape[1], self.sizes)
            crops, landmarks = self._crops(pixels, face, size, key)
            tensors = {"latents": self.encode(crops).half(), "landmarks": landmarks}
            if face is not None:
                try:
                    aligned = norm_crop(pixels, face.landmarks)
                except IdgenError as error:  # of this photo's landmarks: the others are none the worse
                    raise UnreadablePhotoError(str(error)) from error
                tensors["vector"] = self.encoder.embed_aligned(aligned[None])[0].float()
            return tensors, {"size": f"{size[0]}x{size[1]}", "key": key}

        return self.cache.get(key, make)

    def _face(self, pixels: np.ndarray) -> Face | None:
        face = next(iter(self.encoder.detect(pixels)), None)
        return None if face is None or max(face.size) < MIN_SIDE else face

    def _crops(self, pixels: np.ndarray, face: Face | None, size: Size, key: str) -> tuple[np.ndarray, Tensor]:
        """uint8 (crops, h, w, 3) and (crops, 5, 2): the largest first, the others drawn by the photo's own hash."""
        rng = np.random.default_rng(int(key[:15], 16))
        height, width = pixels.shape[:2]
        largest = min(height / size[0], width / size[1])
        middle = np.array([width / 2, height / 2]) if face is None else (face.box[:2] + face.box[2:] + 1) / 2
        crops, places = [], []
        for number in range(self.config.crops):
            scale = largest if number == 0 else largest / rng.uniform(1.0, self.config.zoom)
            sides = np.array([size[1], size[0]]) * scale
            moved = middle if number == 0 else middle + rng.uniform(-0.1, 0.1, 2) * sides
            corner = np.clip(moved - sides / 2, 0, np.array([width, height]) - sides)
            area = (float(corner[0]), float(corner[1]), float(corner[0] + sides[0]), float(corner[1] + sides[1]))
            picture = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.LANCZOS, box=area)
            crops.append(np.asarray(picture))
            points = np.zeros((5, 2)) if face is None else (face.landmarks + 0.5 - corner) / scale - 0.5
            places.append(torch.from_numpy(points.astype(np.float32)))
        return np.stack(crops), torch.stack(places)


def _read(photo: Photo) -> bytes:
    try:
        return photo.read()
    except OSError as error:
        raise UnreadablePhotoError(str(error)) from error


def _nothing(path: str, report: PrepareReport) -> str:
    if report.faceless:
        return f"no face found in any of the {len(report.faceless)} photos in {path} that can be read: use larger ones"
    name, reason = next(iter(report.unreadable.items()))
    return f"none of the {len(report.unreadable)} photos in {path} can be read ({name}: {reason})"


def groups(photos: Sequence[Prepared]) -> dict[str, list[int]]:
    """For every person the numbers of the photos that show a face."""
    found: dict[str, list[int]] = {}
    for number, photo in enumerate(photos):
        if photo.vector is not None:
            found.setdefault(photo.person, []).append(number)
    return found


def tell(report: PrepareReport) -> None:
    """Says what a person should know of the photos."""
    for line in report.lines():
        say(line)
