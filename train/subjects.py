"""What `train/reward.py` can train: Arc2Face, a text-to-image model, or a decoupled identity adapter beside one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoPipelineForText2Image
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from idgen.adapters.arc2face import locate
from idgen.adapters.base import AdapterConfig
from idgen.adapters.embeddings import Norm
from idgen.adapters.registry import adapter_class
from idgen.errors import IdgenError
from idgen.finetune import FinetuneConfig
from idgen.hub import fetch_folder
from idgen.pipelines import Arc2FacePipeline
from idgen.rewards.policies import AdapterPolicy, Condition, FinetunePolicy, Policy, norm_of
from idgen.train.prompt_cache import PromptCache, encode_prompts
from idgen.weights import mini_root

FILE = "adapter.safetensors"  # what every subject's weights are saved as

# The methods that read face embeddings alone, with the sizes of a fresh projection for a UNet of so many text channels.
FRESH: dict[str, Callable[[int], dict[str, int]]] = {
    "ip_faceid": lambda channels: {"cross_attention_dim": channels},
    "instantid": lambda channels: {
        "dim": max(64, channels // 2),
        "depth": 4,
        "dim_head": 64,
        "heads": max(1, channels // 128),
        "num_queries": 16,
        "embedding_dim": 512,
        "output_dim": channels,
        "ff_mult": 4,
    },
}


class Subject(ABC):
    """A pipeline's frozen parts and the policy that learns.

    Attributes:
        policy: what learns.
        pipe: where the autoencoder, the noise schedule and the encoders come from.
        reads_prompts: whether pictures are also asked for in words.
        norm: at which length the policy reads embeddings.
        vae_file: the autoencoder's weights.
    """

    policy: Policy
    pipe: Any
    reads_prompts: bool
    norm: Norm = "unit"
    vae_file: Path

    @abstractmethod
    def condition(self, vectors: Tensor, prompts: list[str]) -> Condition:
        """What the UNet reads, for embeddings (batch, dim) as `read` gives them and as many prompts."""

    @abstractmethod
    def nobody(self, count: int) -> Condition:
        """As many rows that ask for nothing."""

    def read(self, vectors: Tensor) -> Tensor:
        """Embeddings (..., dim), raw or means of what this made of raw ones, at the length at which the policy reads them."""
        return F.normalize(vectors, dim=-1) if self.norm == "unit" else vectors

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""
        config = self.policy.unet.config
        return config.in_channels, config.sample_size, config.sample_size


class Arc2FaceSubject(Subject):
    """A finetuning adapter in Arc2Face's UNet."""

    reads_prompts = False

    def __init__(self, model: str, base: str | None, finetune: FinetuneConfig, device: torch.device) -> None:
        self.pipe = _frozen(Arc2FacePipeline.from_pretrained(model, base=base), device)
        self.vae_file = _weights(locate(model, base).base / "vae")
        _attend_plainly(self.pipe.unet, device)
        self.policy = FinetunePolicy(self.pipe.unet, finetune)

    def condition(self, vectors: Tensor, prompts: list[str]) -> Condition:
        return Condition(self.pipe.encode_identity(vectors))

    def nobody(self, count: int) -> Condition:
        return Condition(self.pipe.encode_null().expand(count, -1, -1))


class TextSubject(Subject):
    """A finetuning adapter in a text-to-image UNet: one person's, as ID-Aligner trains LoRAs."""

    reads_prompts = True

    def __init__(self, model: str, finetune: FinetuneConfig, device: torch.device) -> None:
        self.pipe, self.vae_file = _text_pipeline(model, device)
        _attend_plainly(self.pipe.unet, device)
        self.policy = FinetunePolicy(self.pipe.unet, finetune)
        self.prompts = PromptCache(self.pipe)

    def condition(self, vectors: Tensor, prompts: list[str]) -> Condition:
        return self.prompts(prompts)

    def nobody(self, count: int) -> Condition:
        return self.prompts([""] * count)


class AdapterSubject(Subject):
    """A decoupled identity adapter beside a text-to-image UNet.

    Args:
        method: a registered one that reads face embeddings alone.
        adapter: its weights; None starts from fresh ones.
        recogniser: of a fresh one.
        settings: of a fresh one, fields of its config; sizes that are not given follow the UNet.

    Raises:
        IdgenError: a method that reads more than embeddings, settings that it does not have, or weights that do not fit.
    """

    reads_prompts = True

    def __init__(
        self,
        model: str,
        method: str,
        adapter: Path | None,
        recogniser: str,
        settings: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        kind = adapter_class(method)
        if method not in FRESH:
            raise IdgenError(
                f"{method} reads more of a person than a face embedding: here {', '.join(FRESH)} can be trained"
                " (train/inpaint.py trains pva, train/restore.py cachekv)"
            )
        self.pipe, self.vae_file = _text_pipeline(model, device)
        unet = self.pipe.unet
        if adapter is not None:
            made: Any = kind.from_pretrained(adapter, unet, dtype=torch.float32)
            if getattr(made.config, "plus", False):
                raise IdgenError(
                    f"{adapter} is a Plus variant, which also reads CLIP: train one that reads embeddings alone"
                )
        else:
            try:
                made = kind.for_unet(unet, _fresh(method, unet, recogniser, settings)).to(device)
            except TypeError as error:
                raise IdgenError(f"settings of {method}: {error}") from None
        self.prompts: Callable[[list[str]], Condition] = PromptCache(self.pipe)
        self.dim = made.config.projection.get("embedding_dim", 512)
        self.policy = AdapterPolicy(unet, made)
        self.norm = norm_of(made)

    def keep_prompts(self, folder: Path | None, keep: bool = True) -> None:
        """Where prompts that were read are kept; `keep` False reads them every time."""
        self.prompts = PromptCache(self.pipe, folder) if keep else partial(encode_prompts, self.pipe)

    def condition(self, vectors: Tensor, prompts: list[str]) -> Condition:
        encoded = self.prompts(prompts)
        return Condition(encoded.context, vectors, encoded.pooled, encoded.sizes)

    def nobody(self, count: int) -> Condition:
        return self.condition(torch.zeros(count, self.dim, device=self.pipe.device), [""] * count)


def _fresh(method: str, unet: Any, recogniser: str, settings: Mapping[str, Any]) -> AdapterConfig:
    config = adapter_class(method).config_class
    known = {field.name for field in fields(config)} - {"recogniser"}
    for name in settings:
        if name not in known:
            raise IdgenError(f"{method} has no setting {name!r}: there are {', '.join(sorted(known))}")
    sizes = FRESH[method](unet.config.cross_attention_dim) | dict(settings.get("projection", {}))
    return config(recogniser, **{**settings, "projection": sizes})


def _text_pipeline(model: str, device: torch.device) -> tuple[Any, Path]:
    source = str(mini_root()) if model == "mini" else model
    try:
        folder = Path(source) if Path(source).is_dir() else fetch_folder(source, ["vae/*"])
        pipe = AutoPipelineForText2Image.from_pretrained(source, torch_dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise IdgenError(
            f"cannot load the model {source}: {reason}; give a folder or hub id of Stable Diffusion"
        ) from error
    return _frozen(pipe, device), _weights(folder / "vae")


def _weights(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not found:
        raise IdgenError(f"no weights in {folder}: the model's autoencoder is missing")
    return found[0]


def _frozen(pipe: Any, device: torch.device) -> Any:
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    pipe.to(device)
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _attend_plainly(unet: Any, device: torch.device) -> None:
    """As in `idgen.train.base`: the fused attention's backward pass is slow on a CPU."""
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())
