"""What the judge says about real photos of held-out people, measured once and stored beside its weights.

The two ends of the id_score scale need photos of a hundred people; `idgen demo` has one person, so it reads them here.
`python -m benchmarks.judge_statistics` measures and writes the file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from idgen.errors import IdgenError
from idgen.files import atomic_write
from idgen.metrics.identity import PhotoStatistics

FILE = "statistics.json"


@dataclass(frozen=True)
class JudgeStatistics(PhotoStatistics):
    """The scale, and the id_scores of two things that are no new picture of the person.

    Attributes:
        nearest_training_person: id_score of photos of the training person nearest to the reference.
        same_appearance: id_score of photos of somebody with the same skin, hair, brows and eyes but another head shape.
        people, photos: how many people, and photos of each, `same` and `different` were measured on.
        source: the command that measured them.
    """

    nearest_training_person: float
    same_appearance: float
    people: int
    photos: int
    source: str

    def save(self, judge: Path) -> None:
        """Write statistics.json into the judge's folder."""
        with atomic_write(judge / FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, judge: Path) -> JudgeStatistics:
        """Read the statistics of the judge in this folder.

        Raises:
            IdgenError: the file is missing or is not what `save` wrote.
        """
        path = judge / FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise IdgenError(
                f"the judge at {judge} has no {FILE}: measure it with `python -m benchmarks.judge_statistics`"
            ) from None
        except (ValueError, TypeError, OSError) as error:
            raise IdgenError(
                f"{path} is damaged ({error}): measure it again with `python -m benchmarks.judge_statistics`"
            ) from None
