"""One evaluation from its request to its files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from idgen.devices import resolve_dtype
from idgen.errors import IdgenError
from idgen.evaluation.cache import RowCache
from idgen.evaluation.claim import claim, settings_of
from idgen.evaluation.evidence import Captions, Evidence, Sheet, gather
from idgen.evaluation.flags import Findings, find_flags, reference_gap
from idgen.evaluation.identity import Scale, cosine_to, retrieve, retrieve_photos
from idgen.evaluation.judge import Judge, choose_judge
from idgen.evaluation.layouts import read_crowd, read_generated, read_lookalikes, read_references
from idgen.evaluation.material import Material, check_one_size, check_text
from idgen.evaluation.measures import take_figures
from idgen.evaluation.output import Outcome, write_files
from idgen.evaluation.processes import Processes
from idgen.evaluation.prospect import Prospect
from idgen.evaluation.protocol import Protocol, load_protocol
from idgen.evaluation.readers import FaceReader
from idgen.evaluation.results import Figure
from idgen.faces.torch_backend import FAMILY
from idgen.files import check_output

if TYPE_CHECKING:
    from idgen.faces import FaceEncoder

FEW = 10  # people, below which the bootstrap's intervals are known to be too narrow


@dataclass(frozen=True)
class Request:
    """What somebody wants evaluated.

    Attributes:
        source: `mini`, a pipeline's folder or hub id, or a folder of generated pictures.
        out: folder for report, figures, generated pictures and cache.
        protocol: name, or path of a YAML file.
        references: folder of the people's photos; none for a protocol that renders its people.
        training, lookalikes: folders of people of the training, and of people of the same appearance.
        judge: in place of the protocol's.
        same_judge: go on where the judge had a part in making the pictures.
        made_with, rewarded_by: recognisers that had a part, where the weights do not tell.
        measures: in place of the protocol's; of these one that can not be taken is an error.
        settings: `a.b=value` texts that replace settings of the protocol.
        prompts: file with a prompt per line, in place of the protocol's.
        base: Stable Diffusion 1.5 hub id or folder for published weights that need one.
        clip: folder of a CLIP model.
        cache: of readings and renders; by default out/cache.
        training_data: what `idgen synth` wrote for the training of the mini family.
    """

    source: str
    out: Path
    protocol: str = "mini"
    references: Path | None = None
    training: Path | None = None
    lookalikes: Path | None = None
    judge: str | None = None
    same_judge: bool = False
    made_with: str | None = None
    rewarded_by: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    prompts: Path | None = None
    base: str | None = None
    clip: str | None = None
    cache: Path | None = None
    training_data: Path | None = None
    seed: int = 0
    batch: int = 16
    device: str = "auto"
    dtype: str = "auto"
    workers: int | None = None

    @property
    def kept(self) -> Path:
        """Where readings and renders are kept."""
        return self.cache or self.out / "cache"


def evaluate(request: Request) -> Outcome | None:
    """Make the pictures where a pipeline is given, read them, take the figures, write the files.

    Under `accelerate launch` every process makes and reads a share, and the first one scores; the others return None.

    Raises:
        IdgenError: whatever is wrong with the input; where it is found out before a picture was made, nothing stays behind.
    """
    check_output(request.out, folder=True)
    check_text(request.source, "the name of what is evaluated")
    protocol = _protocol(request)
    if protocol.task == "verify":
        raise IdgenError(f"protocol {protocol.name!r} tests a recogniser, not pictures: see docs/evaluate.md")
    with _nothing_left_behind(request.out):
        processes = Processes.of_accelerate(request.device)
        device = processes.device(request.device)
        cache = RowCache(request.kept / "readings")
        who, material, captions = _prepare(request, protocol, cache, device, processes)
        evidence = gather(
            protocol,
            material,
            who,
            cache,
            device,
            seed=request.seed,
            batch=max(request.batch, 16),
            clip=request.clip,
            captions=captions,
            processes=processes,
        )
        sheet = take_figures(evidence, list(request.measures) or None)
        if not processes.main:
            return None
        findings = flag(evidence, sheet)
        return write_files(request.out, request.source, evidence, sheet, findings)


def flag(evidence: Evidence, sheet: Sheet) -> Findings:
    """Hold every picture against the person's real photos; adds the columns and the figure that come of it."""
    view, people = evidence.judge, evidence.people
    scores = _scores(view.made, view)
    maker = evidence.conditioning
    by_maker = _scores(maker.made, maker) if maker is not None and not evidence.who.same else None
    gallery = view.others.set if len(view.others.set.seen()) else view.references.set
    real = view.real.set.seen()
    mistaken = 1 - float(retrieve_photos(real).mean()) if len(real) > people else 1.0
    findings = find_flags(
        view.made.table,
        view.made.set,
        view.real.table,
        view.real.set,
        originals=evidence.originals,
        nearest=retrieve(view.made.set, gallery).nearest,
        real_mistaken=mistaken,
        judge_score=scores,
        conditioning_score=by_maker,
    )
    sheet.columns["correlation_to_nearest_photo"] = findings.copied_from.tolist()
    sheet.columns["flags"] = ["; ".join(names) for names in findings.per_image]
    if len(view.others.set.seen()):
        try:
            gap, found = reference_gap(view.made.set, view.references.set, view.others.set, Scale.of(view.real.set))
        except ValueError as error:
            sheet.not_run.setdefault("reference_gap", str(error))
        else:
            sheet.add(
                Figure(
                    "reference_gap",
                    "id_score to the nearest reference minus that to the nearest other photo (real photos: 0)",
                    gap,
                )
            )
            findings.flags += [found] if found else []
    return findings


