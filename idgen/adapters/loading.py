"""Loads an adapter without being told its method: the file says."""

from __future__ import annotations

import os
from typing import Any

from diffusers import UNet2DConditionModel

from idgen.adapters.base import Adapter
from idgen.adapters.registry import adapter_class, methods
from idgen.conversion import find_weights
from idgen.errors import IdgenError
from idgen.headers import ADAPTER, MEANINGS, read_header
from idgen.inspection import inspect_weights


def load_adapter(path: str | os.PathLike[str], unet: UNet2DConditionModel, **options: Any) -> Adapter:
    """The adapter in a published file, in one that `idgen convert` wrote, or in one that `Adapter.save` wrote.

    Args:
        path: a file, or `owner/name@revision:path/in/it` on the hub.
        unet: only looked at: it says which layers there are.
        options: `dtype`, and what the method cannot read off a published file; see its `convert`.
    Raises:
        IdgenError: as `Adapter.from_pretrained`, or the file is no adapter's.
    """
    file = find_weights(path)
    metadata = read_header(file)
    if metadata.get("format") == ADAPTER:
        name = metadata.get("method", "")
        if name not in methods():
            raise IdgenError(f"{path} is an adapter of the method {name!r}, and there are {', '.join(methods())}")
    else:
        report = inspect_weights(file)
        if report.method is None or report.method not in methods():
            meaning = MEANINGS.get(metadata.get("format", ""))
            what = meaning or f"{report.title}: `idgen convert --inspect` says more"
            raise IdgenError(f"{path} is no identity adapter but {what}")
        name = report.method
    return adapter_class(name).from_pretrained(file, unet, **options)
