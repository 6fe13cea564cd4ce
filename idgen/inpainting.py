"""Whole photos: find the face, cut the portrait, fill the hole in it with a person's face, and put the filling back.

pipe, encoder = PVAInpaintPipeline.from_pretrained("mini"), FaceEncoder.from_pretrained("mini")
anna = read_references(pipe, encoder, ["anna1.jpg", "anna2.jpg"])
inpaint_photo(pipe, encoder, "photo.jpg", anna, region="eyes").image.save("filled.png")
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from idgen.adapters.pva.person import PersonWeights, Variant
from idgen.adapters.pva.personalise import Look, PersonPhotos, train_person
from idgen.adapters.pva.transform import face_crop
from idgen.blending import membrane
from idgen.data.holes import check_holes
from idgen.data.portraits import as_tensor
from idgen.data.regions import REGIONS, region_mask
from idgen.errors import IdgenError
from idgen.evaluation.prompts import asked_for
from idgen.faces.align import ffhq_crop, norm_crop
from idgen.faces.align_torch import norm_crop_torch
from idgen.faces.detection import rival
from idgen.faces.paste import portrait_corners
from idgen.identity import Identity
from idgen.imageio import load_array, load_image
from idgen.models.recogniser_reader import load_reader
from idgen.rewards.ascent import guide_identity, guide_words

if TYPE_CHECKING:
    from idgen.faces import Face, FaceEncoder
    from idgen.imageio import ImageLike
    from idgen.pipelines import PVAInpaintPipeline

LEAST_SIDE = 32  # px of a portrait: below, a face has no features


@dataclass(frozen=True, eq=False)
class InpaintedPhoto:
    """A whole photo whose hole was filled.

    Attributes:
        image: of the photo's size; outside of the hole it is the photo to the bit.
        hole: bool (height, width) what was filled.
        before, masked, after: the portrait, what the model saw of it (grey in the hole), and what it made.
        notes: what the user should know, a line each.
    """

    image: Image.Image
    hole: np.ndarray
    before: Image.Image
    masked: Image.Image
    after: Image.Image
    notes: list[str]


@dataclass(frozen=True, eq=False)
class _Portrait:
    """A square cut out of a photo.

    Attributes:
        image: the square at the model's size.
        corners: (4, 2) where it lies in the photo: top left, bottom left, bottom right, top right, counted from the photo's edge.
        landmarks: (5, 2) px of the square, or None where no face was found.
        face: by which it was cut; None for a photo that is a portrait already.
        rival: how large the next face in the photo is, see `Identity`.
    """

    image: Image.Image
    corners: np.ndarray
    landmarks: np.ndarray | None
    face: Face | None = None
    rival: float = 0.0

    @property
    def matrix(self) -> tuple[float, ...]:
        """From places in the photo to places in the square, as PIL's affine transform takes it."""
        sides = np.stack([self.corners[3] - self.corners[0], self.corners[1] - self.corners[0]], 1)
        inverse = np.linalg.inv(sides / self.image.width)
        shift = -inverse @ self.corners[0]
        return (*inverse[0], shift[0], *inverse[1], shift[1])


def read_references(pipe: PVAInpaintPipeline, encoder: FaceEncoder, photos: Sequence[ImageLike]) -> Identity:
    """Whole photos of one person, the largest face of each, as the identity that the pipeline understands.

    Raises:
        IdgenError: no photo, or one that can not be read or shows no face.
    """
    if pipe.recogniser is None:
        return encoder(photos)
    if not photos:
        raise IdgenError("no photo given: name at least one image of the person")
    portraits = [_cut_largest(encoder, photo, 256) for photo in photos]
    vectors = pipe.encode_identity([portrait.image for portrait in portraits])
    rivals = torch.tensor([portrait.rival for portrait in portraits])
    return Identity(vectors.vectors, vectors.recogniser, rivals=rivals)


