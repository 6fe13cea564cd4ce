"""The identity rows of the bars: is the generated face taken for the person?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.faces import Vectors
from benchmarks.report import Report
from idgen.metrics import PhotoStatistics, bootstrap_means, nearest_people, pick_among_lookalikes, rank_one, tar_at_far
from idgen.metrics.identity import found, pair_scores, per_person_cosines, photo_cosines, similarity_to, template, unit

FARS = (1e-2, 1e-3)


@dataclass(frozen=True)
class Gallery:
    """What generated images are compared with; vectors of the judge unless said.

    Attributes:
        references: (people, 4, dim) photos shown to the generator (the first alone, or all four).
        others: (people, photos, dim) photos that it never saw.
        standins: (people, images, dim) more such photos, which take the generated images' place in the row of real photos.
        lookalikes: (people, 3, photos, dim) the others' shots, of people of the same appearance and another head shape.
        training: photos of training people by both recognisers.
        conditioning: (people, 4, dim) the references by the mini recogniser.
    """

    references: Tensor
    others: Tensor
    standins: Tensor
    lookalikes: Tensor
    training: Vectors
    conditioning: Tensor

    @property
    def photos(self) -> Tensor:
        return torch.cat([self.references, self.others, self.standins], 1)

    @property
    def candidates(self) -> Tensor:
        """(people, 4, photos, dim): the person and the lookalikes in the same shots."""
        return torch.cat([self.others[:, None, : self.lookalikes.shape[2]], self.lookalikes], 1)


def pooled(references: Tensor) -> Tensor:
    """(people, dim): the references' mean direction, as the pipeline pools them; zeros when none has a face."""
    return unit(references).mean(1)


def measure_identity(probes: Tensor, gallery: Gallery, shown: int, seed: int = 0) -> dict[str, Any]:
    """All identity figures of probes (people, images, dim) made from the first `shown` references."""
    statistics = PhotoStatistics.of(gallery.photos)
    references = gallery.references[:, :shown]
    real_same, real_different = photo_cosines(gallery.photos)

    def score(photos: Tensor) -> dict[str, float]:
        parts = torch.stack([similarity_to(probes, photos), real_same, real_different], 1)
        return bootstrap_means(parts, lambda m: (m[..., 0] - m[..., 2]) / (m[..., 1] - m[..., 2]), seed=seed).as_dict()

    genuine, impostor = pair_scores(probes, gallery.others)
    real_genuine, real_impostor = pair_scores(gallery.standins, gallery.others)
    tar: dict[str, Any] = {}
    for far in FARS:
        threshold = tar_at_far(genuine.flatten(), impostor, far).threshold
        accepted = (genuine > threshold).double().mean((1, 2))
        tar[f"{far:.0e}"] = bootstrap_means(accepted, seed=seed).as_dict()
        fixed = tar_at_far(real_genuine.flatten(), real_impostor, far).threshold
        tar[f"{far:.0e}_at_real_threshold"] = float((genuine > fixed).double().mean())
    nearest = training_twins(gallery, shown)
    gain = similarity_to(probes, references) - similarity_to(nearest, references)
    rival = nearest_by_judge(gallery, shown)
    gain_judge = similarity_to(probes, references) - similarity_to(rival, references)
    own, strangers = per_person_cosines(probes, gallery.others)
    return {
        "id_score": score(gallery.others),
        "id_score_to_references": score(references),
        "cosine_to_others": float(own.mean()),
        "cosine_to_references": float(similarity_to(probes, references).mean()),
        "cosine_to_strangers": float(strangers.mean()),
        "margin_over_nearest_training_person": bootstrap_means(gain, seed=seed).as_dict(),
        "margin_over_nearest_training_person_picked_by_judge": bootstrap_means(gain_judge, seed=seed).as_dict(),
        "rank_one": bootstrap_means(rank_one(probes, gallery.others), seed=seed).as_dict(),
        "rank_one_pooled_gallery": bootstrap_means(rank_one(probes, template(gallery.others)), seed=seed).as_dict(),
        "tar_at_far": tar,
        "lookalikes_four_way": bootstrap_means(pick_among_lookalikes(probes, gallery.candidates), seed=seed).as_dict(),
        "images_without_a_face": int((~found(probes)).sum()),
        "images": probes.shape[0] * probes.shape[1],
        "statistics": vars(statistics),
    }


