"""The diffusers pipelines, one file each: `from idgen.pipelines import Arc2FacePipeline`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "idgen.pipelines":
    # From the repository's root this folder would import a second time, as `pipelines`, with classes of its own.
    raise ImportError("import idgen.pipelines, not pipelines (after `pip install -e .`)")

if TYPE_CHECKING:
    from idgen.pipelines.arc2face import Arc2FacePipeline
    from idgen.pipelines.fact import FACTControlNetPipeline, FACTPipeline
    from idgen.pipelines.instantid import InstantIDImg2ImgPipeline, InstantIDPipeline
    from idgen.pipelines.pva import PVAInpaintPipeline
    from idgen.pipelines.reference_restore import ReferenceRestorePipeline
    from idgen.pipelines.wplus import WPlusPipeline

__all__ = [
    "Arc2FacePipeline",
    "FACTControlNetPipeline",
    "FACTPipeline",
    "InstantIDImg2ImgPipeline",
    "InstantIDPipeline",
    "PVAInpaintPipeline",
    "ReferenceRestorePipeline",
    "WPlusPipeline",
]

_LAZY = {
    "Arc2FacePipeline": "idgen.pipelines.arc2face",
    "FACTControlNetPipeline": "idgen.pipelines.fact",
    "FACTPipeline": "idgen.pipelines.fact",
    "InstantIDImg2ImgPipeline": "idgen.pipelines.instantid",
    "InstantIDPipeline": "idgen.pipelines.instantid",
    "PVAInpaintPipeline": "idgen.pipelines.pva",
    "ReferenceRestorePipeline": "idgen.pipelines.reference_restore",
    "WPlusPipeline": "idgen.pipelines.wplus",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'idgen.pipelines' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