def inpaint_photo(
    pipe: PVAInpaintPipeline,
    encoder: FaceEncoder,
    photo: ImageLike,
    identity: Identity | None = None,
    *,
    mask: np.ndarray | None = None,
    region: str | None = None,
    aligned: bool = False,
    seed: int = 0,
    identity_guidance: float = 0.0,
    words_guidance: float = 0.0,
    **settings: Any,
) -> InpaintedPhoto:
    """Fill a hole in a photo's face.

    Args:
        encoder: looks for faces; the pipeline has a recogniser of its own or the encoder is the one it was trained with.
        identity: see `read_references`; None fills with nobody in particular.
        mask: bool (height, width) of the photo's size, True where it is to be filled; or
        region: one of `idgen.data.regions.REGIONS`, of the face.
        aligned: the photo is a portrait as FFHQ cuts it: no face is looked for where a mask says all.
        seed: of the noise, and of a random region.
        identity_guidance: how strongly the encoder's recogniser guides the later steps to the identity, which it must have made
            (`idgen.rewards.ascent`; 0.01 on the mini family); 0 not at all.
        words_guidance: how strongly the mini family's reader guides the steps to what a prompt names of expression, hair,
            glasses, head and beard (0.04 on the mini family); 0 not at all. A prompt that names nothing of these is not guided.
        settings: for the pipeline: `prompt`, `num_inference_steps`, `guidance_scale`, `text_control`, ...
    Raises:
        IdgenError: neither or both of mask and region, a mask that does not fit, no face for a region, or one too small.
    """
    if (mask is None) == (region is None):
        raise IdgenError("pass either a mask or a region to fill, and not both")
    if region is not None and region not in REGIONS:
        raise IdgenError(f"unknown region {region!r}: use one of {', '.join(REGIONS)}")
    image = load_image(photo)
    if mask is not None:
        check_holes(image, Image.fromarray(np.asarray(mask, np.uint8) * 255))
    name = str(photo) if isinstance(photo, str | os.PathLike) else "the photo"
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    notes = [] if identity is not None else ["no references: filled with nobody in particular"]
    portrait = _find(pipe, encoder, image, identity, mask, region, size, aligned, name)
    rng = np.random.default_rng(seed)
    known = portrait.image
    if mask is None:
        assert portrait.landmarks is not None and region is not None
        inside = region_mask(region, portrait.landmarks, (size, size), rng)
        shown = Image.fromarray(inside).transform(image.size, Image.Transform.AFFINE, portrait.matrix)
        hole = np.asarray(shown)
    else:
        reach = Image.new("1", (size, size), 1).transform(image.size, Image.Transform.AFFINE, portrait.matrix)
        hole = np.asarray(reach) & mask
        inside = _hole_of(mask, portrait, size)
        known = _cut_again(portrait, _emptied(image, mask))
        left = 1 - hole.sum() / mask.sum()
        if left > 0.01:
            notes.append(f"{left:.0%} of the mask lie outside of the face's portrait and were left as they are")
    if identity_guidance and identity is not None:
        pipe = guide_identity(encoder, pipe.vae, [identity], identity_guidance).guided(pipe)
    prompt = settings.get("prompt")
    if words_guidance and prompt is not None and asked_for(prompt):
        pipe = guide_words(load_reader(device=pipe.device), pipe.vae, [prompt], words_guidance).guided(pipe)
    made = pipe(
        identity,
        image=known,
        mask_image=Image.fromarray(inside.astype(np.uint8) * 255),
        height=size,
        width=size,
        generator=[torch.Generator().manual_seed(seed)],
        composite=True,
        **settings,
    ).images[0]
    result = np.array(image)
    result[hole] = _warped(made, portrait, image)[hole]
    seen = Image.fromarray(np.where(inside[..., None], np.uint8(128), np.asarray(known)))
    return InpaintedPhoto(Image.fromarray(result), hole, portrait.image, seen, made, notes)


