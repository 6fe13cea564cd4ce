"""`idgen demo`: the example person's photos in, new pictures of that person out, and how alike the judge finds them.

Where the mini family has the weights, a damaged photo is restored from the references as well, and the face in another filled.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idgen.commands._numbers import count, zero_or_above
from idgen.console import say
from idgen.errors import IdgenError
from idgen.files import check_output

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from idgen.commands._demo_repair import Given
    from idgen.faces import FaceEncoder
    from idgen.identity import Identity
    from idgen.metrics.statistics import JudgeStatistics

HELP = "generate new pictures of the example person, whom no training saw, and measure the likeness; needs no network"

EXAMPLE = Path(__file__).parents[1] / "assets" / "example"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), metavar="DIR", help="folder for the pictures (default: demo)"
    )
    parser.add_argument("-n", "--images", type=count, default=4, metavar="N", help="pictures to generate (default: 4)")
    parser.add_argument("--steps", type=count, default=20, metavar="N", help="denoising steps (default: 20)")
    parser.add_argument(
        "--guidance", type=zero_or_above, default=1.1, metavar="SCALE", help="1 turns guidance off (default: 1.1)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Embed the references with `mini`, generate, and measure with `judge`, which took no part in making the pictures."""
    from idgen import FaceEncoder
    from idgen.commands._demo_repair import Given
    from idgen.devices import resolve_device, resolve_dtype
    from idgen.metrics.statistics import JudgeStatistics
    from idgen.provenance import save_png
    from idgen.weights import find_mini

    check_output(args.out, folder=True)
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    references, others = example_photos("reference"), example_photos("other")
    statistics = JudgeStatistics.load(find_mini("judge"))
    encoder = FaceEncoder.from_pretrained("mini", device=device)
    references, others = _with_faces(encoder, references), _with_faces(encoder, others)
    identity = encoder(references)
    say(f"{len(identity)} references of the example person, {args.images} pictures to make on {device}")
    images, seconds = _generate(args, encoder, identity, device, dtype)
    paths = [args.out / f"generated_{index:02d}.png" for index in range(1, len(images) + 1)]
    for path, image in zip(paths, images, strict=True):
        save_png(path, image)
    judge = FaceEncoder.from_pretrained("judge", device=device)
    made, shown, unseen = (_judge(judge, photos) for photos in (images, references, others))
    # The mean over the photos that were not among the references: the picture must show the person, not copy a photo.
    similarities = [float(value) for value in (made @ unseen.T).mean(1)]
    similarity = sum(similarities) / len(similarities)
    to_references = float((made @ shown.T).mean())
    real = float((shown @ unseen.T).mean())
    given = Given(references, others[0], _landmarks(encoder, others[0]), encoder, device, dtype, args.steps, args.seed)
    more = _repair(args.out, given, judge, unseen[1:], statistics) if len(others) > 1 else []
    sheet = args.out / "sheet.png"
    save_png(sheet, _sheet(references, (shown @ unseen.T).mean(1).tolist(), images, similarities, more))
    score = float(statistics.score(similarity))
    say(f"cosine to photos not among the references {similarity:.3f} (a real photo of the person: {real:.3f})")
    say(
        f"id_score {score:.3f} (0 a stranger, {statistics.nearest_training_person:.3f} the nearest training person, 1 a photo)"
    )
    say(f"{seconds:.2f} s per image; the sheet: {sheet}")
    return {
        "id_similarity": similarity,
        "id_score": score,
        "id_similarity_to_references": to_references,
        "id_similarity_of_each_image": similarities,
        "real_photos": {"id_similarity": real, "id_score": float(statistics.score(real))},
        "nearest_training_person": {"id_score": statistics.nearest_training_person},
        "faces_found": int((made.abs().sum(1) > 0).sum()),
        "seconds_per_image": seconds,
        "images": paths,
        **{one.name: one.report for one in more},
        "sheet": sheet,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
    }


@dataclass(frozen=True)
class _Part:
    """A part of the demo beside new pictures, as its report and its row of the sheet have it."""

    name: str
    report: dict[str, Any]
    title: str
    images: list[Image.Image]
    similarities: list[float]


