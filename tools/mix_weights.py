"""Adds what one training changed to the weights of another: `python tools/mix_weights.py START AFTER BEFORE OUT --factor 0.5`.

OUT = START + factor (AFTER - BEFORE), weight by weight, all four safetensors files of one architecture. Models that began as the
same one lie close enough for this: with START = BEFORE it is the mean of both ends of a training (Wortsman et al., "Robust
fine-tuning of zero-shot models", arXiv 2109.01903), else it carries over what a sibling learned (Ilharco et al., "Editing models
with task arithmetic", arXiv 2212.04089). `--names attn2=1.0` gives another factor to names that contain a part. Where START reads
more channels than the others (inpainting beside text-to-image), the first ones take the change.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from idgen.checkpoint import load_metadata, load_weights, save_weights
from idgen.errors import IdgenError


def mix(
    start: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    factor: float,
    names: Mapping[str, float],
) -> dict[str, Tensor]:
    """The sum above in float32, each weight in START's own precision.

    Raises:
        IdgenError: weights of other names, or of shapes that differ in more than the channels that are read.
    """
    if not (set(start) == set(after) == set(before)):
        odd = sorted(set(start) ^ set(after) | set(start) ^ set(before))[0]
        raise IdgenError(f"the files are not of one architecture: {odd} is not in all of them")
    mixed = {}
    for name, value in start.items():
        change = after[name].float() - before[name].float()
        own = value.float().clone()
        if own.shape[:1] + own.shape[2:] != change.shape[:1] + change.shape[2:] or own.numel() < change.numel():
            raise IdgenError(
                f"the files are not of one architecture: {name} is {tuple(own.shape)} and {tuple(change.shape)}"
            )
        part = own[:, : change.shape[1]] if own.ndim > 1 else own
        part += change * next((other for words, other in names.items() if words in name), factor)
        mixed[name] = own.to(value.dtype)
    return mixed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("start", "after", "before", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--factor", type=float, required=True)
    parser.add_argument("--names", nargs="*", default=[], metavar="PART=FACTOR")
    args = parser.parse_args()
    try:
        names = {part: float(value) for part, _, value in (text.partition("=") for text in args.names)}
    except ValueError:
        parser.error("--names is written PART=FACTOR")
    try:
        with torch.no_grad():
            files = [load_weights(path) for path in (args.start, args.after, args.before)]
            # What a file says of itself, an adapter its settings, is START's.
            header = load_metadata(args.start) or {"format": "pt"}
            save_weights(args.out, mix(files[0], files[1], files[2], args.factor, names), header)
    except IdgenError as error:
        print(f"mix_weights: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
