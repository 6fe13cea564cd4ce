"""Inpainting with a person's face, on held-out people, by the judge.

    python -m benchmarks.inpaint --people 100 --json inpaint.json --sheet inpaint.png

Of each person the face in shot 0 is painted over, in the box that CelebAHQ-IDI draws, and filled; shots 1 to 5 are references,
6 to 11 the other photos that it is compared with. Known pixels are kept, and faces are aligned by the true landmarks of shot 0
in every row. Then the model is personalised for each person by 40 steps on the references, and expressions are asked for in
words. Settings are chosen with `--split validation`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.expressions import ask_people, obeyed, of_photos
from benchmarks.guides import add_identity_guidance, add_reader
from benchmarks.repaired import (
    Scale,
    Scores,
    add_rows,
    as_bytes,
    as_pictures,
    generators,
    perceptual_distance,
    save_sheet,
)
from benchmarks.report import Report, add_split, chosen_people, parser, percent, run, timed
from idgen.adapters.embeddings import RawEmbeddings
from idgen.adapters.pva.person import PersonWeights
from idgen.adapters.pva.personalise import PersonPhotos, train_person
from idgen.adapters.pva.prompt import NEGATIVE, PLACEHOLDER, PROMPT
from idgen.console import progress
from idgen.data.portraits import as_tensor
from idgen.data.regions import REGIONS, region_mask
from idgen.devices import resolve_device, resolve_dtype
from idgen.evaluation.rendered import Photos, take_photos
from idgen.faces import FaceEncoder
from idgen.identity import Identity
from idgen.inpainting import recogniser_of
from idgen.metrics.embedding import embed_at
from idgen.models.probe import load_probe
from idgen.models.recogniser_reader import load_reader
from idgen.pipelines import PVAInpaintPipeline
from idgen.rewards.ascent import WORDS_START, WORDS_STRENGTH, RewardGuidance, guide_identity, guide_words

REFERENCES, OTHERS = 5, 6
COUNTS = (1, 3, 5)
MIRRORED = [1, 0, 2, 4, 3]  # the five landmarks of a mirror image
GUIDED = f"{REFERENCES} references, guided by the recogniser"
BOTH = ", guided by a reader and the recogniser"
BAR_GAIN, BAR_PERSONAL, BAR_WORDS = "+0.3", "+0.03", "80 %"


@dataclass(frozen=True)
class Scene:
    """What is filled: pictures (people, size, size, 3) uint8, and where, (people, size, size) bool."""

    pictures: Tensor
    holes: Tensor

    @property
    def painted(self) -> Tensor:
        """The pictures as the model sees them."""
        return torch.where(self.holes[..., None], torch.tensor(128, dtype=torch.uint8), self.pictures)

    def of(self, people: slice | list[int]) -> Scene:
        return Scene(self.pictures[people], self.holes[people])


@dataclass(frozen=True)
class Way:
    """How holes are filled; see PVAInpaintPipeline."""

    steps: int
    guidance: float
    seed: int
    batch: int
    text_control: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    people = chosen_people(args)
    with timed("photos"):
        photos = take_photos(people, range(1 + REFERENCES + OTHERS), cache=args.cache, workers=args.workers)
    pipe = PVAInpaintPipeline.from_pretrained(args.model, torch_dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    encoder = FaceEncoder.from_pretrained("mini", device=device)
    scene, way = _scene(photos, args.region), Way(args.steps, args.guidance, args.seed, args.batch)
    vectors = _embed(encoder, photos.shots(slice(1, 1 + REFERENCES)))
    name, distance = perceptual_distance(device)
    report = Report(
        f"Inpainting ({args.region}), {args.people} {args.split} people, {args.steps} steps, guidance {args.guidance:g};"
        f" distance: {name}"
    )
    names = ("split", "people", "steps", "guidance", "text_guidance", "seed", "region")
    report.numbers |= {key: getattr(args, key) for key in names}
    scale = Scale(FaceEncoder.from_pretrained("judge", device=device), photos, REFERENCES, args.seed, distance)
    with timed("filling"):
        rows = fill_rows(pipe, scene, vectors, way)
        if args.identity_guidance:
            guide = guide_people(pipe, encoder, vectors, args.identity_guidance)
            rows[GUIDED] = fill(pipe, scene, vectors, way, guide=guide)
    for variant in args.variants:
        with timed(f"personalising, {variant}"):
            found = personalise_all(pipe, encoder, photos, scene, vectors, variant, way, args.personal_steps)
        rows[_personal(variant)] = found.pictures
        report.numbers[f"{variant}_person"] = {"seconds": found.seconds, "bytes": found.bytes}
        report.add(
            f"{_personal(variant)}: a person", f"{found.seconds:.1f} s, {found.bytes / 1e6:.2f} MB", "20 MB", "20 MB"
        )
    scores = {row: scale.score(pictures) for row, pictures in rows.items()}
    add_rows(report, args.region, scores)
    add_bars(report, scores, scale, args.variants)
    with timed("words"):
        rows["words"] = add_words(report, pipe, encoder, scene, vectors, photos, people, rows, scale, args)
    add_time(report, pipe, scene, vectors, way)
    if args.sheet:
        save_sheet(args.sheet, {"original": photos.images[:, 0], "a reference": photos.images[:, 1], **rows})
    report.publish(args.json)


def fill_rows(pipe: PVAInpaintPipeline, scene: Scene, vectors: Tensor, way: Way) -> dict[str, Tensor]:
    """Every way of filling the same holes from the same noise: pictures by row."""
    rows = {"painted over": scene.painted, "0 references": fill(pipe, scene, None, way)}
    for count in COUNTS:
        rows[f"{count} references"] = fill(pipe, scene, vectors[:, :count], way)
    rows["the next person's references"] = fill(pipe, scene, vectors.roll(-1, 0), way)
    return rows


def fill(
    pipe: PVAInpaintPipeline,
    scene: Scene,
    vectors: Tensor | None,
    way: Way,
    prompts: Sequence[str] | None = None,
    noise: Sequence[int] | None = None,
    guide: Callable[[slice], PVAInpaintPipeline] | None = None,
) -> Tensor:
    """Pictures (people, size, size, 3) uint8.

    Args:
        vectors: (people, references, dim) raw embeddings, or None for nobody in particular.
        noise: a number each, for noise of its own; by default the rows'.
        guide: what fills the holes of so many of the people; `pipe` by default.
    """
    made = []
    noise = noise or range(len(scene.pictures))
    prompts = prompts or [NEGATIVE if vectors is None else _prompt(pipe)] * len(scene.pictures)
    starts = range(0, len(scene.pictures), way.batch)
    for start in progress(starts, len(starts), "filling") if len(starts) > 1 else starts:
        part = slice(start, start + way.batch)
        used = pipe if guide is None else guide(part)
        images = used(
            None if vectors is None else [RawEmbeddings(rows, _recogniser(pipe)) for rows in vectors[part]],
            list(prompts[part]),
            as_pictures(scene.pictures[part]),
            [Image.fromarray(hole.numpy()).convert("L") for hole in scene.holes[part]],
            num_inference_steps=way.steps,
            guidance_scale=way.guidance,
            text_control=way.text_control,
            composite=True,
            generator=generators(way.seed, noise[part]),
            output_type="np",
        ).images
        made.append(as_bytes(images))
    return torch.cat(made)


def guide_people(
    pipe: PVAInpaintPipeline, encoder: FaceEncoder, vectors: Tensor, strength: float
) -> Callable[[slice], PVAInpaintPipeline]:
    """For `fill`: the recogniser guides to the people of (rows, references, dim) embeddings."""

    def guide(part: slice) -> PVAInpaintPipeline:
        people = [Identity(rows, encoder.recogniser) for rows in vectors[part]]
        return guide_identity(encoder, pipe.vae, people, strength).guided(pipe)

    return guide


@dataclass(frozen=True)
class Personal:
    """Pictures by models that were personalised, and what that takes: seconds of training and bytes, means a person."""

    pictures: Tensor
    seconds: float
    bytes: float


def personalise_all(
    pipe: PVAInpaintPipeline,
    encoder: FaceEncoder,
    photos: Photos,
    scene: Scene,
    vectors: Tensor,
    variant: Any,
    way: Way,
    steps: int,
) -> Personal:
    """Each person by the references, and each one's hole filled by the model made for them."""
    shown = photos.shots(slice(1, 1 + REFERENCES))
    mirrored = _embed(encoder, _mirror(shown))
    made, seconds, sizes = [], [], []
    for index in progress(range(len(vectors)), len(vectors), variant):
        whole = _scene(Photos(*(one[index][:, None] for one in (shown.images, shown.landmarks, shown.pose))), "whole")
        taken = PersonPhotos(
            as_tensor(shown.images[index].numpy(), torch.device("cpu")),
            whole.holes[:, None].float(),
            shown.landmarks[index].float(),
            vectors[index],
            mirrored[index],
        )
        start = time.perf_counter()
        person = train_person(
            pipe, taken, steps=steps, variant=variant, seed=way.seed, look=recogniser_of(pipe, encoder)
        )
        seconds.append(time.perf_counter() - start)
        sizes.append(_bytes(person))
        pipe.load_person(person)
        made.append(fill(pipe, scene.of([index]), vectors[[index]], way, noise=[index]))
        pipe.unload_person()
    return Personal(torch.cat(made), statistics.mean(seconds), statistics.mean(sizes))


