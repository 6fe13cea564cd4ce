"""The figures about who is shown."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from idgen.evaluation.evidence import Evidence, Sheet, View
from idgen.evaluation.identity import (
    FaceSet,
    Pairs,
    Scale,
    cosine_to,
    nearest_training,
    pair_scores,
    per_person,
    photo_pairs,
    pick_right,
    retrieve,
    retrieve_photos,
    retrieve_single,
)
from idgen.evaluation.results import Figure, NotRun
from idgen.metrics.bootstrap import bootstrap_means
from idgen.metrics.identity import found, unit

NO_OTHERS = "no photos of the people besides the references: add some, more than the protocol's `references`"
NO_TRAINING = "no photos of the people of the training: --training DIR with a folder for each"
NO_LOOKALIKES = "no photos of people of the same appearance: --lookalikes DIR with NAME/RIVAL/*.png"


def identity(evidence: Evidence, sheet: Sheet) -> None:
    """id_score and cosines to the other photos and to the references, by the judge; and by the conditioning recogniser."""
    view, seed = evidence.judge, evidence.seed
    made = view.made.set
    to_references = cosine_to(made, view.references.set)
    sheet.columns["cosine_to_references"] = to_references.tolist()
    real = _real_cosines(view)
    sheet.add(
        Figure.of(
            "cosine_to_references",
            "cosine to the references themselves",
            bootstrap_means(per_person(to_references, made), seed=seed),
        )
    )
    _to_originals(evidence, sheet)
    if not len(view.others.set.seen()):
        for name in ("id_score", "cosine_to_others", "reference_gap"):
            sheet.skip(name, NO_OTHERS)
    else:
        to_others = cosine_to(made, view.others.set)
        sheet.columns["cosine_to_others"] = to_others.tolist()
        own = per_person(to_others, made)
        known = ~own.isnan()
        sheet.add(
            Figure.of(
                "cosine_to_others",
                "cosine to the person's other photos",
                bootstrap_means(own[known], seed=seed),
                real,
                _over(known),
            )
        )
    scale = _scale(view)
    if scale is None:
        why = "needs two photos of a person, to know how alike two photos of one person are"
        for name in ("id_score", "id_score_to_references", "reference_gap"):
            sheet.not_run.setdefault(name, why)
        return
    everybody = torch.ones(evidence.people, dtype=torch.bool)
    if len(view.others.set.seen()):
        chosen = known & scale.valid
        title = "id_score to the other photos (0 a stranger, 1 another photo)"
        interval = scale.interval(own, known, seed)
        sheet.add(Figure.of("id_score", title, interval, _baselines(evidence, scale), _over(chosen)))
        sheet.columns["id_score"] = scale.score(to_others).tolist()
    interval = scale.interval(per_person(to_references, made), everybody, seed)
    sheet.add(Figure.of("id_score_to_references", "id_score to the references themselves", interval))
    _by_maker(evidence, sheet)


def verification(evidence: Evidence, sheet: Sheet) -> None:
    """TAR at FAR: pictures against other photos, thresholds by impostors; and at the thresholds of real photos."""
    view = evidence.judge
    if not len(view.others.set.seen()):
        raise NotRun(NO_OTHERS)
    made = pair_scores(view.made.set, view.others.set, seed=evidence.seed)
    real = photo_pairs(view.others.set)
    sheet.curves["roc"] = {"generated": made, "real photos": real}
    for far in evidence.protocol.fars:
        name = f"tar_at_far_{far:.0e}"
        try:
            point = made.curve([far])[0]
        except ValueError as error:
            sheet.skip(name, str(error))
            continue
        accepted, there = made.accepted(point.threshold, evidence.people)
        beside = {}
        if len(real.genuine) and len(real.impostor) * far >= 1:
            truth = real.curve([far])[0]
            fixed, _ = made.accepted(truth.threshold, evidence.people)
            beside = {"real photos": truth.tar, "generated at the real photos' threshold": float(fixed[there].mean())}
        interval = bootstrap_means(accepted[there], seed=evidence.seed)
        sheet.add(Figure.of(name, f"TAR at FAR {far:g}", interval, beside, _over(there)))


def retrieval(evidence: Evidence, sheet: Sheet) -> None:
    """Rank-1 among the people: photos pooled per person, and one photo per person."""
    view, seed = evidence.judge, evidence.seed
    gallery, where = _gallery(view)
    made, found = view.made.set, retrieve(view.made.set, gallery)
    names = evidence.material.people
    sheet.columns["nearest_person"] = [names[index] if index >= 0 else "" for index in found.nearest.tolist()]
    sheet.columns["cosine_to_nearest_person"] = found.cosine.tolist()
    sheet.columns["rank_one"] = [int(value) for value in found.right.tolist()]
    photos = view.real.set.seen()
    real = {"real photos": float(retrieve_photos(photos).mean())} if len(photos) > evidence.people else {}
    enrolled = int((gallery.seen().counts() > 0).sum())
    among = f"rank-1 among {enrolled} people, {where}"
    for name, title, right, beside in (
        ("rank_one_pooled", f"{among} of each pooled", found.right, real),
        ("rank_one", f"{among}, one per person enrolled", retrieve_single(made, gallery), {}),
    ):
        interval = bootstrap_means(per_person(right, made), seed=seed)
        sheet.add(Figure.of(name, title, interval, beside | {"guessing": 1 / enrolled}))


def nearest_training_person(evidence: Evidence, sheet: Sheet) -> None:
    """How much more alike than photos of the most similar person of the training: below that, a likeness proves nothing."""
    view = evidence.judge
    if view.training is None:
        raise NotRun(NO_TRAINING)
    finders = [
        ("", "found by the conditioning recogniser", evidence.conditioning),
        ("_by_judge", "found by the judge", view),
    ]
    for suffix, how, finder in finders:
        name = f"margin_over_nearest_training_person{suffix}"
        if finder is None:
            sheet.skip(name, "the conditioning recogniser is not known: --made-with NAME")
            continue
        twins = _twins(view, finder)
        to_references = cosine_to(view.made.set, view.references.set)
        gain = per_person(to_references, view.made.set) - per_person(cosine_to(twins, view.references.set), twins)
        title = f"margin over the nearest training person, {how} (cosine to the references)"
        sheet.add(Figure.of(name, title, bootstrap_means(gain[~gain.isnan()], seed=evidence.seed)))


def same_appearance(evidence: Evidence, sheet: Sheet) -> None:
    """The right one of several people who share skin, hair, brows and eyes."""
    if evidence.lookalikes is None:
        raise NotRun(NO_LOOKALIKES)
    view, crowd = evidence.judge, evidence.lookalikes.set
    if not len(view.others.set.seen()):
        raise NotRun(NO_OTHERS)
    rival = torch.tensor([photo.rival for photo in evidence.material.lookalikes])
    # As many photos of the person as of a lookalike: the renderer shows them in the same shots.
    several = int((crowd.only(rival == 0)).counts().max())
    photos = view.others.set.only(view.others.set.places() < several)
    right = pick_right(view.made.set, photos, crowd, rival)
    title = f"same appearance, different shape: the right one of {1 + len(rival.unique())}"
    interval = bootstrap_means(per_person(right, view.made.set), seed=evidence.seed)
    sheet.add(Figure.of("same_appearance", title, interval, {"guessing": 1 / (1 + len(rival.unique()))}))


def detection(evidence: Evidence, sheet: Sheet) -> None:
    """Pictures in which the judge's detector finds a face."""
    view = evidence.judge
    found = view.made.table.found.double()
    sheet.columns["face_found"] = [int(value) for value in found.tolist()]
    sheet.columns["detection_score"] = view.made.table.score.tolist()
    interval = bootstrap_means(per_person(found, view.made.set), seed=evidence.seed)
    beside = {"real photos": float(view.real.table.found.double().mean())}
    sheet.add(Figure.of("faces_found", "pictures with a face that the detector finds", interval, beside))


