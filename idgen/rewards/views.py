"""From latents to what rewards look at: pictures with gradients, and where the faces in them are.

Faces are found in the finished pixels, without gradients; gradients then pass through the crop alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from idgen.errors import IdgenError
from idgen.faces.align_torch import similarity_matrix_torch

if TYPE_CHECKING:
    from idgen.faces import FaceEncoder

# Clean latents (batch, channels, h, w), as the UNet makes them -> pictures (batch, 3, height, width) about [-1, 1].
Decoder = Callable[[Tensor], Tensor]
# Pictures (batch, 3, height, width) in [-1, 1] -> landmarks (batch, 5, 2) px and whether there is a face (batch,).
Finder = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class View:
    """Pictures as a reward sees them.

    Attributes:
        pictures: (batch, 3, height, width) within [-1, 1], with gradients.
        landmarks: (batch, 5, 2) px of these pictures, without; zeros where no face was found.
        seen: (batch,) whether one was.
        whole: False where the pictures are a part around the face.
    """

    pictures: Tensor
    landmarks: Tensor
    seen: Tensor
    whole: bool = True


@dataclass(frozen=True)
class Asked:
    """What the pictures were to show.

    Attributes:
        references: (batch, dim) of each person, by the reward's recogniser; the mean of unit embeddings where there are several
            photos. None where no reward asks who it is.
        prompts: one a picture, or none at all.
    """

    references: Tensor | None = None
    prompts: Sequence[str] = ()

    def repeat(self, times: int) -> Asked:
        """The same for so many copies of the batch, one after the other."""
        references = None if self.references is None else self.references.repeat(times, 1)
        return Asked(references, list(self.prompts) * times)

    def prompt_of_each(self, count: int) -> list[str]:
        """The prompts, one for each of so many pictures.

        Raises:
            IdgenError: there are others, or none.
        """
        if len(self.prompts) != count:
            raise IdgenError(
                f"this reward compares pictures with prompts: {count} pictures came with {len(self.prompts)} prompts"
            )
        return list(self.prompts)


class FaceFinder:
    """Finds the largest face of each picture with an encoder's detector."""

    def __init__(self, encoder: FaceEncoder) -> None:
        self.encoder = encoder

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        from idgen.metrics.embedding import detect_landmarks

        pixels = ((pictures.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte()
        # Half precision would misplace the landmarks.
        with torch.autocast(pictures.device.type, enabled=False):
            landmarks, seen = detect_landmarks(self.encoder, pixels.permute(0, 2, 3, 1).cpu())
        return landmarks.to(pictures.device), seen.to(pictures.device)


def vae_decoder(vae: Any) -> Decoder:
    """Any diffusers autoencoder as a decoder; it computes in its own dtype."""

    def decode(latents: Tensor) -> Tensor:
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return vae.decode((latents / vae.config.scaling_factor + shift).to(vae.dtype)).sample.float()

    return decode


class WholeView:
    """Decodes whole pictures: `decode: full` with the model's own autoencoder, `tiny` with a small one.

    Args:
        decode: from latents to pictures.
        find: where the faces are.
    """

    def __init__(self, decode: Decoder, find: Finder) -> None:
        self.decode, self.find = decode, find

    def __call__(self, latents: Tensor) -> View:
        pictures = bounded(self.decode(latents))
        landmarks, seen = self.find(pictures.detach())
        return View(pictures, landmarks, seen)


class PictureView:
    """Decodes whole pictures for rewards that ask for no face.

    Args:
        decode: from latents to pictures.
    """

    def __init__(self, decode: Decoder) -> None:
        self.decode = decode

    def __call__(self, latents: Tensor) -> View:
        pictures = bounded(self.decode(latents))
        everywhere = torch.ones(len(pictures), dtype=torch.bool, device=pictures.device)
        return View(pictures, pictures.new_zeros(len(pictures), 5, 2), everywhere)


class CropView:
    """Decodes with gradients only the latents around each face: `decode: crop`.

    The whole picture is decoded once without gradients to find the face; a small decoder does for that. All patches of a batch
    have one size. A decoder sees beyond its patch, so the patch has a margin; what autoencoders with attention or group norms
    take from the rest of the picture is lost.

    Args:
        decode: with gradients, on patches of latents.
        find: where the faces are.
        preview: decodes whole pictures for `find`; `decode` itself by default.
        margin: latents on each side beyond the face's aligned crop.
    """

    def __init__(self, decode: Decoder, find: Finder, preview: Decoder | None = None, margin: int = 2) -> None:
        self.decode, self.find, self.preview, self.margin = decode, find, preview or decode, margin

    def __call__(self, latents: Tensor) -> View:
        with torch.no_grad():
            pictures = bounded(self.preview(latents))
            landmarks, seen = self.find(pictures)
        factor = pictures.shape[-1] // latents.shape[-1]
        corner, size = patches(landmarks, seen, latents.shape[-2:], factor, self.margin)
        parts = torch.stack(
            [latent[:, y : y + size, x : x + size] for latent, (x, y) in zip(latents, corner.tolist(), strict=True)]
        )
        shifted = (landmarks - (corner * factor)[:, None].to(landmarks)) * seen[:, None, None]
        return View(bounded(self.decode(parts)), shifted, seen, whole=False)


def patches(
    landmarks: Tensor, seen: Tensor, grid: Sequence[int], factor: int, margin: int, crop: int = 112
) -> tuple[Tensor, int]:
    """Squares of latents that hold each face's aligned crop, with a margin.

    Args:
        landmarks: (batch, 5, 2) px; seen: (batch,) which of them count, others get the middle.
        grid: height and width of the latents.
        factor: pixels per latent.
        margin: latents on each side.
        crop: side of the aligned crop.

    Returns:
        Corners (batch, 2) x, y in latents, and the side that all share: that of the largest face, or of the grid.
    """
    extent = torch.tensor([grid[1], grid[0]])
    if not bool(seen.any()):
        side = max(1, min(grid) // 2)
        return ((extent - side) // 2).expand(len(seen), 2), side
    matrix = similarity_matrix_torch(landmarks.detach().cpu(), crop)  # picture -> crop
    linear, shift = matrix[..., :2], matrix[..., 2]
    square = torch.tensor([[0.0, 0], [crop, 0], [0, crop], [crop, crop]]) - 0.5
    corners = torch.linalg.solve(
        torch.where(seen.cpu()[:, None, None], linear, torch.eye(2)), (square - shift[:, None]).transpose(1, 2)
    ).transpose(1, 2)  # (batch, 4, 2) px of the picture
    low = ((corners.amin(1) + 0.5) / factor).floor() - margin
    high = ((corners.amax(1) + 0.5) / factor).ceil() + margin
    side = int(min((high - low)[seen.cpu()].amax().item(), min(grid)))
    middle = torch.where(seen.cpu()[:, None], (low + high) / 2, extent / 2)
    corner = (middle - side / 2).round().long()
    return torch.minimum(corner.clamp_min(0), extent - side), side


def bounded(pictures: Tensor) -> Tensor:
    """Within [-1, 1], as a picture is saved. The gradient of a loss, which a step goes against, reaches a value beyond only where
    it leads back inside: a plain clamp would leave it there for ever, none at all would reward colours that nobody can see."""
    return _Bounded.apply(pictures)


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pictures: Tensor) -> Tensor:
        ctx.save_for_backward(pictures)
        return pictures.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (pictures,) = ctx.saved_tensors
        # A step goes against the gradient: above 1 a negative one leads further out.
        outward = ((pictures > 1) & (gradient < 0)) | ((pictures < -1) & (gradient > 0))
        return gradient.masked_fill(outward, 0)
