"""What FSDP and DeepSpeed need beside accelerate's own configuration of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from idgen.errors import IdgenError
from idgen.train.config import TrainConfig


def prepare_deepspeed(accelerator: Accelerator, config: TrainConfig) -> None:
    """DeepSpeed asks for the batch size, which accelerate would read off a data loader."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.train_batch_size
        plugin.deepspeed_config["gradient_clipping"] = config.max_grad_norm


def refuse_sharding(accelerator: Accelerator, shardable: bool) -> None:
    """
    Raises:
        IdgenError: FSDP for a training of a few weights beside a model that they act in.
    """
    if accelerator.distributed_type == DistributedType.FSDP and not shardable:
        raise IdgenError(
            "this trains a small adapter beside a frozen model, of which FSDP has nothing to shard: use DDP or DeepSpeed"
            " (ZeRO 1 or 2) in accelerate's config"
        )
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise IdgenError("this is FSDP 1: set fsdp_version: 2 in accelerate's config")


@contextmanager
def whole(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Sharded weights are put together on every process meanwhile, so that a module is used and saved as ever."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=None):
            yield
    elif accelerator.distributed_type == DistributedType.FSDP:
        from torch.distributed.fsdp import FSDPModule

        parts: list[Any] = [part for part in model.modules() if isinstance(part, FSDPModule)]
        # Put together here, where every process takes part: one that saves does so alone.
        parameters: Iterator[tuple[str, Any]] = model.named_parameters()
        values = {name: parameter.full_tensor() for name, parameter in parameters}
        handles: list[Any] = [
            module.register_state_dict_post_hook(_put(name, values)) for name, module in model.named_modules()
        ]
        # What a forward pass shards again is put together once more.
        handles += [part.register_forward_hook(lambda module, *_: module.unshard()) for part in parts]
        for part in parts:
            part.unshard()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for part in parts:
                part.reshard()
    else:
        yield


def _put(name: str, values: Mapping[str, Tensor]) -> Callable[..., None]:
    """A hook that puts whole tensors in the place of a module's own sharded ones."""

    def hook(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for own, parameter in module.named_parameters(recurse=False):
            if parameter is not None:
                state[prefix + own] = values[f"{name}.{own}" if name else own]

    return hook
