"""What a few steps of training for one person change in a PVA model: small enough to keep one for everybody.

For Stable Diffusion 2 the authors keep 353 MB a person (all of `attn2`) or 152 MB (visual attention alone). Here a change is
kept in 4 bits a number with a scale for each row, 19 MB in all, and is off by 7 to 9 % of its size (measured on the mini family;
thin matrices of as many bytes are off by more), or is made of thin matrices from the start (LoRA, arXiv 2106.09685: 7 MB).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from idgen.adapters.pva.adapter import PVAAdapter
from idgen.checkpoint import load_weights, save_weights
from idgen.errors import IdgenError
from idgen.headers import PERSON, require_format

CODES, SCALES = ".codes", ".scales"
FINGERPRINT_VALUES = 64
ROUNDING = 2**-8  # bfloat16 moves a value by half of that at most
LORA = "unet."  # begins the names of LoRA's weights
PEFT_NAME = "idgen_person"
# LoRA is on the text attention's own projections, all of which the authors' other variant (CrossQKV) trains.
LORA_TARGETS = r".*\.attn2\.(to_q|to_k|to_v|to_out\.0)"

Variant = Literal["visual", "lora"]


@dataclass(frozen=True, repr=False)
class PersonWeights:
    """The change of a PVA model for one person. It is made of their photos: treat the file as you would those.

    Attributes:
        variant: `"visual"`, a change of the attention to visual tokens; `"lora"`, LoRA on the text attention.
        changes: of the adapter's parameters by name, matrices as `compress` writes them; and LoRA's weights as `unet.name`.
        model: `fingerprint` of the adapter that was trained.
    """

    variant: Variant
    changes: Mapping[str, Tensor]
    model: str

    def __repr__(self) -> str:
        size = sum(value.nbytes for value in self.changes.values())
        return f"PersonWeights({self.variant}, {size / 1e6:.1f} MB)"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a `.safetensors` file, whole or not at all."""
        save_weights(
            path, self.changes, {"format": PERSON, "method": "pva", "variant": self.variant, "model": self.model}
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PersonWeights:
        """
        Raises:
            IdgenError: the file is missing, damaged, or something else.
        """
        advice = f"{path} holds no person's weights: `idgen personalise` writes them"
        metadata = require_format(path, PERSON, advice)
        if metadata.get("variant") not in get_args(Variant):
            raise IdgenError(advice)
        # Training that changes nothing is possible.
        tensors = load_weights(path, allow_empty=True)
        return cls(cast(Variant, metadata["variant"]), tensors, metadata.get("model", ""))


def fingerprint(adapter: PVAAdapter) -> str:
    """Tells one trained adapter from another, in any precision: some of its values, for `made_by`."""
    return " ".join(f"{value:.6g}" for value in _values(adapter).tolist())


def made_by(person: PersonWeights, adapter: PVAAdapter) -> bool:
    """Whether a person's weights were trained with this adapter, in whichever precision either of them was."""
    words, own = person.model.split(), _values(adapter)
    if len(words) == 1:  # a file of before: the hash of the values in half precision
        queries = adapter.transform_network.q_tokens.detach().cpu().half().contiguous()
        return words[0] == hashlib.sha256(queries.numpy().tobytes()).hexdigest()[:16]
    try:
        theirs = torch.tensor([float(word) for word in words])
    except ValueError:
        return False
    return theirs.shape == own.shape and torch.allclose(theirs, own, rtol=ROUNDING, atol=1e-6)


def _values(adapter: PVAAdapter) -> Tensor:
    return adapter.transform_network.q_tokens.detach().flatten()[:FINGERPRINT_VALUES].float().cpu()


def compress(name: str, change: Tensor) -> dict[str, Tensor]:
    """A change of a weight by what it is stored as: two numbers a byte of -7 to 7 times the scale of their row; vectors whole."""
    if change.ndim != 2:
        return {name: change.float()}
    scales = change.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / 7
    steps = (change / scales).round().to(torch.int16) + 8
    even = torch.nn.functional.pad(steps, (0, steps.shape[1] % 2))
    return {name + CODES: (even[:, ::2] * 16 + even[:, 1::2]).to(torch.uint8), name + SCALES: scales[:, 0]}


def expand(changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole changes of the adapter's parameters by their names; a matrix of odd width has a column more."""
    whole = {}
    for name, value in changes.items():
        if name.endswith(CODES):
            scales = changes[name.removesuffix(CODES) + SCALES]
            steps = torch.stack([value // 16, value % 16], -1).flatten(1).float() - 8
            whole[name.removesuffix(CODES)] = steps * scales[:, None]
        elif not name.endswith(SCALES) and not name.startswith(LORA):
            whole[name] = value
    return whole


def apply_person(adapter: PVAAdapter, unet: UNet2DConditionModel, person: PersonWeights) -> dict[str, Tensor]:
    """Change a model for a person; returns what the adapter's parameters were, for `remove_person`.

    Raises:
        IdgenError: the weights belong to another model.
    """
    if not made_by(person, adapter):
        raise IdgenError("these weights of a person were made with another PVA model: personalise again with this one")
    own = dict(adapter.named_parameters())
    whole = expand(person.changes)
    lora = {name.removeprefix(LORA): value for name, value in person.changes.items() if name.startswith(LORA)}
    whole = {name: value[..., : own[name].shape[-1]] if name in own else value for name, value in whole.items()}
    wrong = [name for name, value in whole.items() if name not in own or own[name].shape != value.shape]
    if wrong:
        raise IdgenError(f"these weights of a person do not fit this PVA model: {wrong[0]}")
    if lora:
        add_lora(unet, next(value for name, value in lora.items() if "lora_A" in name).shape[0])
        _fill_lora(unet, lora)
    before = {name: own[name].detach().clone() for name in whole}
    with torch.no_grad():
        for name, value in whole.items():
            own[name].copy_(own[name].float() + value.to(own[name].device))
    return before


def remove_person(adapter: PVAAdapter, unet: UNet2DConditionModel, before: Mapping[str, Tensor]) -> None:
    """Undo `apply_person`, to the bit."""
    own = dict(adapter.named_parameters())
    with torch.no_grad():
        for name, value in before.items():
            own[name].copy_(value)
    remove_lora(unet)


@dataclass(eq=False, repr=False)
class Personal:
    """Whom a model is personalised for. Pipelines that share the model share this too."""

    person: PersonWeights | None = None
    _before: dict[str, Tensor] | None = None

    def change(self, adapter: PVAAdapter, unet: UNet2DConditionModel, person: PersonWeights) -> None:
        """As `apply_person`, in the place of whoever was there before."""
        self.undo(adapter, unet)
        self._before = apply_person(adapter, unet, person)
        self.person = person

    def undo(self, adapter: PVAAdapter, unet: UNet2DConditionModel) -> None:
        """The model is as it was, to the bit."""
        if self._before is not None:
            remove_person(adapter, unet, self._before)
        self.person = self._before = None


def add_lora(unet: UNet2DConditionModel, rank: int) -> None:
    """peft's LoRA layers on the UNet's text attention, which do nothing yet."""
    from peft import LoraConfig

    others = list(unet.active_adapters()) if getattr(unet, "peft_config", None) else []
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_TARGETS), PEFT_NAME)
    unet.set_adapter([*others, PEFT_NAME])  # add_adapter silences all others
    for _, value in lora_parameters(unet):
        value.data = value.data.to(unet.dtype)
        value.requires_grad_(False)


def lora_parameters(unet: UNet2DConditionModel) -> list[tuple[str, torch.nn.Parameter]]:
    """Their weights and names in the UNet, without those of other LoRAs."""
    return [(name, value) for name, value in unet.named_parameters() if f".{PEFT_NAME}." in name]


def remove_lora(unet: UNet2DConditionModel) -> None:
    """Take them away; a UNet without other LoRAs is then made of the modules that it was."""
    if PEFT_NAME in getattr(unet, "peft_config", {}):
        unet.delete_adapters(PEFT_NAME)
        if not getattr(unet, "peft_config", None):
            unet.unload_lora()


def lora_weights(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Their weights, by the names that `PersonWeights.changes` has."""
    from peft.utils import get_peft_model_state_dict

    state: dict[str, Any] = get_peft_model_state_dict(unet, adapter_name=PEFT_NAME)
    return {LORA + name: value.detach().float().cpu().clone() for name, value in state.items()}


def _fill_lora(unet: UNet2DConditionModel, weights: Mapping[str, Tensor]) -> None:
    from peft.utils import set_peft_model_state_dict

    result = set_peft_model_state_dict(unet, dict(weights), adapter_name=PEFT_NAME)
    if result.unexpected_keys:
        remove_lora(unet)
        raise IdgenError(f"these weights of a person do not fit this UNet: {result.unexpected_keys[0]}")
