"""How well the mini recogniser and the judge know held-out people across poses and hairstyles.

Pairs are cross-pose (yaw differs by at least 15 degrees) and, for pairs of one person, restyled: another hairstyle, beard,
make-up or glasses in one of the two photos. The hard split compares each such pair with the pair in which the second
photo, everything else equal, is of somebody with the same skin, hair, brows and eyes but another head shape.

    python -m benchmarks.recognisers --people 200
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import Report, add_split, chosen_people, parser, run, timed
from idgen.evaluation.rendered import attributes_of, take_photos
from idgen.faces import FaceEncoder
from idgen.metrics import bootstrap_means, rank_one, tar_at_far, ten_fold_accuracy
from idgen.metrics.embedding import embed_at, embed_faces
from idgen.metrics.identity import found, unit

YAW_APART = 15.0
LOOK = ("hair_style", "beard", "lipstick", "eye_shadow", "glasses")
FARS = (1e-2, 1e-3)


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    people, shots = chosen_people(args), range(args.shots)
    with timed("photos"):
        photos = take_photos(people, shots, seed=args.seed, cache=args.cache, workers=args.workers)
        lookalikes = take_photos(people, shots, variant=0, seed=args.seed, cache=args.cache, workers=args.workers)
    pairs = matched_pairs(photos.pose[..., 0], looks(attributes_of(people, shots, args.seed)))
    report = Report(f"Recognisers on {args.people} held-out people ({args.split}), {args.alignment} landmarks")
    for name in args.recognisers:
        encoder = FaceEncoder.from_pretrained(name, device=args.device)
        with timed(f"{name}: embeddings"):
            embed = embed_faces if args.alignment == "detected" else embed_at
            own, other = (
                embed(encoder, taken.flat, *([] if args.alignment == "detected" else [taken.landmarks.flatten(0, 1)]))
                for taken in (photos, lookalikes)
            )
        shape = (len(people), len(shots), -1)
        scores = measure(own.view(shape), other.view(shape), pairs)
        add_rows(report, name, scores)
    report.publish(args.json)


def looks(attributes: Sequence[Sequence[dict[str, Any]]]) -> list[list[tuple[Any, ...]]]:
    """[person][shot]: hairstyle, beard, make-up and glasses."""
    return [[tuple(shot[name] for name in LOOK) for shot in person] for person in attributes]


def matched_pairs(yaw: Tensor, look: Sequence[Sequence[tuple[Any, ...]]]) -> list[tuple[int, int, int]]:
    """(person, first shot, second shot) of all restyled cross-pose pairs, from yaw (people, shots) in degrees."""
    people, shots = yaw.shape
    return [
        (person, a, b)
        for person in range(people)
        for a in range(shots)
        for b in range(shots)
        if a != b and abs(yaw[person, a] - yaw[person, b]) >= YAW_APART and look[person][a] != look[person][b]
    ]


def measure(own: Tensor, lookalikes: Tensor, pairs: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    """Verification figures of embeddings (people, shots, dim); an undetected face fails its genuine pairs.

    The impostor of a pair (person, a, b) is shot b of every other person: the same number of pose and style draws.
    """
    person, a, b = torch.tensor(pairs).T
    genuine = _cosine(own[person, a], own[person, b])
    missed = ~(found(own[person, a]) & found(own[person, b]))
    genuine = torch.where(missed, torch.full_like(genuine, -1.0), genuine)
    step = torch.arange(1, len(own))
    stranger = (person[:, None] + step[:: max(1, len(step) // 40)]) % len(own)  # about 40 strangers per pair
    impostor = torch.einsum("nd,nsd->ns", unit(own[person, a]), unit(own[stranger, b[:, None]]))
    # An undetected face is no impostor: its cosine of 0 would only make the threshold easier.
    impostor = impostor[found(own[person, a])[:, None] & found(own[stranger, b[:, None]])]
    twin = _cosine(own[person, a], lookalikes[person, b])
    at = {far: tar_at_far(genuine, impostor, far) for far in FARS}
    accepted = (genuine > at[1e-2].threshold).double()
    everybody = torch.zeros(len(own)).double().index_add(0, person, accepted)
    counts = torch.zeros(len(own)).double().index_add(0, person, torch.ones_like(accepted))
    interval = bootstrap_means(torch.stack([everybody, counts], 1), lambda mean: mean[..., 0] / mean[..., 1])
    return {
        "pairs": len(pairs),
        "accuracy": ten_fold_accuracy(genuine, impostor),
        "tar_at_1e-2": interval.as_dict(),
        "tar_at_1e-3": at[1e-3].tar,
        "hard_accuracy": ten_fold_accuracy(genuine, twin),
        "rank_one": float(rank_one(own[:, 1:], own[:, :1]).mean()),
        "mean_cosine": {
            "same": float(genuine.mean()),
            "different": float(impostor.mean()),
            "same_appearance": float(twin.mean()),
        },
        "undetected": int((~found(own)).sum()),
    }


def add_rows(report: Report, name: str, scores: dict[str, Any]) -> None:
    tar, cosine = scores["tar_at_1e-2"], scores["mean_cosine"]
    report.numbers[name] = scores
    report.add(f"{name}: verification accuracy", f"{scores['accuracy']:.4f}", "0.97")
    report.add(
        f"{name}: TAR@FAR=1e-2 [95 % over people]", f"{tar['value']:.3f} [{tar['low']:.3f}, {tar['high']:.3f}]", "0.90"
    )
    report.add(f"{name}: TAR@FAR=1e-3", f"{scores['tar_at_1e-3']:.3f}")
    report.add(
        f"{name}: accuracy on the hard split (same appearance, other shape)", f"{scores['hard_accuracy']:.4f}", "0.85"
    )
    report.add(f"{name}: rank-1, one photo per person enrolled", f"{scores['rank_one']:.3f}")
    report.add(
        f"{name}: mean cosine same / different / same appearance",
        f"{cosine['same']:.3f} / {cosine['different']:.3f} / {cosine['same_appearance']:.3f}",
    )
    report.add(f"{name}: pairs of one person; undetected faces", f"{scores['pairs']}; {scores['undetected']}")


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (unit(a) * unit(b)).sum(-1)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    flags = parser(__doc__, people=200)
    flags.add_argument("--shots", type=int, default=8, help="photos per person")
    add_split(flags)
    flags.add_argument("--recognisers", nargs="+", default=["mini", "judge"], help="names or folders")
    flags.add_argument(
        "--alignment",
        choices=("truth", "detected"),
        default="truth",
        help="landmarks of the renderer (the recogniser alone) or of the mini detector (both together)",
    )
    flags.set_defaults(cache=Path("runs/photos"))
    return flags.parse_args(argv)


if __name__ == "__main__":
    run(main)