def add_bars(report: Report, scores: dict[str, Scores], scale: Scale, variants: Sequence[str]) -> None:
    """What references have to bring, and what personalisation on top of them."""
    most = scores[f"{COUNTS[-1]} references"]
    gain = scale.gain(most, scores["0 references"])
    report.add(f"id_score with {COUNTS[-1]} references over that with none", str(gain), BAR_GAIN)
    report.numbers["gain"] = gain.as_dict()
    if GUIDED in scores:
        more = scale.gain(scores[GUIDED], most)
        report.add("id_score guided by the recogniser over that without", str(more))
    for variant in variants:
        more = scale.gain(scores[_personal(variant)], most)
        report.add(f"id_score after {_personal(variant)} over that before", str(more), BAR_PERSONAL)
        report.numbers[f"{variant}_gain"] = more.as_dict()


def add_words(
    report: Report,
    pipe: PVAInpaintPipeline,
    encoder: FaceEncoder,
    scene: Scene,
    vectors: Tensor,
    photos: Photos,
    people: Sequence[int],
    rows: dict[str, Tensor],
    scale: Scale,
    args: argparse.Namespace,
) -> Tensor:
    """Whether asked-for expressions are there, and how like the people each one's first picture is then; these pictures."""
    asked = ask_people(people, args.expressions, args.seed)
    who = [index for index, each in enumerate(asked) for _ in each]
    flat = [one for each in asked for one in each]
    stressed = Way(args.steps, args.text_guidance, args.seed, args.batch, text_control=True)
    way = Way(args.steps, args.guidance, args.seed, args.batch)  # with the reader's guidance, which does not burn
    prompts = [f"{_prompt(pipe)}, {one.text}" for one in flat]
    reader, known = load_reader(args.reader, pipe.device), vectors[who]
    one_guide = guide_people(pipe, encoder, known, args.identity_guidance)

    def words_guide(part: slice) -> RewardGuidance:
        return guide_words(reader, pipe.vae, prompts[part], args.words_guidance, args.words_start)

    guides: dict[str, Callable[[slice], PVAInpaintPipeline] | None] = {
        "": None,
        ", guided by a reader": lambda part: words_guide(part).guided(pipe),
        BOTH: lambda part: words_guide(part).guided(one_guide(part)),
    }
    probe = load_probe()
    shots = photos.images.shape[1]
    named = [(index, one) for index, one in enumerate(of_photos(people, shots, args.seed)) if one is not None]
    ceiling = obeyed(probe, photos.flat[[index for index, _ in named]], [one for _, one in named])
    guessed = obeyed(probe, rows[f"{COUNTS[-1]} references"][who], flat)
    report.numbers["words"] = {}
    for how, guide in guides.items():
        made = fill(pipe, scene.of(who), known, way if guide else stressed, prompts, guide=guide)
        share, first = obeyed(probe, made, flat), made[:: args.expressions]
        likeness = scale.score(first).identity
        detail = ", ".join(f"{value} {percent(one)}" for value, one in share.items() if value != "all")
        report.add(
            f"expressions asked for and shown{how} ({len(flat)} pictures)",
            f"{percent(share['all'])}, id_score {likeness}: {detail}",
            BAR_WORDS,
        )
        report.numbers["words"][f"shown{how}"] = share | {"id_score": likeness.as_dict()}
    report.add("... by real photos of these expressions", percent(ceiling["all"]))
    report.add("... by fillings without the words", percent(guessed["all"]))
    report.numbers["words"] |= {"real_photos": ceiling, "without_words": guessed}
    return first


