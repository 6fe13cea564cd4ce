"""The measures by name, and how they are taken: each one is in the report, or the reason why it is not."""

from __future__ import annotations

from collections.abc import Callable

from idgen.errors import IdgenError
from idgen.evaluation import identity_figures as who
from idgen.evaluation import picture_figures as how
from idgen.evaluation.evidence import Evidence, Sheet
from idgen.evaluation.protocol import MEASURES
from idgen.evaluation.results import NotRun
from idgen.metrics.optional import MissingExtra

TAKE: dict[str, Callable[[Evidence, Sheet], None]] = {
    "identity": who.identity,
    "verification": who.verification,
    "retrieval": who.retrieval,
    "nearest_training_person": who.nearest_training_person,
    "same_appearance": who.same_appearance,
    "detection": who.detection,
    "diversity": how.diversity,
    "sharpness": how.sharpness,
    "landmarks": how.landmarks,
    "psnr": how.psnr_to_target,
    "ssim": how.ssim_to_target,
    "fid": how.fid,
    "kid": how.kid,
    "lpips": how.lpips,
    "niqe": how.niqe,
    "musiq": how.musiq,
    "clip_t": how.clip_t,
    "prompt_words": how.prompt_words,
}


def take_figures(evidence: Evidence, asked: list[str] | None = None) -> Sheet:
    """Take the protocol's measures, or those asked for.

    Args:
        asked: names of measures that the user wants: of these one that can not be taken is an error, where one of the
            protocol's is a line in the report.

    Raises:
        IdgenError: a measure that was asked for can not be taken; says why.
    """
    sheet = Sheet()
    chosen = asked if asked is not None else list(evidence.protocol.measures)
    for name in MEASURES:
        if name not in chosen:
            sheet.skip(
                name,
                "not among the measures asked for" if asked else f"not part of protocol {evidence.protocol.name!r}",
            )
            continue
        try:
            TAKE[name](evidence, sheet)
        except (NotRun, MissingExtra) as reason:
            if asked is not None:
                raise IdgenError(f"{name} can not be measured: {reason}") from None
            sheet.skip(name, str(reason))
    return sheet
