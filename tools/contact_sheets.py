"""Draw the contact sheets of the synthetic people: docs/images/people.png, shots.png and ground_truth.png.

    python tools/contact_sheets.py [--out DIR] [--supersampling N]

The people on them (900600 and on) are in no training, validation or test set. Run it again whenever the renderer changes.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from idgen.files import atomic_write
from idgen.sheet import SheetRow, contact_sheet
from idgen.synthetic import Person, RenderBatch, Renderer, Shot, attributes, same_appearance, sample_person, sample_shot
from idgen.synthetic.captions import caption, caption_rng
from idgen.synthetic.samples import PALETTE

ROOT = Path(__file__).resolve().parents[1]
FIRST = 900_600
COLUMNS, SIZE = 7, 128


@dataclass(frozen=True)
class Artist:
    supersampling: int

    def __call__(self, people: list[Person], shots: list[Shot]) -> RenderBatch:
        return Renderer().render(people, shots, size=SIZE, supersampling=self.supersampling)

    def pictures(self, people: list[Person], shots: list[Shot]) -> list[Image.Image]:
        return [Image.fromarray(image) for image in self(people, shots).images]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder (default: docs/images)")
    parser.add_argument("--supersampling", type=int, default=1, help="shaded samples along a pixel's side (default: 1)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    artist = Artist(args.supersampling)
    for name, rows in (("people", people_rows), ("shots", shot_rows), ("ground_truth", ground_truth_rows)):
        png = io.BytesIO()
        contact_sheet(rows(artist), cell=SIZE, columns=COLUMNS).save(png, "png", optimize=True)
        with atomic_write(args.out / f"{name}.png") as temporary:
            temporary.write_bytes(png.getvalue())
        print(f"{args.out / name}.png: {len(png.getvalue()) // 1000} kB")


def people_rows(artist: Artist) -> list[SheetRow]:
    """Three rows of strangers, and a row of people who share everything but the shape of the head."""
    people = [sample_person(0, FIRST + number) for number in range(3 * COLUMNS)]
    strangers = artist.pictures(people, [sample_shot(0, person, 0, frontal=True) for person in people])
    twins = [people[4], *(same_appearance(people[4], 0, variant) for variant in range(1, COLUMNS))]
    alike = artist.pictures(twins, [sample_shot(0, twins[0], 0, frontal=True)] * COLUMNS)
    return [
        SheetRow(strangers, title="people"),
        SheetRow(alike, title="the first one's skin, hair, brows and eyes on heads of other shapes"),
    ]


def shot_rows(artist: Artist) -> list[SheetRow]:
    """Shots of four people: one row each."""
    rows = []
    for number in (5, 11, 8, 14):
        person = sample_person(0, FIRST + number)
        shots = [sample_shot(0, person, shot) for shot in range(COLUMNS)]
        labels = [shot.expression for shot in shots]
        rows.append(SheetRow(artist.pictures([person] * COLUMNS, shots), labels, f"shots of person {person.number}"))
    return rows


def ground_truth_rows(artist: Artist) -> list[SheetRow]:
    """Landmarks, parsing mask, pose and caption of one shot of each of several people."""
    people = [sample_person(0, FIRST + 30 + number) for number in range(COLUMNS)]
    shots = [sample_shot(0, person, 0) for person in people]
    batch = artist(people, shots)
    marked = [_marked(*item) for item in zip(batch.images, batch.landmarks68, batch.landmarks5, strict=True)]
    masks = [_mask(parsing) for parsing in batch.parsing]
    poses = [f"{yaw:.0f}, {pitch:.0f}, {roll:.0f}" for yaw, pitch, roll in batch.pose]
    said = caption(attributes(people[0], shots[0]), caption_rng(0, people[0].number, shots[0].number))
    return [
        SheetRow([Image.fromarray(image) for image in batch.images], title=f'caption of the first one: "{said}"'),
        SheetRow(marked, poses, title="5 and 68 landmarks; yaw, pitch and roll in degrees"),
        SheetRow(
            masks, title="parsing masks: skin, brows, eyes, iris, nose, lips, mouth, ears, neck, hair, glasses, clothes"
        ),
    ]


def _marked(image: np.ndarray, landmarks68: np.ndarray, landmarks5: np.ndarray) -> Image.Image:
    scale = 3
    picture = Image.fromarray(image).resize((SIZE * scale, SIZE * scale), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for marks, radius, colour in ((landmarks68, 3, (0, 240, 255)), (landmarks5, 5, (255, 220, 0))):
        for x, y in (marks + 0.5) * scale:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return picture


def _mask(parsing: np.ndarray) -> Image.Image:
    mask = Image.fromarray(parsing)
    mask.putpalette(PALETTE)
    return mask.convert("RGB")


if __name__ == "__main__":
    main()