def add_time(report: Report, pipe: PVAInpaintPipeline, scene: Scene, vectors: Tensor, way: Way) -> None:
    """Median seconds of a denoising step for one photo."""
    for name, shown, guidance in (
        ("nobody", None, 1.0),
        ("a person", vectors, 1.0),
        ("a person, guided", vectors, 2.0),
    ):
        marks: list[float] = []

        def mark(_: Any, index: int, time_: Any, given: dict[str, Any], marks: list[float] = marks) -> dict[str, Any]:
            marks.append(time.perf_counter())
            return given

        pipe(
            None if shown is None else RawEmbeddings(shown[0], _recogniser(pipe)),
            NEGATIVE if shown is None else None,
            as_pictures(scene.pictures[:1])[0],
            Image.fromarray(scene.holes[0].numpy()).convert("L"),
            num_inference_steps=max(way.steps, 10),
            guidance_scale=guidance,
            callback_on_step_end=mark,
        )
        seconds = statistics.median(after - before for before, after in pairwise(marks))
        report.add(f"a step, {name}", f"{1000 * seconds:.1f} ms")
        report.numbers.setdefault("seconds_per_step", {})[name] = seconds


def _scene(photos: Photos, region: str) -> Scene:
    """The first shots with a part of the face to be filled."""
    pictures = photos.images[:, 0]
    size = (pictures.shape[2], pictures.shape[1])
    holes = [
        region_mask(region, points.numpy(), size, np.random.default_rng(index))
        for index, points in enumerate(photos.landmarks[:, 0])
    ]
    return Scene(pictures, torch.from_numpy(np.stack(holes)))