def _repair(
    out: Path, given: Given, judge: FaceEncoder, unseen: torch.Tensor, statistics: JudgeStatistics
) -> list[_Part]:
    """Restoration and inpainting, where the family has the weights; judged by photos that neither of them saw."""
    from idgen.commands._demo_repair import PARTS
    from idgen.provenance import save_png
    from idgen.weights import mini_root

    made = []
    for folder, (name, make, title) in PARTS.items():
        if not (mini_root() / folder).is_dir():
            continue
        done = make(given)
        images = [done.before, done.without, done.after, given.photo]
        paths = {key: out / f"{name}_{key}.png" for key in ("before", "without_references", "with_references")}
        for path, image in zip(paths.values(), images, strict=False):  # the original is the example's own
            save_png(path, image)
        cosines = [float(value) for value in (_judge_at(judge, images, given.landmarks) @ unseen.T).mean(1)]
        scores = [float(statistics.score(value)) for value in cosines]
        report = {
            "id_similarity": cosines[2],
            "id_score": scores[2],
            "without_references": {"id_similarity": cosines[1], "id_score": scores[1]},
            "before": {"id_similarity": cosines[0], "id_score": scores[0]},
            "seconds_per_image": done.seconds,
            "images": paths,
        }
        say(
            f"{name}: id_score {scores[2]:.3f} with the references, {scores[1]:.3f} without, {scores[0]:.3f} before;"
            f" {done.seconds:.2f} s"
        )
        made.append(_Part(name, report, title, images, cosines))
    return made


def example_photos(kind: str) -> list[Image.Image]:
    """The example person's photos: "reference" ones show who it is, "other" ones are only ever measured against.

    Raises:
        IdgenError: they are missing from the installation.
    """
    from idgen.imageio import load_image

    paths = sorted(EXAMPLE.glob(f"{kind}_*.png"))
    if not paths:
        raise IdgenError(f"no {kind} photos of the example person in {EXAMPLE}: reinstall idgen-diffusion")
    return [load_image(path) for path in paths]


def _with_faces(encoder: FaceEncoder, photos: list[Image.Image]) -> list[Image.Image]:
    """The photos in which the detector finds a face; all of them where it finds none, so that the encoder says so."""
    found = [photo for photo in photos if encoder.detect(photo)]
    if len(found) < len(photos):
        say(f"no face found in {len(photos) - len(found)} of {len(photos)} photos of the example person: left out")
    return found or photos


def _landmarks(encoder: FaceEncoder, photo: Image.Image) -> np.ndarray:
    """Of the face in a photo of the example person."""
    faces = encoder.detect(photo)
    if not faces:
        raise IdgenError("no face found in any other photo of the example person: reinstall idgen-diffusion")
    return faces[0].landmarks


def _generate(
    args: argparse.Namespace, encoder: FaceEncoder, identity: Identity, device: torch.device, dtype: torch.dtype
) -> tuple[list[Image.Image], float]:
    """The pictures as `idgen generate` makes them, and the seconds that each took once the weights were loaded."""
    import torch

    from idgen.pipelines import Arc2FacePipeline
    from idgen.rewards.ascent import guide_identity

    pipe = Arc2FacePipeline.from_pretrained("mini", torch_dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    guided = guide_identity(encoder, pipe.vae, [identity]).guided(pipe)
    start = time.perf_counter()
    images = guided(
        identity,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        num_images_per_prompt=args.images,
        generator=torch.Generator().manual_seed(args.seed),
    ).images
    return images, (time.perf_counter() - start) / len(images)


def _judge(judge: FaceEncoder, photos: list[Image.Image]) -> torch.Tensor:
    """(n, dim) unit embeddings; zeros, so a similarity of 0, where no face is found."""
    import numpy as np
    import torch

    from idgen.metrics.embedding import embed_faces
    from idgen.metrics.identity import unit

    return unit(embed_faces(judge, torch.from_numpy(np.stack([np.asarray(photo.convert("RGB")) for photo in photos]))))


def _judge_at(judge: FaceEncoder, photos: list[Image.Image], landmarks: np.ndarray) -> torch.Tensor:
    """(n, dim) unit embeddings of a face whose place is known: damage shall not be told by the detector."""
    import numpy as np
    import torch

    from idgen.metrics.embedding import embed_at
    from idgen.metrics.identity import unit

    pixels = torch.from_numpy(np.stack([np.asarray(photo.convert("RGB")) for photo in photos]))
    points = torch.from_numpy(np.asarray(landmarks, np.float32)).expand(len(photos), -1, -1)
    return unit(embed_at(judge, pixels, points))


def _sheet(
    references: list[Image.Image],
    likeness: list[float],
    images: list[Image.Image],
    similarities: list[float],
    more: list[_Part],
) -> Image.Image:
    from idgen.sheet import SheetRow, contact_sheet

    return contact_sheet(
        [
            SheetRow(references, [f"{value:.2f}" for value in likeness], "references (photos, given)"),
            SheetRow(images, [f"{value:.2f}" for value in similarities], "generated; below: cosine to other photos"),
            *(SheetRow(one.images, [f"{value:.2f}" for value in one.similarities], one.title) for one in more),
        ],
        columns=max(4, min(len(images), 8)),
    )
