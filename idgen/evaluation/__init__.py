"""`idgen evaluate`: whether pictures show the people that they were made of, measured as a reviewer would want it.

    from idgen.evaluation import Request, evaluate
    outcome = evaluate(Request("generated", Path("report"), protocol="mini", references=Path("people")))

On arrays, without files: `FaceSet`, `Scale`, `cosine_to`, `pair_scores`, `retrieve` here and everything in `idgen.metrics`.
In a training: `EvaluationCallback`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idgen.evaluation.callback import EvaluationCallback
    from idgen.evaluation.identity import FaceSet, Scale, cosine_to, pair_scores, per_person, retrieve
    from idgen.evaluation.output import Outcome
    from idgen.evaluation.protocol import Protocol, load_protocol, protocol_names
    from idgen.evaluation.runner import Request, evaluate

__all__ = [
    "EvaluationCallback",
    "FaceSet",
    "Outcome",
    "Protocol",
    "Request",
    "Scale",
    "cosine_to",
    "evaluate",
    "load_protocol",
    "pair_scores",
    "per_person",
    "protocol_names",
    "retrieve",
]

_LAZY = {
    **dict.fromkeys(("FaceSet", "Scale", "cosine_to", "pair_scores", "per_person", "retrieve"), "identity"),
    **dict.fromkeys(("Protocol", "load_protocol", "protocol_names"), "protocol"),
    **dict.fromkeys(("Request", "evaluate"), "runner"),
    "Outcome": "output",
    "EvaluationCallback": "callback",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'idgen.evaluation' has no attribute {name!r}")
    value = getattr(import_module(f"idgen.evaluation.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
