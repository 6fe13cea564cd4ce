"""Finetuning with a handful of weights: LoRA, DoRA, OFT, BOFT, HRA, LoHa and LoKr over UNets and text encoders, through peft."""

from idgen.finetune.adapters import (
    activate,
    active_adapters,
    adapter_parameters,
    add_adapter,
    remove_adapter,
)
from idgen.finetune.config import FinetuneConfig
from idgen.finetune.export import export_diffusers, export_merged, export_peft
from idgen.finetune.files import describe, load_adapter, save_adapter
from idgen.finetune.kohya import load_kohya, save_kohya
from idgen.finetune.merging import Merge, merge
from idgen.finetune.strength import set_strength, strength

__all__ = [
    "FinetuneConfig",
    "Merge",
    "activate",
    "active_adapters",
    "adapter_parameters",
    "add_adapter",
    "describe",
    "export_diffusers",
    "export_merged",
    "export_peft",
    "load_adapter",
    "load_kohya",
    "merge",
    "remove_adapter",
    "save_adapter",
    "save_kohya",
    "set_strength",
    "strength",
]
