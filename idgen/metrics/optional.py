"""Figures of others' networks, where packages and weights are on this machine: LPIPS, NIQE, MUSIQ, CLIP-T, Inception.

None of them is a dependency of idgen: their packages replace torch or bring dozens of others along. Each loader raises
`MissingExtra` with the reason and the mending command; nothing is left out silently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Two pictures (n, 3, height, width) in 0..1 -> (n,); or one.
Compare = Callable[[Tensor, Tensor], Tensor]
Rate = Callable[[Tensor], Tensor]


class MissingExtra(Exception):
    """A package or its weights are not here; the message says which, and how to get them."""


def load_lpips(device: torch.device | str = "cpu", net: str = "vgg") -> Compare:
    """Zhang et al. 2018 (arXiv 1801.03924) by the authors' package `lpips`, or by `pyiqa` where that is installed.

    Raises:
        MissingExtra: neither is, or their weights are not on this machine.
    """
    try:
        import lpips

        network = _made("lpips", lambda: lpips.LPIPS(net=net, verbose=False).to(device).eval())
    except ImportError:
        metric = _pyiqa(f"lpips-{net}", device, "pip install lpips")
        return lambda images, targets: metric(images.to(device), targets.to(device)).flatten().cpu()

    def compare(images: Tensor, targets: Tensor) -> Tensor:
        return network(images.to(device) * 2 - 1, targets.to(device) * 2 - 1).flatten().cpu()

    return compare


def load_rating(name: str, device: torch.device | str = "cpu") -> Rate:
    """A no-reference figure of `pyiqa` by its name there (`niqe`, `musiq`).

    Raises:
        MissingExtra: pyiqa is not installed, or the weights are not on this machine.
    """
    metric = _pyiqa(name, device, "pip install pyiqa")
    return lambda images: metric(images.to(device)).flatten().cpu()


def load_clip_score(
    folder: str | Path, device: torch.device | str = "cpu"
) -> Callable[[Sequence[Any], Sequence[str]], Tensor]:
    """CLIP-T: cosines between pictures and their prompts by a transformers CLIP model, in hundredths as papers quote them.

    Args:
        folder: a folder with the model, or a hub id that is in the cache.

    Raises:
        MissingExtra: it is not on this machine.
    """
    from transformers import AutoProcessor, CLIPModel

    try:
        model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).to(device).eval()
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise MissingExtra(
            f"no CLIP model at {folder}: `hf download openai/clip-vit-base-patch32` fetches one"
        ) from error

    @torch.no_grad()
    def score(images: Sequence[Any], prompts: Sequence[str]) -> Tensor:
        inputs = processor(text=list(prompts), images=list(images), return_tensors="pt", padding=True, truncation=True)
        output = model(**{name: value.to(device) for name, value in inputs.items()})
        pairs = (output.image_embeds * output.text_embeds).sum(-1)  # both of unit length
        return 100 * pairs.float().cpu()

    return score


def load_inception(device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """The 2048 pooled features of the Inception-v3 that FID is defined by, from `torch-fidelity`.

    Takes (n, 3, height, width) uint8.

    Raises:
        MissingExtra: torch-fidelity is not installed, or its weights are not on this machine.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise MissingExtra(
            f"torch-fidelity does not load ({_reason(error)}): pip install torch-fidelity and a torchvision that fits torch"
        ) from error
    network = _made(
        "torch-fidelity", lambda: FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device).eval()
    )

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return network(images.to(device))[0].float().cpu()

    return features


def _pyiqa(name: str, device: torch.device | str, command: str) -> Any:
    try:
        import pyiqa
    except ImportError as error:
        raise MissingExtra(f"not installed ({_reason(error)}): {command}") from error
    return _made("pyiqa", lambda: pyiqa.create_metric(name, device=torch.device(device)))


def _made(package: str, make: Callable[[], Any]) -> Any:
    """A network that its package makes, and whose weights it may want to fetch."""
    try:
        return make()
    except Exception as error:  # urllib's, hub's, torch's: each package fails in its own way without a network
        raise MissingExtra(
            f"{package} has no weights on this machine and could not fetch them ({_reason(error)})"
        ) from error


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
