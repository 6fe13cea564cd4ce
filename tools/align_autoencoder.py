"""Turns a new autoencoder's latents towards an older one's: `python tools/align_autoencoder.py NEW OLD DATA OUT`.

Two autoencoders that were trained apart on the same pictures put nearly the same into their latents, in another mixture of
channels. The linear map (channels, channels) that brings the new ones nearest to the old ones, folded into the encoder's last
convolution, lets the UNets that know the old latents go on from where they were instead of from nothing. The decoder can not
follow by its first convolution alone, since `AutoencoderTiny` bends latents (3 tanh(z / 3)) before anything else: that and the
blocks up to its first enlargement learn to make from the turned latents what they made from the others, which costs some
minutes on one core. NEW, OLD and OUT are folders of AutoencoderTiny, DATA one of `idgen synth` with some hundred pictures.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from idgen.console import progress
from idgen.data.faces import FaceFolder
from idgen.train.pictures import to_float

FITTED, APART = 300, 200  # pictures that the turn is fitted on, and that it is looked at on
STEPS, BATCH, RATE = 800, 24, 5e-4


def fit(source: Tensor, wanted: Tensor) -> Tensor:
    """The (c, c) map of rows (n, c) of `source` onto `wanted` with least squares, its results as wide as `wanted`'s channels."""
    turn = torch.linalg.lstsq(source.double(), wanted.double()).solution.T
    width = wanted.double().std(0) / (source.double() @ turn.T).std(0)
    return (width[:, None] * turn).float()


def rows(latents: Tensor) -> Tensor:
    """(n, c, h, w) -> (n h w, c)."""
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


def bent(latents: Tensor) -> Tensor:
    """As AutoencoderTiny's decoder begins."""
    return 3 * torch.tanh(latents / 3)


def align(vae: AutoencoderTiny, latents: Tensor, wanted: Tensor) -> None:
    """Changes `vae`, whose latents of some pictures are (n, c, h, w), so that the first m come near to `wanted` (m, c, h, w)."""
    turn = fit(rows(latents[: len(wanted)]), rows(wanted))
    turned = torch.einsum("oc,nchw->nohw", turn, latents)
    layers = list(vae.decoder.layers)
    start = nn.Sequential(*layers[: next(i for i, layer in enumerate(layers) if isinstance(layer, nn.Upsample))])
    known = copy.deepcopy(start)
    with torch.no_grad():
        last = vae.encoder.layers[-1]
        last.weight.copy_(torch.einsum("oc,cikl->oikl", turn, last.weight))
        last.bias.copy_(turn @ last.bias)
        back = torch.linalg.lstsq(rows(bent(turned)).double(), rows(bent(latents)).double()).solution.T.float()
        start[0].weight.copy_(torch.einsum("oikl,ic->ockl", start[0].weight, back))
    follow(start, known, latents, turned)


def follow(start: nn.Module, known: nn.Module, latents: Tensor, turned: Tensor) -> None:
    """Trains `start` to make of `turned` what `known` makes of `latents`."""
    optimizer = torch.optim.Adam(start.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator = torch.Generator().manual_seed(0)
    for _ in progress(range(STEPS), STEPS, "decoder"):
        some = torch.randint(len(latents), (BATCH,), generator=generator)
        with torch.no_grad():
            wanted = known(bent(latents[some]))
        loss = F.mse_loss(start(bent(turned[some])), wanted) / wanted.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def main(new: Path, old: Path, data: Path, out: Path) -> None:
    images = FaceFolder.open(data).images
    turned, known = (AutoencoderTiny.from_pretrained(path, torch_dtype=torch.float32).eval() for path in (new, old))
    apart = to_float(images[-APART:], torch.device("cpu"))

    @torch.no_grad()
    def encode(vae: AutoencoderTiny, photos: np.ndarray) -> Tensor:
        parts = range(0, len(photos), 50)
        return torch.cat([vae.encode(to_float(photos[i : i + 50], torch.device("cpu"))).latents for i in parts])

    @torch.no_grad()
    def quality() -> float:
        made = torch.cat([turned.decode(turned.encode(some).latents).sample.clamp(-1, 1) for some in apart.split(50)])
        return float(-10 * ((made - apart).pow(2).mean((1, 2, 3)) / 4).log10().mean())

    before = quality()
    align(turned, encode(turned, images[:-APART]), encode(known, images[:FITTED]))
    wanted, got = encode(known, images[-APART:]), encode(turned, images[-APART:])
    shared = 1 - (got - wanted).pow(2).mean((0, 2, 3)) / wanted.var((0, 2, 3))
    turned.register_to_config(scaling_factor=round(1 / float(got.std()), 4))
    print(
        f"on {APART} other pictures {float(shared.mean()):.3f} of the old latents' variance is the same "
        f"(worst channel {float(shared.min()):.3f}); PSNR {before:.2f} dB before, {quality():.2f} dB now"
    )
    turned.half().save_pretrained(out)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit("usage: python tools/align_autoencoder.py NEW OLD DATA OUT")
    main(*map(Path, sys.argv[1:]))
