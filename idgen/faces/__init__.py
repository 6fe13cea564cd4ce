"""Photos -> Identity: detection, alignment, recognisers.

Names are resolved when they are first used, so that a training that only aligns does not load the detectors.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idgen.faces.align import ffhq_crop, norm_crop
    from idgen.faces.align_torch import ffhq_crop_torch, norm_crop_torch
    from idgen.faces.detection import Face
    from idgen.faces.encoder import FaceEncoder

__all__ = ["Face", "FaceEncoder", "ffhq_crop", "ffhq_crop_torch", "norm_crop", "norm_crop_torch"]

_LAZY = {
    "Face": "idgen.faces.detection",
    "FaceEncoder": "idgen.faces.encoder",
    "ffhq_crop": "idgen.faces.align",
    "ffhq_crop_torch": "idgen.faces.align_torch",
    "norm_crop": "idgen.faces.align",
    "norm_crop_torch": "idgen.faces.align_torch",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'idgen.faces' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