def _prepare(
    request: Request, protocol: Protocol, cache: RowCache, device: torch.device, processes: Processes
) -> tuple[Judge, Material, Captions | None]:
    """Judge, people and generated pictures; everything that may be refused is, before the first picture is made."""
    from idgen.evaluation import built_in
    from idgen.evaluation.generate import generate, generate_captions, is_pipeline, load_source
    from idgen.evaluation.repair import check_jobs, repair

    rendered = protocol.layout == "rendered"
    if not rendered and request.references is None:
        raise IdgenError(f"protocol {protocol.name!r} needs photos of people: --references DIR")
    if rendered:
        material = Material(built_in.names(protocol), [], [])  # their pictures follow once nothing else can be refused
    else:
        assert request.references is not None
        material = read_references(request.references, protocol)
    crowd = read_crowd(request.training) if request.training is not None else None
    alike = read_lookalikes(request.lookalikes, material.people) if request.lookalikes is not None else None
    source, generated = None, []
    if is_pipeline(request.source):
        dtype = resolve_dtype(request.dtype, device)
        source = load_source(request.source, protocol, device, dtype, request.base)
    else:
        generated = read_generated(Path(request.source).expanduser(), material)
        check_one_size(generated)
    made_with = request.made_with or (source.recogniser if source else None)
    rewards = [*request.rewarded_by, *(source.rewards if source else ())]
    who = choose_judge(
        request.judge or protocol.judge, made_with, rewards, device=str(device), allow_same=request.same_judge
    )
    Prospect.of(request, protocol, replace(material, generated=generated), device).check(list(request.measures))
    renders: dict[str, Any] = {"cache": request.kept / "photos" if request.cache is None else request.cache}
    renders["workers"] = request.workers
    if rendered:
        with processes.main_first():
            material = built_in.render_people(protocol, training_data=request.training_data, **renders)
    material.generated = generated
    material.training = material.training if crowd is None else crowd
    material.lookalikes = material.lookalikes if alike is None else alike
    who = replace(who, remarks=(*who.remarks, *_doubts(request, protocol, who, made_with, len(material.people))))
    if rendered:
        encoders = [who.encoder, *([who.conditioning] if who.conditioning is not None else [])]
        built_in.leave_out_faceless(material, [FaceReader(encoder) for encoder in encoders], cache)
    captions = None
    if source is not None:
        encoder = _shower(source.recogniser, who, device)
        if protocol.identity_guidance and (material.jobs or encoder is who.encoder):
            raise IdgenError(
                f"protocol {protocol.name!r} asks for identity guidance, which is for generated pictures and by the"
                " recogniser that they are conditioned on, never by the judge: set identity_guidance=0"
            )
        check_jobs(material, protocol)
        claim(request.out, settings_of(request, protocol, material, source.fingerprint), processes)
        kept: dict[str, Any] = {"seed": request.seed, "batch": request.batch, "processes": processes}
        make = repair if material.jobs else generate
        material.generated = make(source, encoder, material, protocol, request.out / "images", **kept)
        wanted = request.measures or protocol.measures
        if request.source == "mini" and rendered and "prompt_words" in wanted:
            with processes.main_first():
                prompts, real = built_in.render_captions(protocol, **renders)
                pictures = generate_captions(prompts, request.out / "prompts", device, dtype, seed=request.seed)
            captions = Captions(prompts, pictures, real)
    return who, material, captions


