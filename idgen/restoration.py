"""Whole photos: find the face, align it, restore it from its person's references, and put it back where it was.

pipe, encoder = ReferenceRestorePipeline.from_pretrained("mini"), FaceEncoder.from_pretrained("mini")
anna = read_references(pipe, encoder, ["anna1.jpg", "anna2.jpg"])
restore_photo(pipe, encoder, "bad.jpg", [anna]).image.save("good.png")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment

from idgen.adapters.cachekv.cache import ReferenceCache
from idgen.agreement import SAME_PERSON
from idgen.errors import IdgenError
from idgen.faces.align import ffhq_crop, norm_crop
from idgen.faces.paste import paste_portrait
from idgen.identity import Identity
from idgen.imageio import load_array, load_image
from idgen.metrics.fidelity import laplacian_energy
from idgen.rewards.ascent import guide_identity

if TYPE_CHECKING:
    from idgen.faces import Face, FaceEncoder
    from idgen.imageio import ImageLike
    from idgen.pipelines import ReferenceRestorePipeline

Which = Literal["match", "all", "largest"]
WHICH: tuple[Which, ...] = ("match", "all", "largest")

# In bad photos, the cosines of one person's faces fall towards 0.
IN_BAD_PHOTO = 0.1
# Of its references' Laplacian energy: nine in ten of the moderate preset's photos have less than 0.2, nineteen in twenty good
# ones more than 0.45.
SHARP = 0.5


@dataclass(frozen=True, eq=False)
class RestoredFace:
    """One face that was restored.

    Attributes:
        box: (4,) px in the photo: left, top, right, bottom; None where the photo was aligned already.
        person: whose references it was restored from, as counted in the call; None for none.
        similarity: cosine of the bad face to that person's references, where a recogniser saw both.
        before, after: the aligned face.
    """

    box: np.ndarray | None
    person: int | None
    similarity: float | None
    before: Image.Image
    after: Image.Image


@dataclass(frozen=True, eq=False)
class RestoredPhoto:
    """A whole photo.

    Attributes:
        image: of the photo's size; of the model's where the photo was aligned already.
        faces: those that were restored, largest first.
        notes: what the user should know, a line each.
    """

    image: Image.Image
    faces: list[RestoredFace]
    notes: list[str]


def read_references(
    pipe: ReferenceRestorePipeline, encoder: FaceEncoder, photos: Sequence[ImageLike], **options: Any
) -> ReferenceCache:
    """Whole photos of one person, the largest face of each, as a cache that knows whom it shows.

    Args:
        options: for `pipe.cache`.

    Raises:
        IdgenError: no photo, or one that can not be read or shows no face.
    """
    identity = encoder(photos)
    assert identity.landmarks is not None
    size = pipe.config.size
    portraits = [
        Image.fromarray(ffhq_crop(load_array(photo), points.numpy(), size, 4 * size))
        for photo, points in zip(photos, identity.landmarks, strict=True)
    ]
    return replace(pipe.cache(portraits, **options), identity=identity)


def restore_photo(
    pipe: ReferenceRestorePipeline,
    encoder: FaceEncoder,
    photo: ImageLike,
    people: Sequence[ReferenceCache] = (),
    *,
    face: Which = "match",
    aligned: bool = False,
    strict: bool = False,
    seed: int = 0,
    identity_guidance: float = 0.0,
    **settings: Any,
) -> RestoredPhoto:
    """Restore the faces of a photo.

    Args:
        people: references of each person to be restored, see `read_references`.
        face: `"match"` restores the face of each of the people, found by the recogniser, or the largest face where there are
            none; `"largest"` that one; `"all"` every face, with the references of who matches it, if anyone does.
        aligned: the photo is an aligned square (FFHQ's crop) as it is: no face is looked for. Faces that are too damaged to
            be found can be restored so.
        strict: refuse what there would only be a note of: a face unlike the references, or one that is good already.
        seed: of the noise.
        identity_guidance: how strongly the encoder's recogniser guides the later steps towards people whom it knows
            (`idgen.rewards.ascent`; 0.01 on the mini family); 0 not at all.
        settings: for the pipeline: `num_inference_steps`, `guidance_scale`, `levels`.

    Raises:
        IdgenError: the photo can not be read or shows no face; several people with an aligned photo; with `strict`, a doubt.
    """
    if face not in WHICH:
        raise IdgenError(f"face={face!r} is unknown: use {', '.join(map(repr, WHICH))}")
    image = load_image(photo)
    notes = [] if people else ["no references: restored from the photo alone"]
    if aligned:
        return _restore_aligned(pipe, encoder, image, people, notes, seed, identity_guidance, settings)
    pixels = np.asarray(image)
    faces = encoder.detect(image)
    if not faces:
        name = str(photo) if isinstance(photo, str | os.PathLike) else "the photo"
        raise IdgenError(
            f"no face found in {name}: crop it closer to the face, or pass an aligned square photo as such (--aligned)"
        )
    chosen = _choose(_similarities(encoder, pixels, faces, people), face)
    doubts = _doubts(pixels, faces, people, chosen)
    if strict and doubts:
        raise IdgenError(doubts[0])
    size = pipe.config.size
    before = [Image.fromarray(ffhq_crop(pixels, faces[one.face].landmarks, size, 4 * size)) for one in chosen]
    theirs = [None if one.person is None else people[one.person] for one in chosen]
    after = _restored(pipe, encoder, before, theirs, seed, identity_guidance, settings)
    after = _as_grey_as(image, after)
    result = image
    for one, portrait in zip(chosen, after, strict=True):
        result = paste_portrait(result, portrait, faces[one.face].landmarks)
    restored = [
        RestoredFace(faces[one.face].box, one.person, one.similarity, *pair)
        for one, *pair in zip(chosen, before, after, strict=True)
    ]
    return RestoredPhoto(result, restored, notes + doubts)


@dataclass(frozen=True)
class _Choice:
    """A face to restore, by its number, and whose references it is given."""

    face: int
    person: int | None
    similarity: float | None


def _similarities(
    encoder: FaceEncoder, pixels: np.ndarray, faces: Sequence[Face], people: Sequence[ReferenceCache]
) -> np.ndarray:
    """(people, faces) mean cosines; NaN for people whom no recogniser saw."""
    known = np.full((len(people), len(faces)), np.nan)
    if any(person.identity is not None for person in people):
        crops = np.stack([norm_crop(pixels, face.landmarks) for face in faces])
        seen = Identity(encoder.embed_aligned(crops), encoder.recogniser)
        for index, person in enumerate(people):
            if person.identity is not None:
                known[index] = person.identity.similarity(seen).mean(0).numpy()
    return known


def _choose(similarities: np.ndarray, which: Which) -> list[_Choice]:
    """Which faces, largest first; nobody is given two of them."""
    candidates = similarities[:, :1] if which == "largest" else similarities
    # Equal cosines, as of people whom no recogniser saw, go to the larger face.
    cost = -np.nan_to_num(candidates) + 1e-6 * np.arange(candidates.shape[1])
    pairs = {int(face): int(person) for person, face in zip(*linear_sum_assignment(cost), strict=True)}
    wanted = range(similarities.shape[1]) if which == "all" else sorted(pairs) or [0]
    return [_Choice(face, pairs.get(face), _known(similarities, pairs.get(face), face)) for face in wanted]


def _known(similarities: np.ndarray, person: int | None, face: int) -> float | None:
    if person is None or np.isnan(similarities[person, face]):
        return None
    return float(similarities[person, face])


def _doubts(
    pixels: np.ndarray, faces: Sequence[Face], people: Sequence[ReferenceCache], chosen: Sequence[_Choice]
) -> list[str]:
    doubts = []
    for one in chosen:
        identity = None if one.person is None else people[one.person].identity
        crop = torch.from_numpy(norm_crop(pixels, faces[one.face].landmarks))[None]
        crops = None if identity is None else identity.crops
        sharp = crops is not None and bool(laplacian_energy(crop) > SHARP * laplacian_energy(crops).mean())
        if one.similarity is not None and one.similarity < (SAME_PERSON if sharp else IN_BAD_PHOTO):
            doubts.append(
                f"the face is not like its references (cosine {one.similarity:.2f}): are they of the same person?"
            )
        if sharp:
            doubts.append(
                "the face is about as sharp as its references: restoring a good photo changes more than it mends"
            )
    if len(people) > len(faces):
        doubts.append(
            f"references of {len(people)} people for {len(faces)} found in the photo: the others are left out"
        )
    return doubts


def _restore_aligned(
    pipe: ReferenceRestorePipeline,
    encoder: FaceEncoder,
    image: Image.Image,
    people: Sequence[ReferenceCache],
    notes: list[str],
    seed: int,
    identity_guidance: float,
    settings: dict[str, Any],
) -> RestoredPhoto:
    if len(people) > 1:
        raise IdgenError(f"an aligned photo shows one face, and references of {len(people)} people are given")
    made = _restored(pipe, encoder, [image], list(people) or [None], seed, identity_guidance, settings)
    after = _as_grey_as(image, made)
    return RestoredPhoto(after[0], [RestoredFace(None, 0 if people else None, None, image, after[0])], notes)


def _restored(
    pipe: ReferenceRestorePipeline,
    encoder: FaceEncoder,
    portraits: list[Image.Image],
    people: Sequence[ReferenceCache | None],
    seed: int,
    identity_guidance: float,
    settings: dict[str, Any],
) -> list[Image.Image]:
    generators = [torch.Generator().manual_seed((seed + index) % 2**63) for index in range(len(portraits))]
    known = [None if person is None else person.identity for person in people]
    if identity_guidance and any(known):
        pipe = guide_identity(encoder, pipe.vq, known, identity_guidance).guided(pipe)
    return list(pipe(portraits, cache=list(people), generator=generators, **settings).images)


def _as_grey_as(photo: Image.Image, portraits: list[Image.Image]) -> list[Image.Image]:
    """A face in colour has no place in a grey photo."""
    values = np.asarray(photo.resize((64, 64))).astype(int)
    if np.ptp(values, axis=-1).max() > 3:
        return portraits
    return [portrait.convert("L").convert("RGB") for portrait in portraits]
