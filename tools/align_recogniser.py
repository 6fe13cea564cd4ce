"""Turns a new recogniser's embeddings towards an older one's: `python tools/align_recogniser.py NEW OLD DATA OUT`.

Two recognisers name the same people by different directions. An orthogonal turn (Schönemann, Psychometrika 1966) leaves every
cosine, and so everything that recognition is measured by, as it is; folded into the last layer it lets what was trained on the
old one's embeddings go on from where it was, instead of from nothing. NEW, OLD and OUT are folders of mini recognisers, DATA
one of `idgen synth`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from torch import Tensor

from idgen.checkpoint import save_weights
from idgen.data.encoded import encode_identities
from idgen.data.faces import FaceFolder
from idgen.models.mini_recogniser import MiniRecogniser
from idgen.models.registry import load_recogniser


def align(new: MiniRecogniser, turn: Tensor) -> None:
    """Turns the embeddings by an orthogonal (dim, dim) matrix: the last affine layers become one, times the turn."""
    norm, project = new.normalise, new.project
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    with torch.no_grad():
        project.weight.copy_(turn @ (scale[:, None] * project.weight))
        norm.bias.copy_(turn @ shift)
        norm.weight.fill_(1.0)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)


def procrustes(new: Tensor, old: Tensor) -> Tensor:
    """The orthogonal matrix (dim, dim) by which rows (n, dim) of `new` come nearest to `old`; both of length 1."""
    u, _, v = torch.linalg.svd(old.double().T @ new.double())
    return (u @ v).float()


def main(new: Path, old: Path, data: Path, out: Path) -> None:
    folder, device = FaceFolder.open(data), torch.device("cpu")
    networks = [load_recogniser(path) for path in (new, old)]
    rows = [
        torch.from_numpy(encode_identities(folder, network, path / "model.safetensors", device)).float()
        for network, path in zip(networks, (new, old), strict=True)
    ]
    a, b = (torch.nn.functional.normalize(one, dim=1) for one in rows)
    half = len(a) // 2  # the turn is fitted on one half of the people and looked at on the other
    turn = procrustes(a[:half], b[:half])
    cosine = (a[half:] @ turn.T * b[half:]).sum(1).mean()
    network = networks[0]
    assert isinstance(network, MiniRecogniser)
    align(network, turn)
    shutil.copytree(new, out, dirs_exist_ok=True)
    state = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    save_weights(out / "model.safetensors", state, {"format": "pt"})
    print(f"mean cosine of one person's picture by both, on people the turn was not fitted on: {cosine:.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit("usage: python tools/align_recogniser.py NEW OLD DATA OUT")
    main(*map(Path, sys.argv[1:]))
