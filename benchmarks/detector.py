"""How well the mini detector finds held-out people pasted on clutter, and alone in a portrait.

    python -m benchmarks.detector --people 100 --scenes 500

A face counts as found when a detection's landmarks lie within half the distance between its eyes, on average; the landmark
error is that mean distance over the found ones, in percent of the distance between the eyes. Each detection counts once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import Report, parser, percent, run, timed
from idgen.data.clutter import compose, face_boxes
from idgen.data.faces import FaceFolder
from idgen.devices import resolve_device
from idgen.evaluation.rendered import TEST
from idgen.faces import FaceEncoder
from idgen.metrics.embedding import detect_landmarks
from idgen.synthetic.writer import SynthSettings, write_dataset

MATCH = 0.5  # of the distance between the eyes
SHOTS = 4
SIZES = ((0, 32), (32, 64), (64, 10_000))  # px: width of the face's box


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    settings = SynthSettings(args.people, SHOTS, first_person=TEST, seed=args.seed)
    folder = args.cache / f"detector-{args.people}"
    with timed("photos"):
        write_dataset(settings, folder, workers=args.workers or 2)
    data = FaceFolder.open(folder)
    encoder = FaceEncoder.from_pretrained("mini", device=resolve_device(args.device))
    boxes = face_boxes(data)
    rng = np.random.default_rng(args.seed)
    errors: list[float] = []
    widths: list[float] = []
    false = empty_hits = empty = 0
    with timed("scenes"):
        for _ in range(args.scenes):
            scene = compose(data, boxes, rng)
            picture = ((scene.picture.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
            found = [torch.as_tensor(face.landmarks) for face in encoder.detect(picture)]
            matched, unmatched = match(found, scene.landmarks)
            errors += matched
            widths += (scene.boxes[:, 2] - scene.boxes[:, 0]).tolist()
            false += unmatched
            empty += len(scene.landmarks) == 0
            empty_hits += len(scene.landmarks) == 0 and len(found) > 0
    every, wide = torch.tensor(errors), torch.tensor(widths)
    hit = every.isfinite()
    report = Report(f"Mini detector, {args.people} held-out people, {args.scenes} scenes of 256 px, {len(every)} faces")
    rate, error = float(hit.double().mean()), float(every[hit].mean())
    report.add("detection rate", percent(rate), "98 %", detection_rate=rate)
    report.add(
        "landmark error, % of the distance between the eyes", f"{100 * error:.2f} %", "4 %", landmark_error=error
    )
    for low, high in SIZES:
        chosen = (wide >= low) & (wide < high)
        if chosen.any():
            part, seen = hit[chosen], every[chosen & hit]
            name = f"faces {low} to {high} px wide" if high < 10_000 else f"faces wider than {low} px"
            report.add(
                name,
                f"{percent(float(part.double().mean()))}, error {100 * float(seen.mean()):.2f} %, {len(part)} faces",
            )
    report.add("false detections per scene", f"{false / args.scenes:.3f}", false_per_scene=false / args.scenes)
    report.add("scenes without a face in which one is seen", f"{empty_hits} of {empty}")
    landmarks, seen = detect_landmarks(encoder, torch.from_numpy(np.array(data.images)))
    alone = [
        match([a], b[None])[0][0] for a, b in zip(landmarks[seen], torch.from_numpy(data.landmarks)[seen], strict=True)
    ]
    portrait_error = float(torch.tensor(alone).clamp_max(MATCH).mean())
    report.add(
        f"portraits as rendered ({len(seen)}): found, landmark error",
        f"{percent(float(seen.double().mean()))}, {100 * portrait_error:.2f} %",
        portraits={"detection_rate": float(seen.double().mean()), "landmark_error": portrait_error},
    )
    report.publish(args.json)


def match(found: Sequence[Tensor], truth: Tensor) -> tuple[list[float], int]:
    """Pair detections with faces, nearest first, each at most once.

    Args:
        found: landmarks (5, 2) of each detection.
        truth: (faces, 5, 2).

    Returns:
        For each face its error as a share of the distance between the eyes (infinite: not found), and the number of
        detections left over.
    """
    errors = [float("inf")] * len(truth)
    if not found or not len(truth):
        return errors, len(found)
    eyes = (truth[:, 0] - truth[:, 1]).norm(dim=-1)
    table = (torch.stack(list(found))[:, None] - truth[None]).norm(dim=-1).mean(-1) / eyes  # (found, faces)
    left = len(found)
    for index in table.flatten().argsort().tolist():
        detection, face = divmod(index, len(truth))
        if table[detection, face] < MATCH and errors[face] == float("inf") and table[detection].isfinite().all():
            errors[face] = float(table[detection, face])
            table[detection] = float("inf")
            left -= 1
    return errors, left


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    flags = parser(__doc__, people=100)
    flags.add_argument("--scenes", type=int, default=500)
    flags.set_defaults(cache=Path("runs/photos"))
    return flags.parse_args(argv)


if __name__ == "__main__":
    run(main)