def tar_points(pairs: Pairs, count: int = 60) -> list[tuple[float, float]]:
    """(FAR, TAR) at rates evenly spaced in their logarithm, for a plot."""
    impostors = len(pairs.impostor)
    if impostors < 2:
        return []
    fars = np.geomspace(max(1 / impostors, 1e-6), 0.99, count).clip(1 / impostors).tolist()
    return [(point.far, point.tar) for point in pairs.curve(fars)]


def _gallery(view: View) -> tuple[FaceSet, str]:
    """Who is enrolled: the other photos where everybody has one, else the references."""
    if bool((view.others.set.seen().counts() > 0).all()):
        return view.others.set, "other photos"
    return view.references.set, "the references"


def _real_cosines(view: View) -> dict[str, float]:
    scale = _scale(view)
    if scale is None:
        return {}
    return dict(zip(("real photos", "different people"), scale.ends, strict=True))


def _scale(view: View) -> Scale | None:
    try:
        return Scale.of(view.real.set)
    except ValueError:
        return None


def _twins(view: View, finder: View) -> FaceSet:
    """The judge's view of the training people nearest to the references by `finder`, numbered as the people they stand for."""
    assert view.training is not None and finder.training is not None
    chosen = nearest_training(unit(finder.references.set.means()), finder.training.set)
    photos = view.training.set.seen()
    vectors, person = [], []
    for index, twin in enumerate(chosen.tolist()):
        rows = photos.vectors[photos.person == twin]
        vectors.append(rows)
        person.append(torch.full((len(rows),), index))
    return FaceSet(torch.cat(vectors), torch.cat(person), view.made.set.people)