def training_twins(gallery: Gallery, shown: int) -> Tensor:
    """(people, photos, dim): judge vectors of the training person nearest to the references by the mini recogniser.

    What a generator would reach that looked the person up in its training set instead of drawing a new one: it has the
    conditioning recogniser's vector to search with and nothing else.
    """
    return gallery.training.judge[nearest_people(pooled(gallery.conditioning[:, :shown]), gallery.training.mini)]


def nearest_by_judge(gallery: Gallery, shown: int) -> Tensor:
    """The same with the search done by the judge itself: the best that any look-up could reach."""
    return gallery.training.judge[nearest_people(pooled(gallery.references[:, :shown]), gallery.training.judge)]


def baselines(gallery: Gallery, seed: int = 0) -> dict[str, dict[str, Any]]:
    """The same figures of things that are no generator: real photos above, look-ups and strangers below."""
    return {
        "real photos": measure_identity(gallery.standins, gallery, 1, seed),
        "nearest training person": measure_identity(training_twins(gallery, 1), gallery, 1, seed),
        "nearest training person, picked by the judge": measure_identity(
            nearest_by_judge(gallery, 1), gallery, 1, seed
        ),
        "same appearance, other head shape": measure_identity(gallery.lookalikes[:, 0], gallery, 1, seed),
        "a stranger": measure_identity(gallery.standins.roll(1, 0), gallery, 1, seed),
    }


def add_identity_rows(report: Report, one: dict[str, Any], four: dict[str, Any]) -> None:
    def both(*path: str) -> str:
        return " / ".join(_shown(_at(scores, path)) for scores in (one, four))

    tar = one["tar_at_far"]
    report.add("id_score to the other photos, one reference / four", both("id_score"), "0.70 / 0.80", "0.85 / 0.92")
    report.add("id_score to the references themselves", both("id_score_to_references"))
    report.add(
        "margin over the nearest training person (cosine to the reference)",
        both("margin_over_nearest_training_person"),
        "+0.10",
        "+0.20",
    )
    report.add(
        "the same, nearest picked by the judge itself", both("margin_over_nearest_training_person_picked_by_judge")
    )
    report.add("rank-1, one photo per person enrolled", both("rank_one"), "0.70", "0.92")
    report.add("rank-1, the other photos of each person pooled", both("rank_one_pooled_gallery"), "0.70", "0.92")
    report.add(
        "TAR@FAR 1e-2 / 1e-3, one reference",
        f"{_shown(tar['1e-02'])} / {_shown(tar['1e-03'])}",
        "0.75 / 0.33",
        "0.93 / 0.65",
    )
    tar = four["tar_at_far"]
    report.add("TAR@FAR 1e-2 / 1e-3, four references", f"{_shown(tar['1e-02'])} / {_shown(tar['1e-03'])}")
    report.add("same appearance, different shape, 4-way", both("lookalikes_four_way"), "0.75", "0.92")
    total, missing = one["images"] + four["images"], one["images_without_a_face"] + four["images_without_a_face"]
    report.add("detector finds a face in generated images", f"{100 * (1 - missing / total):.2f} %", "98 %", "98 %")


def baseline_table(baselines: dict[str, dict[str, Any]]) -> str:
    """Markdown: the figures beside which the generator's must be read."""
    head = ["", "id_score", "cosine to reference", "rank-1 (single / pooled)", "TAR 1e-2 / 1e-3", "4-way"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, scores in baselines.items():
        cells = [
            name,
            _number(scores["id_score"]),
            f"{scores['cosine_to_references']:.3f}",
            f"{_number(scores['rank_one'])} / {_number(scores['rank_one_pooled_gallery'])}",
            f"{_number(scores['tar_at_far']['1e-02'])} / {_number(scores['tar_at_far']['1e-03'])}",
            _number(scores["lookalikes_four_way"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _at(scores: dict[str, Any], path: tuple[str, ...]) -> dict[str, float]:
    for name in path:
        scores = scores[name]
    return scores


def _shown(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _number(value: dict[str, float]) -> str:
    return f"{value['value']:.3f}"
