"""Arc2Face's reference adapter: the look and the background of one photo, kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idgen.adapters.base import Adapter, AdapterConfig
from idgen.adapters.injections.listening import inside, read
from idgen.adapters.injections.low_rank import TARGETS, LowRank, projections, read_lora
from idgen.adapters.injections.parts import JointPart, LowRankPart, Part, Projection
from idgen.adapters.layers import AttentionLayer, attention
from idgen.adapters.methods import Method
from idgen.errors import IdgenError


@dataclass(frozen=True)
class ReferenceConfig(AdapterConfig):
    """The low-rank change that comes with the reference.

    Attributes:
        recogniser: none looks at the reference; the UNet itself does.
        rank: of the change.
        targets: which projections of which attentions, `"attn1.q"`.
    """

    recogniser: str = "arc2face"
    rank: int = 32
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        unknown = [target for target in self.targets if target not in TARGETS]
        if self.rank < 1 or unknown:
            raise IdgenError(f"a reference adapter's rank is 1 or more and its targets are among {', '.join(TARGETS)}")


class Arc2FaceReferenceAdapter(Adapter):
    """The reference adapter of Arc2Face (Paraperas Papantoniou and Zafeiriou, ICCV workshops 2025, arXiv 2510.04706).

    `condition(latents, prompt_embeds=...)` with the reference's latents: the Arc2Face UNet runs over them once, at time 0 and
    without this adapter, and what each self-attention sees is kept; while generating, the rows with identity attend to
    it as well as to themselves, and a low-rank change (of all rows, as the authors have it) teaches the UNet to. The authors
    hold a second UNet for that pass, run it for every image twice, and compute keys and values anew at every step.

        adapter = Arc2FaceReferenceAdapter.from_pretrained("ref_adapter/pytorch_lora_weights.safetensors", pipe.unet)
        adapter.inject(pipe.unet)
        latents = pipe.vae.encode(pixels).latent_dist.sample() * pipe.vae.config.scaling_factor
        conditioning = adapter.condition(latents, prompt_embeds=pipe.encode_identity(identity))
        pipe(identity, cross_attention_kwargs=conditioning.kwargs).images

    The photo is cropped as FFHQ's are, 512 px, and the identity is of that crop. A user's own LoRA that is on in the UNet takes
    part in the pass over the reference, where the authors' second UNet would be without it.

    No outputs of the original were at hand: what is said here is read from its code (github.com/foivospar/Arc2Face,
    arc2face/ref_adapter.py and gradio_demo/app_exp_adapter.py), and tests compare with a second UNet that does the same.
    Which projections the published file changes, and its rank, are read from its keys.
    """

    method = "arc2face_reference"
    config_class = ReferenceConfig

    def __init__(self, config: ReferenceConfig, layers: Sequence[AttentionLayer]) -> None:
        super().__init__(config, layers)
        self.lora: Any = nn.ModuleDict()
        for layer in layers:
            names = projections(layer, config.targets)
            if names:
                self.lora[str(layer.index)] = LowRank(layer, config.rank, names)

    def embed(
        self, latents: Tensor | Sequence[Tensor], *, prompt_embeds: Tensor, lora_scale: float = 0.8
    ) -> tuple[Tensor, ...]:
        """
        Args:
            latents: (channels, height, width) of one person's reference, (people, channels, height, width), or a list of
                those of one person; scaled as the UNet expects them.
            prompt_embeds: (people, length, dim) Arc2Face's prompt of each person, or (1, length, dim) for all.
            lora_scale: of the low-rank change, where the adapter acts; less frees the picture from the reference.
        """
        if isinstance(latents, (list, tuple)):
            if not latents:
                raise IdgenError("no identity given: pass the latents of at least one reference")
            if not all(isinstance(one, Tensor) and one.shape == latents[0].shape for one in latents):
                raise IdgenError("references of one batch must be latents of one shape (channels, height, width)")
            latents = torch.stack(list(latents))
        if not isinstance(latents, Tensor):
            raise IdgenError(f"a reference is given as latents, a tensor, not {type(latents).__name__}")
        unet = inside(self)
        rows = latents[None] if latents.ndim == 3 else latents
        channels, width = unet.config["in_channels"], unet.config["cross_attention_dim"]
        if rows.ndim != 4 or rows.shape[1] != channels or 0 in rows.shape:
            raise IdgenError(
                f"a reference's latents have the shape {list(latents.shape)}, expected (people, {channels}, height, width)"
            )
        if prompt_embeds.ndim != 3 or prompt_embeds.shape[2] != width or len(prompt_embeds) not in (1, len(rows)):
            raise IdgenError(
                f"prompt_embeds have the shape {list(prompt_embeds.shape)}, expected ({len(rows)}, length, {width}):"
                " pipe.encode_identity(identity) makes them"
            )
        if not math.isfinite(lora_scale):
            raise IdgenError(f"lora_scale is {lora_scale}, expected a finite number")
        if not rows.isfinite().all():
            raise IdgenError("the reference's latents hold NaN or infinity: encode the photo again")
        prompts = prompt_embeds.to(unet.dtype).expand(len(rows), -1, -1)
        rows = rows.to(prompts)  # the prompt comes from where the pipeline computes
        shown = torch.ones(len(rows), 1).to(rows)
        return rows, prompts, shown, torch.full_like(shown, lora_scale, dtype=torch.float32)

    def null(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Nobody is absence: no pass over latents of zeros, rows that do not look."""
        latents, prompts, shown, strength = (one[:1] for one in inputs)
        return latents, prompts, torch.zeros_like(shown), strength

    def project(self, *inputs: Tensor) -> Any:
        """What the self-attentions see of each reference, a `Bank`."""
        latents, prompts, shown, strength = inputs
        there = shown[:, 0] > 0
        states = read(inside(self), self, latents[there], prompts[there])
        return Bank(states, there, float(strength[0, 0]))

    def parts(self, tokens: Any) -> dict[str, list[Part]]:
        """The bank's keys and values in the softmax of every self-attention, and the low-rank change."""
        bank: Bank = tokens
        made: dict[str, list[Part]] = {}
        for layer in self.layers:
            weights = self.lora[str(layer.index)].weights() if str(layer.index) in self.lora else {}
            if not layer.cross:
                change = LowRankPart(weights, strength=bank.lora_scale)
                made[layer.name] = [change, self._joint(layer, bank, change)]
            elif weights:
                # Beside a joint part the layer's scale blends all; alone the change has to be multiplied by it.
                own = {name: (down, bank.lora_scale * up) for name, (down, up) in weights.items()}
                made[layer.name] = [LowRankPart(own)]
        return made

    def _joint(self, layer: AttentionLayer, bank: Bank, change: LowRankPart) -> JointPart:
        module: Any = attention(inside(self), layer)
        states = bank.states[layer.name]
        key, value = _changed(module.to_k, change, "k", states), _changed(module.to_v, change, "v", states)
        # Row 0 is nobody's, which no row with identity takes.
        rows = torch.where(bank.there, bank.there.cumsum(0), 0)
        key, value = (F.pad(x, (0, 0, 0, 0, 1, 0))[rows.to(x.device)] for x in (key, value))
        absent = ~bank.there.to(key.device)[:, None].expand(-1, key.shape[1])
        bias = torch.zeros_like(absent, dtype=key.dtype).masked_fill(absent, float("-inf"))
        return JointPart(key, value, bias=bias)

    @classmethod
    def convert(
        cls, tensors: Mapping[str, Tensor], layers: Sequence[AttentionLayer], *, source: str = ""
    ) -> tuple[AdapterConfig, dict[str, Tensor]]:
        """`pytorch_lora_weights.safetensors`: a LoRA of the UNet's attentions, see `read_lora`."""
        rank, targets, state = read_lora(tensors, layers, f"Arc2Face reference file {source}".rstrip())
        return ReferenceConfig(rank=rank, targets=targets), {f"lora.{key}": value for key, value in state.items()}


@dataclass(frozen=True, repr=False)
class Bank:
    """What the self-attentions saw of references.

    Attributes:
        states: by layer, (people, tokens, hidden) what keys and values are made of.
        there: (rows,) bool, which rows have a reference; people are the rows that do, in order.
        lora_scale: of the low-rank change.
    """

    states: Mapping[str, Tensor]
    there: Tensor
    lora_scale: float


def _changed(module: nn.Module, change: LowRankPart, name: Projection, x: Tensor) -> Tensor:
    return change.change(name, module(x), x, 1.0)


METHOD = Method(
    name="arc2face_reference",
    title="Arc2Face's reference adapter",
    bases=("Arc2Face's UNet",),
    recogniser="no face: latents of a photo, FFHQ's crop",
    norm=None,
    injections=("joint self-attention", "low-rank projections"),
    files="FoivosPar/Arc2Face: ref_adapter/pytorch_lora_weights.safetensors",
    verified="UNet output against a second UNet and diffusers' own LoRA, written from the authors' code; no golden",
    licence="MIT (model card of FoivosPar/Arc2Face)",
    adapter=Arc2FaceReferenceAdapter,
    paper="arXiv 2510.04706",
)