def _embed(encoder: FaceEncoder, photos: Photos) -> Tensor:
    """(people, shots, dim) raw embeddings."""
    return embed_at(encoder, photos.flat, photos.landmarks.flatten(0, 1)).unflatten(0, photos.images.shape[:2])


def _mirror(photos: Photos) -> Photos:
    landmarks = photos.landmarks[:, :, MIRRORED].clone()
    landmarks[..., 0] = photos.images.shape[3] - 1 - landmarks[..., 0]
    return Photos(photos.images.flip(3), landmarks, photos.pose)


def _bytes(person: PersonWeights) -> int:
    return sum(value.nbytes for value in person.changes.values())


def _personal(variant: str) -> str:
    return f"personalised ({variant})"


def _prompt(pipe: PVAInpaintPipeline) -> str:
    return PROMPT.replace(PLACEHOLDER, pipe.config.placeholder)


def _recogniser(pipe: PVAInpaintPipeline) -> str:
    assert pipe.pva is not None
    return str(pipe.pva.config.recogniser)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    flags = parser(__doc__, people=100)
    add_split(flags)
    flags.add_argument("--model", default="mini", help="of PVAInpaintPipeline, for the mini recogniser (default: mini)")
    flags.add_argument("--region", choices=REGIONS, default="whole", help="what is painted over (default: whole)")
    flags.add_argument("--variants", nargs="*", choices=("visual", "lora"), default=("visual", "lora"))
    flags.add_argument("--personal-steps", type=int, default=40)
    flags.add_argument("--expressions", type=int, default=2, help="asked for of each person (default: 2)")
    flags.add_argument("--steps", type=int, default=20)
    flags.add_argument("--guidance", type=float, default=1.0, help="stresses the person (default: 1, none)")
    flags.add_argument(
        "--text-guidance", type=float, default=3.0, help="stresses the words where no reader guides (default: 3)"
    )
    add_identity_guidance(flags, "in a row of its own")
    add_reader(flags)
    flags.add_argument(
        "--words-guidance", type=float, default=WORDS_STRENGTH, help=f"the reader's (default: {WORDS_STRENGTH})"
    )
    flags.add_argument(
        "--words-start", type=float, default=WORDS_START, help=f"its first step (default: {WORDS_START})"
    )
    flags.add_argument("--batch", type=int, default=10)
    flags.add_argument("--sheet", type=Path, metavar="PNG", help="also save a contact sheet")
    flags.set_defaults(cache=Path("runs/photos"))
    args = flags.parse_args(argv)
    if args.people < 2 or args.expressions < 1:
        flags.error("a person needs a next one, and an expression: at least 2 people and 1 expression")
    return args


if __name__ == "__main__":
    run(main)
