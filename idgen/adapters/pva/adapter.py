"""PVA's parallel visual attention behind the adapter contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from idgen.adapters.base import Adapter, AdapterConfig
from idgen.adapters.embeddings import People, references
from idgen.adapters.injections.parts import JointPart, Part
from idgen.adapters.injections.tokens import KeyValue, key_values, rename
from idgen.adapters.layers import AttentionLayer, attention
from idgen.adapters.pva.transform import TransformNetwork
from idgen.errors import IdgenError
from idgen.models.published import part


@dataclass(frozen=True)
class PVAConfig(AdapterConfig):
    """Sizes of the transform network, see `TransformNetwork`."""

    recogniser: str = "ms1mv3_r50"
    in_dim: int = 512
    out_dim: int = 1024
    num_q_token: int = 10
    num_layer: int = 4
    feedforward: int = 2048


class PVAAdapter(Adapter):
    """PVA (Xu et al., WACV 2024, arXiv 2312.03556; github.com/AtlantixJJ/PVA-CelebAHQ-IDI), for inpainting UNets.

    `condition(identity)` with RAW embeddings of any number of references. Visual tokens share one softmax with the text, with
    projections of their own. `modifier` is the learned vector that stands for the person in the prompt ("photo of a <new1>
    person"); a pipeline adds it there.
    """

    method = "pva"
    config_class = PVAConfig

    def __init__(self, config: PVAConfig, layers: Sequence[AttentionLayer]) -> None:
        super().__init__(config, layers)
        sizes = (config.in_dim, config.out_dim, config.num_q_token, config.num_layer, config.feedforward)
        self.transform_network = TransformNetwork(*sizes)
        self.kv = key_values(layers, config.out_dim)
        self.query: Any = nn.ModuleDict(
            {str(layer.index): nn.Linear(layer.hidden, layer.hidden, bias=False) for layer in layers if layer.cross}
        )
        context = next(layer.context for layer in layers if layer.cross)
        self.modifier = nn.Parameter(torch.zeros(context))

    @classmethod
    def for_unet(cls, unet: UNet2DConditionModel, config: AdapterConfig) -> PVAAdapter:
        """A fresh transform network; attention to visual tokens begins as the UNet's own attention to text."""
        adapter = super().for_unet(unet, config)
        for layer in adapter.layers:
            if layer.cross:
                own, kv = attention(unet, layer), cast(KeyValue, adapter.kv[str(layer.index)])
                pairs = ((adapter.query[str(layer.index)], own.to_q), (kv.to_k, own.to_k), (kv.to_v, own.to_v))
                for ours, theirs in pairs:
                    if ours.weight.shape == cast(nn.Linear, theirs).weight.shape:
                        ours.weight.data.copy_(cast(nn.Linear, theirs).weight)
        return adapter

    def embed(self, identity: People, *, visual_null: bool = False, shown: Tensor | None = None) -> tuple[Tensor, ...]:
        """
        Args:
            identity: one person or a list of them; people of one batch may have different numbers of references.
            visual_null: whether guidance compares with the same visual tokens and other text (the authors' way for text control)
                rather than with text alone (theirs for inpainting).
            shown: (people,) bool, whose tokens are looked at at all, for trainings that drop some; all by default.
        """
        config: PVAConfig = self.config
        rows = references(identity, norm="raw", recogniser=config.recogniser, dim=config.in_dim)
        weight = self.transform_network.q_tokens
        if len({len(row) for row in rows}) == 1:
            tokens = self.transform_network(torch.stack(rows).to(weight))
        else:  # the transformer has no padding
            tokens = torch.cat([self.transform_network(row[None].to(weight)) for row in rows])
        there = torch.ones(len(tokens), 1, 1).to(tokens)
        if shown is not None:
            there = there * shown.to(tokens)[:, None, None]
        return tokens, there, torch.full_like(there, float(visual_null))

    def null(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Nobody is absence, not tokens of zeros: a row that is marked as not to be looked at. With `visual_null` everybody."""
        tokens, shown, visual_null = inputs
        if visual_null.any():
            return inputs
        return tokens[:1], torch.zeros_like(shown[:1]), visual_null[:1]

    def project(self, *inputs: Tensor) -> Tensor:
        """Tokens with a last channel that says whether they are there."""
        tokens, shown, _ = inputs
        return torch.cat([tokens, shown.expand(-1, tokens.shape[1], 1)], -1)

    def parts(self, tokens: Tensor) -> dict[str, list[Part]]:
        """Keys in the softmax of every cross-attention."""
        tokens, shown = tokens[..., :-1], tokens[..., -1]
        bias = torch.zeros_like(shown).masked_fill(shown == 0, float("-inf")).detach() if (shown == 0).any() else None
        made: dict[str, list[Part]] = {}
        for layer in self.layers:
            if layer.cross:
                key, value = self.kv[str(layer.index)](tokens)
                made[layer.name] = [JointPart(key, value, query=self.query[str(layer.index)].weight, bias=bias)]
        return made

    @classmethod
    def convert(
        cls,
        tensors: Mapping[str, Tensor],
        layers: Sequence[AttentionLayer],
        *,
        source: str = "",
        own_attention_too: bool = False,
    ) -> tuple[AdapterConfig, dict[str, Tensor]]:
        """`FPIP.bin`: {'modifier_vec', 'transform_network': ..., 'unet': {'<layer>.to_visual_q.weight': ...}}.

        A recogniser that was tuned with it ('face_net') is left to whoever makes the identities.

        Args:
            own_attention_too: that the caller loads the UNet's own text attention where the file has it (`own_attention`).
        """
        what = f"PVA file {source}".rstrip()
        changed = own_attention(tensors)
        if changed and not own_attention_too:
            raise IdgenError(
                f"{what} also changes the UNet's own text attention ({len(changed)} weights), which is no part of an adapter:"
                " PVAInpaintPipeline loads both"
            )
        own = {key: value for key, value in tensors.items() if not key.startswith("face_net.")}
        own = {key: value for key, value in own.items() if key.removeprefix("unet.") not in changed}
        network = part(own, "transform_network.")
        names = {f"transform_network.{key}": f"transform_network.{key}" for key in network}
        names["modifier_vec"] = "modifier"
        for layer in layers:
            if layer.cross:
                published = f"unet.{layer.name}.to_visual_"
                names[f"{published}q.weight"] = f"query.{layer.index}.weight"
                for letter in ("k", "v"):
                    names[f"{published}{letter}.weight"] = f"kv.{layer.index}.to_{letter}.weight"
        return PVAConfig(recogniser=PVAConfig.recogniser, **TransformNetwork.sizes(network, what)), rename(
            own, names, what
        )


def own_attention(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's own text attention in a published file, by the UNet's names: there where all of `attn2` was tuned (CrossQKV)."""
    unet = part(tensors, "unet.")
    return {key: value for key, value in unet.items() if ".attn2." in key and ".to_visual_" not in key}