def _shower(recogniser: str | None, who: Judge, device: torch.device) -> FaceEncoder:
    """Who embeds the references for the pipeline: its own recogniser. Where that is no encoder of ours (a pipeline that looks at
    crops) the judge's detector cuts them; a pipeline that reads embeddings refuses the judge's."""
    from idgen.faces import FaceEncoder
    from idgen.faces.insightface_backend import PACKS

    if who.conditioning is not None:
        return who.conditioning
    if recogniser in (*FAMILY, *PACKS):
        return FaceEncoder.from_pretrained(recogniser, device=device)
    return who.encoder


def _protocol(request: Request) -> Protocol:
    protocol = load_protocol(request.protocol, list(request.settings))
    if request.prompts is not None:
        try:
            lines = [line.strip() for line in request.prompts.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise IdgenError(f"cannot read the prompts {request.prompts}: {error}") from None
        if not any(lines):
            raise IdgenError(f"{request.prompts} holds no prompts: write one per line")
        protocol = protocol.model_copy(update={"prompts": [line for line in lines if line]})
    if protocol.layout == "rendered" and request.references is not None and protocol.task == "generate":
        # The mini protocol on photos of one's own: the figures that need rendered people are then not run, and say so.
        protocol = protocol.model_copy(update={"layout": "folders", "rendered": None})
    return protocol


def _doubts(request: Request, protocol: Protocol, who: Judge, made_with: str | None, people: int) -> list[str]:
    """What a reader must know of the people, and of measuring them by networks that know rendered ones only."""
    doubts = []
    if people < FEW:
        doubts.append(f"{people} people only: intervals over so few are too narrow, and rates among them too good")
    if request.references is not None and made_with not in FAMILY:
        better = {
            "judge": "--judge " + ("buffalo_l" if "antelopev2" in who.makers else "antelopev2"),
            "probe": "--set probe=false",
            "features": "--set features=inception",
        }
        blind = {
            "judge": (request.judge or protocol.judge) in FAMILY,
            "probe": protocol.probe,
            "features": protocol.features == "probe",
        }
        parts = [part for part, so in blind.items() if so]
        if parts:
            doubts.append(
                f"the photos are your own, and the mini family's networks ({', '.join(parts)}) know rendered people only: give"
                f" {' '.join(better[part] for part in parts)}, or --made-with mini where the mini family made the pictures"
            )
    return doubts


def _scores(pictures: Any, view: Any) -> torch.Tensor:
    """(n,) id_score of each picture by a view's own recogniser; NaN where there is nothing to compare with."""
    photos = view.others.set if len(view.others.set.seen()) else view.references.set
    try:
        scale = Scale.of(view.real.set)
    except ValueError:
        return torch.full((len(pictures.set),), torch.nan, dtype=torch.float64)
    return scale.score(cosine_to(pictures.set, photos))


@contextmanager
def _nothing_left_behind(out: Path) -> Iterator[None]:
    """An evaluation that is refused before it made a picture leaves no folder that was not there."""
    existed = out.exists()
    try:
        yield
    except IdgenError:
        if not existed and not (out / "images").exists():
            shutil.rmtree(out, ignore_errors=True)
        raise
