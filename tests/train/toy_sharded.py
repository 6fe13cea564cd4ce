"""The toy under FSDP 2 on CPUs.

accelerate turns FSDP on for accelerators alone, though torch's own works on a CPU: here its state is told to. Nothing else
differs from what `accelerate launch --config_file` with an FSDP section does.
"""

from __future__ import annotations

import os
from typing import Any

from accelerate import FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from idgen.train.loop import run
from tests.train.toy import Toy, ToyConfig

_begin = AcceleratorState.__init__


def _sharded(self: AcceleratorState, *arguments: Any, **more: Any) -> None:
    fresh = "distributed_type" not in AcceleratorState._shared_state
    _begin(self, *arguments, **more)
    if fresh:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy=os.environ.get("FSDP_POLICY", "no_wrap"),
            cpu_ram_efficient_loading=False,
            state_dict_type="SHARDED_STATE_DICT",
            min_num_params=100,
        )


AcceleratorState.__init__ = _sharded  # type: ignore[method-assign]

if __name__ == "__main__":
    run(Toy, ToyConfig)
