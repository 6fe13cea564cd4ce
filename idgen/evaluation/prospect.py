"""Whether the measures that were asked for can be taken, as far as that is known before the long work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from idgen.errors import IdgenError
from idgen.evaluation.identity_figures import NO_LOOKALIKES, NO_OTHERS, NO_TRAINING
from idgen.evaluation.material import Material
from idgen.evaluation.picture_figures import NO_CAPTIONS, NO_CLIP, NO_PROBE, NO_PROMPTS, NO_TARGETS, kernel_subset
from idgen.evaluation.protocol import Protocol
from idgen.evaluation.readers import EMBEDDING, InceptionReader, VisionReader
from idgen.evaluation.results import NotRun
from idgen.metrics.frechet import check_sample
from idgen.metrics.optional import MissingExtra, load_clip_score, load_lpips, load_rating

if TYPE_CHECKING:
    from idgen.evaluation.runner import Request


@dataclass(frozen=True)
class Prospect:
    """What an evaluation will have.

    Attributes:
        made: generated pictures.
        real: photos that they are held against as a set.
        targets: whether each picture has an original.
        prompts: whether each was asked for in words.
        others, training, lookalikes: whether there are such photos.
        captions: whether the mini family's text-to-face base will be asked for pictures.
        clip: folder of a CLIP model.
    """

    protocol: Protocol
    device: torch.device
    made: int
    real: int
    targets: bool
    prompts: bool
    others: bool
    training: bool
    lookalikes: bool
    captions: bool
    clip: str | None

    @classmethod
    def of(cls, request: Request, protocol: Protocol, material: Material, device: torch.device) -> Prospect:
        """By what was asked for and the people, who need not be rendered for that."""
        rendered, jobs, generated = protocol.rendered, material.jobs, material.generated
        shown = len(material.people) * max(1, len(protocol.prompts)) * protocol.images
        photos = len(jobs) or len(material.photos)
        if rendered is not None:
            photos = rendered.count * (protocol.references + rendered.others)
        return cls(
            protocol,
            device,
            made=len(generated) or len(jobs) or shown,
            real=photos,
            targets=bool(jobs),
            prompts=all(photo.prompt for photo in generated) if generated else bool(protocol.prompts),
            others=rendered is not None or bool(material.others),
            training=request.training is not None or bool(rendered and rendered.training),
            lookalikes=request.lookalikes is not None or bool(rendered and rendered.lookalikes),
            captions=request.source == "mini" and rendered is not None and protocol.probe,
            clip=request.clip,
        )

    def check(self, asked: list[str]) -> None:
        """Refuse what can not be taken. Of the protocol's own measures only the features' folder is looked for: what else
        they lack is a line in the report.

        Args:
            asked: measures that the user named; none for the protocol's.

        Raises:
            IdgenError: says which can not be taken, and why.
        """
        for name in asked or [name for name in self.protocol.measures if name in ("fid", "kid")]:
            try:
                CHECK.get(name, _nothing)(self)
            except (NotRun, MissingExtra) as reason:
                if asked:
                    raise IdgenError(f"{name} can not be measured: {reason}") from None

    @cached_property
    def width(self) -> int:
        """Features of a picture, by the protocol's network."""
        name = self.protocol.features
        if name == "judge":
            return EMBEDDING
        if name == "probe":
            from idgen.models.probe import load_probe

            if not self.protocol.probe or self.targets:
                raise NotRun(NO_PROBE)
            return load_probe(device=self.device).pose.in_features
        return (InceptionReader(self.device) if name == "inception" else VisionReader(Path(name), self.device)).width


def _nothing(_: Prospect) -> None:
    pass


def _needs(attribute: str, why: str) -> Callable[[Prospect], None]:
    def check(prospect: Prospect) -> None:
        if not getattr(prospect, attribute):
            raise NotRun(why)

    return check


def _same_appearance(prospect: Prospect) -> None:
    _needs("lookalikes", NO_LOOKALIKES)(prospect)
    _needs("others", NO_OTHERS)(prospect)


def _clip_t(prospect: Prospect) -> None:
    _needs("prompts", NO_PROMPTS)(prospect)
    if prospect.clip is None:
        raise NotRun(NO_CLIP)
    load_clip_score(prospect.clip, prospect.device)


def _fid(prospect: Prospect) -> None:
    try:
        check_sample(prospect.width, prospect.made, prospect.real)
    except ValueError as error:
        raise NotRun(str(error)) from None


def _kid(prospect: Prospect) -> None:
    assert prospect.width
    kernel_subset(prospect.made, prospect.real)


CHECK: dict[str, Callable[[Prospect], object]] = {
    "verification": _needs("others", NO_OTHERS),
    "nearest_training_person": _needs("training", NO_TRAINING),
    "same_appearance": _same_appearance,
    "landmarks": _needs("targets", NO_TARGETS),
    "psnr": _needs("targets", NO_TARGETS),
    "ssim": _needs("targets", NO_TARGETS),
    "fid": _fid,
    "kid": _kid,
    "lpips": lambda prospect: load_lpips(prospect.device),
    "niqe": lambda prospect: load_rating("niqe", prospect.device),
    "musiq": lambda prospect: load_rating("musiq", prospect.device),
    "clip_t": _clip_t,
    "prompt_words": _needs("captions", NO_CAPTIONS),
}
