"""Encoder4Editing: a photo of a face -> the code of StyleGAN2's W+ that makes a face like it.

Tov et al., "Designing an Encoder for StyleGAN Image Manipulation", SIGGRAPH 2021, arXiv 2102.02766. Facts and parameter names
from omertov/encoder4editing (`e4e_ffhq_encode.pt`): a recogniser of 24 squeeze-and-excitation blocks, a feature pyramid over
the last three of its four stages, and a small network for each level of the code. The first level is a code for the whole
face; each other is what its layer has to add. The encoder's 267 M parameters are mostly these small networks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idgen.checkpoint import load_strict, load_weights
from idgen.errors import IdgenError
from idgen.models.published import State, depth, part, shape
from idgen.models.stylegan2 import EqualLinear, Generator

BLOCKS = (3, 4, 14, 3)  # IR-SE50
ENDS = tuple(sum(BLOCKS[: stage + 1]) - 1 for stage in range(4))  # each stage's last block in `body`
MIDDLE, FINE = 3, 7  # the levels from which on the codes are read off the second and the third feature map
REDUCTION = 16


class E4E(nn.Module):
    """The encoder, the average code that it starts from, and the generator that it was made for, as in published files.

    Args:
        encoder: gives codes relative to the average.
        decoder: makes a picture of a code: `e4e.decoder(e4e(faces))`.

    Raises:
        IdgenError: their codes have different shapes.
    """

    def __init__(self, encoder: Encoder4Editing, decoder: Generator) -> None:
        super().__init__()
        if encoder.code != (decoder.n_latent, decoder.style_dim):
            wanted = f"({decoder.n_latent}, {decoder.style_dim})"
            raise IdgenError(f"e4e's encoder makes codes of the shape {encoder.code}, its generator takes {wanted}")
        self.encoder = encoder
        self.decoder = decoder
        self.register_buffer("latent_avg", torch.zeros(decoder.n_latent, decoder.style_dim))

    def forward(self, faces: Tensor) -> Tensor:
        """Faces aligned as FFHQ's, (batch, 3, 256, 256), RGB in [-1, 1] -> codes of W+ (batch, 18, 512).

        Raises:
            IdgenError: pictures of another size.
        """
        return self.encoder(faces) + self.latent_avg


class Encoder4Editing(nn.Module):
    """Faces (batch, 3, size, size), RGB in [-1, 1] -> codes (batch, styles, style_dim) relative to the average.

    Args:
        widths: channels of the four stages.
        style_dim: length of a code.
        styles: levels of W+: two for each resolution of the generator.
        size: side of the input, a power of two from 32 on.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512),
        style_dim: int = 512,
        styles: int = 18,
        size: int = 256,
    ) -> None:
        super().__init__()
        if len(widths) != 4 or size < 32 or size & (size - 1):
            raise IdgenError("e4e has four stages and an input whose side is a power of two from 32 on")
        self.size = size
        self.code = (styles, style_dim)
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0])
        )
        inputs = (widths[0], *widths[:3])
        self.body = nn.Sequential(
            *(
                Block(into if index == 0 else out, out, 2 if index == 0 else 1)
                for into, out, blocks in zip(inputs, widths, BLOCKS, strict=True)
                for index in range(blocks)
            )
        )
        self.styles = nn.ModuleList(
            StyleBlock(widths[3], style_dim, size // (16 if level < MIDDLE else 8 if level < FINE else 4))
            for level in range(styles)
        )
        self.latlayer1 = nn.Conv2d(widths[2], widths[3], 1)
        self.latlayer2 = nn.Conv2d(widths[1], widths[3], 1)

    def forward(self, faces: Tensor) -> Tensor:
        if faces.shape[1:] != (3, self.size, self.size):
            wanted = f"(batch, 3, {self.size}, {self.size})"
            raise IdgenError(f"this e4e takes aligned faces of the shape {wanted}, not {list(faces.shape)}")
        coarse, middle, fine = self.pyramid(faces)
        maps = (coarse if level < MIDDLE else middle if level < FINE else fine for level in range(len(self.styles)))
        face, *deltas = (style(features) for style, features in zip(self.styles, maps, strict=True))
        return torch.stack([face, *(face + delta for delta in deltas)], dim=1)

    def pyramid(self, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feature maps (batch, widths[3], side, side) at a 16th, an 8th and a 4th of the input's side."""
        x = self.input_layer(faces)
        ends = []
        for index, block in enumerate(self.body):
            x = block(x)
            if index in ENDS:
                ends.append(x)
        _, fine, middle, coarse = ends
        middle = _enlarged(coarse, self.latlayer1(middle))
        return coarse, middle, _enlarged(middle, self.latlayer2(fine))

    @staticmethod
    def sizes(state: State, what: str) -> dict[str, tuple[int, ...] | int]:
        """The arguments of the `Encoder4Editing` that published weights belong to.

        Args:
            what: names the weights in the error.

        Raises:
            IdgenError: the weights are no Encoder4Editing's.
        """
        style_dim = shape(state, "styles.0.linear.weight", 2, what)[0]
        halvings = sum(key.startswith("styles.0.convs.") and key.endswith(".weight") for key in state)
        return {
            "widths": tuple(shape(state, f"body.{end}.res_layer.1.weight", 4, what)[0] for end in ENDS),
            "style_dim": style_dim,
            "styles": depth(state, "styles."),
            "size": 16 << halvings,
        }


class Block(nn.Module):
    """BN - conv - PReLU - conv (stride) - BN - channel attention, plus the input (through a 1x1 conv where widths change)."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)  # only takes every second pixel
        if into != out:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(into),
            nn.Conv2d(into, out, 3, padding=1, bias=False),
            nn.PReLU(out),
            nn.Conv2d(out, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            ChannelAttention(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class ChannelAttention(nn.Module):
    """Squeeze and excitation (Hu et al., arXiv 1709.01507) without biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, width // REDUCTION, 1, bias=False)
        self.fc2 = nn.Conv2d(width // REDUCTION, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class StyleBlock(nn.Module):
    """A feature map (batch, into, side, side) -> one level of a code (batch, out): halved until one pixel is left."""

    def __init__(self, into: int, out: int, side: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(side.bit_length() - 1):
            layers += [nn.Conv2d(into if index == 0 else out, out, 3, 2, 1), nn.LeakyReLU()]
        self.convs = nn.Sequential(*layers)
        self.linear = EqualLinear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convs(x).flatten(1))


def load_e4e(path: str | os.PathLike[str]) -> E4E:
    """The e4e in a published file (`e4e_ffhq_encode.pt`), or in the same weights as safetensors; strict, in eval mode.

    Raises:
        IdgenError: the file is missing or damaged, or its weights are not those of an e4e and its generator.
    """
    return from_state(load_weights(path), str(path))


def from_state(state: State, what: str) -> E4E:
    """An `E4E` whose sizes are read off its weights (`encoder.*`, `decoder.*`, `latent_avg`).

    Args:
        what: names the weights in errors.

    Raises:
        IdgenError: a key that is missing, unknown or of another shape.
    """
    encoder = Encoder4Editing.sizes(part(state, "encoder."), f"the encoder of {what}")
    decoder = Generator.sizes(part(state, "decoder."), f"the decoder of {what}")
    with torch.device("meta"):  # no time lost on random values for 300 M parameters
        model = E4E(Encoder4Editing(**encoder), Generator(**decoder))  # type: ignore[arg-type]
    model._apply(lambda tensor: torch.zeros_like(tensor, device="cpu"))
    load_strict(model, state, what)
    return model.eval()


def _enlarged(small: Tensor, lateral: Tensor) -> Tensor:
    """The sum of two feature maps at the second's size."""
    return lateral + F.interpolate(small, lateral.shape[-2:], mode="bilinear", align_corners=True)