def _baselines(evidence: Evidence, scale: Scale) -> dict[str, float]:
    """id_scores beside which the generator's must be read."""
    view, found = evidence.judge, {"real photos": 1.0, "a stranger": 0.0}
    sets: dict[str, FaceSet] = {}
    if view.training is not None:
        sets["nearest training person"] = _twins(view, evidence.conditioning or view)
    if evidence.lookalikes is not None:
        rival = torch.tensor([photo.rival for photo in evidence.material.lookalikes])
        sets["same appearance, another head"] = evidence.lookalikes.set.only(rival == 0)
    for name, faces in sets.items():
        own = per_person(cosine_to(faces, view.others.set), faces)
        found[name] = float(scale.score(own[~own.isnan()].mean()))
    return found


def _by_maker(evidence: Evidence, sheet: Sheet) -> None:
    """id_score by the recogniser that the pictures were made with, and how far it lies above the judge's."""
    maker = evidence.conditioning
    if maker is None:
        sheet.skip("id_score_by_the_conditioning_recogniser", "it is not known: --made-with NAME")
        return
    scale = _scale(maker)
    cosines = cosine_to(maker.made.set, maker.others.set if len(maker.others.set.seen()) else maker.references.set)
    if scale is None:
        return
    sheet.columns["id_score_by_the_conditioning_recogniser"] = scale.score(cosines).tolist()
    own = per_person(cosines, maker.made.set)
    interval = scale.interval(own, ~own.isnan(), evidence.seed)
    title = "id_score by the recogniser that they were made with (not evidence: compare it with the judge's)"
    sheet.add(Figure.of("id_score_by_the_conditioning_recogniser", title, interval))


def _to_originals(evidence: Evidence, sheet: Sheet) -> None:
    """Cosine to the very photo that each picture should have become, in restoration and inpainting."""
    view, originals = evidence.judge, evidence.originals
    if not bool((originals >= 0).all()):
        return
    made, photos = view.made.set, view.real.set.vectors[originals]
    cosines = (unit(made.vectors).double() * unit(photos)).sum(1).where(found(photos), torch.nan)
    sheet.columns["cosine_to_original"] = cosines.tolist()
    known = ~cosines.isnan()
    if not known.any():
        sheet.skip("cosine_to_original", "no original shows a face")
        return
    own = per_person(cosines[known], made.only(known))
    there = ~own.isnan()
    interval = bootstrap_means(own[there], seed=evidence.seed)
    sheet.add(Figure.of("cosine_to_original", "cosine to the original itself", interval, note=_over(there)))


def _over(chosen: Tensor) -> str:
    return "" if bool(chosen.all()) else f"over {int(chosen.sum())} of {len(chosen)} people"
