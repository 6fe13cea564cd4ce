"""What `idgen synth` is asked for, and how that is cut into units of work."""

from __future__ import annotations

from dataclasses import dataclass

from idgen.errors import IdgenError

FORMATS = ("folder", "webdataset", "ffhq-ref", "arrays")
SIZES = range(32, 1025)
SUPERSAMPLINGS = range(1, 5)
MAX_PERSON, MAX_SHOTS = 999_999, 1000  # what the file names p000000/s000 hold


@dataclass(frozen=True)
class Unit:
    """A group of people whose shots are rendered and completed together."""

    index: int
    people: range


@dataclass(frozen=True)
class SynthSettings:
    """What decides the bytes of a data set. Raises IdgenError for a value out of its range.

    people, shots: how many people, and images of each; first_person: the number of the first person.
    size: width and height in pixels, 32..1024; supersampling: rendered pixels per pixel and axis, 1..4.
    format: "folder", "webdataset", "ffhq-ref" (the folder with FFHQ-Ref's tables), or "arrays" (of numpy).
    device: "cpu" or "cuda" (the two differ in last bits).
    """

    people: int
    shots: int
    size: int = 128
    seed: int = 0
    first_person: int = 0
    supersampling: int = 1
    format: str = "folder"
    device: str = "cpu"

    def __post_init__(self) -> None:
        check(self.people > 0, f"--people must be at least 1, not {self.people}")
        check(0 < self.shots <= MAX_SHOTS, f"--shots must be 1 to {MAX_SHOTS}, not {self.shots}")
        check(self.size in SIZES, f"--size must be {SIZES[0]} to {SIZES[-1]} pixels, not {self.size}")
        check(self.supersampling in SUPERSAMPLINGS, f"--supersampling must be 1 to 4, not {self.supersampling}")
        check(self.seed >= 0, f"--seed must not be negative, but is {self.seed}")
        check(self.first_person >= 0, f"--first-person must not be negative, but is {self.first_person}")
        last = self.first_person + self.people - 1
        check(last <= MAX_PERSON, f"the last person would be number {last}; person numbers end at {MAX_PERSON}")
        check(self.format in FORMATS, f"--format must be one of {', '.join(FORMATS)}, not {self.format!r}")

    @property
    def images(self) -> int:
        return self.people * self.shots

    def units(self, images_per_unit: int) -> list[Unit]:
        """The people in groups of about `images_per_unit` images, or an eighth of a small data set."""
        people_per_unit = max(1, min(images_per_unit, self.images // 8) // self.shots)
        numbers = range(self.first_person, self.first_person + self.people)
        starts = range(0, self.people, people_per_unit)
        return [Unit(index, numbers[start : start + people_per_unit]) for index, start in enumerate(starts)]


def check(good: bool, message: str) -> None:
    """Raises IdgenError with this message unless `good`."""
    if not good:
        raise IdgenError(message)