def personalise(
    pipe: PVAInpaintPipeline,
    photos: Sequence[ImageLike],
    steps: int = 40,
    variant: Variant = "visual",
    *,
    encoder: FaceEncoder,
    seed: int = 0,
    report: Callable[[Iterable[int]], Iterable[int]] = iter,
    **settings: Any,
) -> PersonWeights:
    """Adapt the model to one person by a few steps of training on their photos; one is enough.

        pipe.load_person(personalise(pipe, ["anna1.jpg", "anna2.jpg"], encoder=encoder))

    Args:
        variant: `"visual"` trains the attention to visual tokens, `"lora"` LoRA on the attention to text.
        encoder: as for `inpaint_photo`.
        settings: see `idgen.adapters.pva.personalise.train_person`.
    Raises:
        IdgenError: as `read_references`, and `train_person`.
    """
    if not photos:
        raise IdgenError("no photo given: name at least one image of the person")
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    images = [load_image(photo) for photo in photos]
    turned = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    portraits = [_cut_largest(encoder, image, size) for image in images]
    holes = [region_mask("whole", portrait.landmarks, (size, size)) for portrait in portraits]  # type: ignore[arg-type]
    person = PersonPhotos(
        as_tensor(np.stack([np.asarray(portrait.image) for portrait in portraits]), torch.device("cpu")),
        torch.from_numpy(np.stack(holes)[:, None]).float(),
        torch.from_numpy(np.stack([portrait.landmarks for portrait in portraits])).float(),  # type: ignore[misc]
        read_references(pipe, encoder, images).raw,
        read_references(pipe, encoder, turned).raw,
    )
    look = recogniser_of(pipe, encoder)
    return train_person(pipe, person, steps=steps, variant=variant, seed=seed, look=look, report=report, **settings)


def recogniser_of(pipe: PVAInpaintPipeline, encoder: FaceEncoder) -> Look:
    """What `read_references` reads photos with, for portraits and with gradients."""

    def look(pictures: Tensor, landmarks: Tensor) -> Tensor:
        if pipe.recogniser is None:
            return encoder.encode_aligned(norm_crop_torch(pictures, landmarks))
        return pipe.recogniser(face_crop(pictures).to(next(pipe.recogniser.parameters())))

    return look


def _find(
    pipe: PVAInpaintPipeline,
    encoder: FaceEncoder,
    image: Image.Image,
    identity: Identity | None,
    mask: np.ndarray | None,
    region: str | None,
    size: int,
    aligned: bool,
    name: str,
) -> _Portrait:
    """The portrait that is meant: the one that most of the mask lies in, or the face that is most like the references."""
    if aligned and mask is not None:
        return _whole(image, size, name)
    pixels = np.asarray(image)
    faces = encoder.detect(image)
    if aligned and faces:
        whole = _whole(image, size, name)
        return _Portrait(whole.image, whole.corners, faces[0].landmarks * size / image.width)
    if mask is not None:
        reached = [_reached(mask, face, image.size, size) for face in faces]
        faces = [face for face, share in zip(faces, reached, strict=True) if share == max(reached) > 0]
        if not faces and image.width == image.height:
            return _whole(image, size, name)
    if not faces:
        what = f"no face found in {name}" if mask is None else f"no face of {name} is where the mask is"
        raise IdgenError(
            f"{what}: use a photo that shows the face, or a portrait as FFHQ cuts it with a mask (--aligned)"
        )
    if len(faces) > 1 and identity is not None:
        faces = [faces[_most_alike(pipe, encoder, pixels, faces, identity)]]
    return _cut(pixels, faces[0], size, name)


def _most_alike(
    pipe: PVAInpaintPipeline, encoder: FaceEncoder, pixels: np.ndarray, faces: Sequence[Face], identity: Identity
) -> int:
    if pipe.recogniser is None:
        seen = encoder.embed_aligned(np.stack([norm_crop(pixels, face.landmarks) for face in faces]))
    else:
        seen = pipe.encode_identity([ffhq_crop(pixels, face.landmarks, 256, 1024) for face in faces]).vectors.cpu()
    return int(identity.similarity(Identity(seen, identity.recogniser)).mean(0).argmax())


def _cut_largest(encoder: FaceEncoder, photo: ImageLike, size: int) -> _Portrait:
    name = str(photo) if isinstance(photo, str | os.PathLike) else "the photo"
    pixels = load_array(photo)
    faces = encoder.detect(pixels)
    if not faces:
        raise IdgenError(
            f"no face found in {name}: use a photo that shows the face larger, sharper or more from the front"
        )
    return replace(_cut(pixels, faces[0], size, name), rival=rival(faces))


def _cut(pixels: np.ndarray, face: Face, size: int, name: str) -> _Portrait:
    height, width = pixels.shape[:2]
    corners = portrait_corners((width, height), face.landmarks, size)
    if np.hypot(*(corners[3] - corners[0])) < LEAST_SIDE:
        raise IdgenError(
            f"the face in {name} is too small: its portrait has less than {LEAST_SIDE} px; use a larger photo"
        )
    empty = _Portrait(_square(pixels, face, size), corners, None)
    a, b, c, d, e, f = empty.matrix
    points = (face.landmarks + 0.5) @ np.array([[a, d], [b, e]]) + [c, f] - 0.5
    return _Portrait(empty.image, corners, points, face)


def _cut_again(portrait: _Portrait, photo: Image.Image) -> Image.Image:
    """The same square of the photo as it is now."""
    size = portrait.image.width
    if portrait.face is None:
        return _whole(photo, size, "the photo").image
    return _square(np.asarray(photo), portrait.face, size)


def _square(pixels: np.ndarray, face: Face, size: int) -> Image.Image:
    return Image.fromarray(ffhq_crop(pixels, face.landmarks, size, 4 * size))


def _emptied(photo: Image.Image, mask: np.ndarray) -> Image.Image:
    """The photo with what is to be filled replaced by its surroundings: resampling would carry it into known pixels."""
    rows, columns = (mask.any(axis).nonzero()[0] for axis in (1, 0))
    part = tuple(slice(max(at[0] - 1, 0), at[-1] + 2) for at in (rows, columns))
    pixels = np.array(photo)
    seen, hole = (
        torch.from_numpy(pixels[part].copy()).permute(2, 0, 1)[None],
        torch.from_numpy(mask[part].copy())[None, None],
    )
    pixels[part] = membrane(seen.float(), hole)[0].permute(1, 2, 0).round().byte().numpy()
    return Image.fromarray(pixels)


def _whole(image: Image.Image, size: int, name: str) -> _Portrait:
    """A photo that is a portrait already."""
    side = image.width
    if side != image.height:
        raise IdgenError(f"{name} is {side} x {image.height} px, and a portrait is square: leave --aligned out")
    corners = np.array([[0, 0], [0, side], [side, side], [side, 0]], float)
    resized = image if side == size else image.resize((size, size), Image.Resampling.LANCZOS)
    return _Portrait(resized, corners, None)


def _reached(mask: np.ndarray, face: Face, photo: tuple[int, int], size: int) -> float:
    """The share of a mask that lies in a face's portrait."""
    corners = portrait_corners(photo, face.landmarks, size)
    place = _Portrait(Image.new("1", (size, size), 1), corners, None)
    inside = np.asarray(place.image.transform(photo, Image.Transform.AFFINE, place.matrix))
    return float((inside & mask).sum() / mask.sum())


def _hole_of(mask: np.ndarray, portrait: _Portrait, size: int) -> np.ndarray:
    """A photo's mask in the portrait, and a pixel around: nothing of what is to be filled may be seen by the model."""
    fine = 4 * size
    quad = tuple(portrait.corners.flatten())
    drawn = (
        Image.fromarray(mask)
        .convert("L")
        .transform((fine, fine), Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
    )
    touched = (np.asarray(drawn) > 8).reshape(size, 4, size, 4).any((1, 3))
    padded = np.pad(touched, 1)
    return np.any([padded[y : y + size, x : x + size] for y in range(3) for x in range(3)], axis=0)


def _warped(made: Image.Image, portrait: _Portrait, photo: Image.Image) -> np.ndarray:
    """The filled portrait where it lies in the photo, grey where the photo is."""
    side = round(float(np.hypot(*(portrait.corners[3] - portrait.corners[0]))))
    if side < made.width:  # shrunken by the warp alone, it would alias
        made = made.resize((side, side), Image.Resampling.LANCZOS)
    matrix = _Portrait(made, portrait.corners, None).matrix
    warped = made.transform(photo.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    if np.ptp(np.asarray(photo.resize((64, 64))).astype(int), axis=-1).max() <= 3:
        warped = warped.convert("L").convert("RGB")
    return np.asarray(warped)
