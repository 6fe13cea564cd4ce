"""The same figures while a training goes on: for transformers' Trainer, for accelerate's loops, or called by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback

from idgen.devices import resolve_device
from idgen.errors import IdgenError
from idgen.evaluation.cache import RowCache
from idgen.evaluation.evidence import gather
from idgen.evaluation.judge import choose_judge
from idgen.evaluation.material import Material, Photo
from idgen.evaluation.measures import take_figures
from idgen.evaluation.protocol import Protocol
from idgen.evaluation.runner import flag
from idgen.imageio import load_array
from idgen.settings import build

if TYPE_CHECKING:
    from idgen.imageio import ImageLike

# Takes the people's names and gives pictures, each with the name of whom it should show.
Make = Callable[[Sequence[str]], Iterable[tuple[str, "ImageLike"]]]
MEASURES = ("identity", "retrieval", "detection", "diversity", "sharpness")


class EvaluationCallback(TrainerCallback):
    """Measures pictures of held-out people by a judge that has no part in the training.

        callback = EvaluationCallback(make, photos, made_with="mini", references=2, every=500)
        Trainer(..., callbacks=[callback])                     # transformers: at evaluations and every 500 steps
        callback.step(step, accelerator)                       # accelerate: in the loop; logs through accelerator.log
        figures = callback.measure()                           # by hand

    Args:
        make: called with the names of the people; gives (name, picture) for each picture that it made.
        photos: for each person real photos, the first `references` of which `make` shows to the model.
        judge: as `FaceEncoder.from_pretrained` takes it.
        made_with, rewarded_by: the recognisers that condition the model and that a loss or reward of the training uses.
        every: steps between two measurements; 0 measures at evaluations only.
        measures: names of idgen.evaluation.protocol.MEASURES.
        same_judge: go on where the judge has a part in the training.

    Attributes:
        history: (step, figures) of every measurement.

    Raises:
        IdgenError: the judge has a part in the training, one person only, or a reference without a face.
    """

    def __init__(
        self,
        make: Make,
        photos: Mapping[str, Sequence[ImageLike]],
        *,
        judge: str = "judge",
        made_with: str | None = None,
        rewarded_by: Sequence[str] = (),
        references: int = 1,
        every: int = 0,
        measures: Sequence[str] = MEASURES,
        same_judge: bool = False,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        if len(photos) < 2:
            raise IdgenError(f"an evaluation compares people and needs photos of at least 2, got {len(photos)}")
        self.make, self.every, self.seed = make, every, seed
        self.history: list[tuple[int, dict[str, float]]] = []
        self._who = choose_judge(judge, made_with, rewarded_by, device=device, allow_same=same_judge)
        rules = {"title": "while training", "source": "EvaluationCallback", "references": references, "judge": judge}
        self._protocol = build(Protocol, {"name": "training", **rules, "measures": list(measures)})
        self._people = list(photos)
        split: list[list[Photo]] = [[], []]
        for person, name in enumerate(self._people):
            for index, photo in enumerate(photos[name]):
                split[index >= references].append(_photo(photo, f"{name}/{index}", person))
        self._references, self._others = split
        self._cache, self._device = RowCache(None), resolve_device(device)

    def measure(self) -> dict[str, float]:
        """Make pictures and measure them: figures by name, and `flag: NAME` with the share of pictures that bear it."""
        numbers = {name: index for index, name in enumerate(self._people)}
        generated = []
        for index, (name, picture) in enumerate(self.make(self._people)):
            if name not in numbers:
                raise IdgenError(f"a picture was made of {name!r}, of whom there are no photos")
            generated.append(_photo(picture, f"{name}/{index}", numbers[name]))
        if {photo.person for photo in generated} != set(range(len(self._people))):
            raise IdgenError("no picture was made of some of the people: make at least one of each")
        material = Material(self._people, self._references, self._others, generated)
        evidence = gather(self._protocol, material, self._who, self._cache, self._device, seed=self.seed)
        self._cache.forget(generated)
        sheet = take_figures(evidence)
        flags = flag(evidence, sheet).per_image
        figures = {figure.name: figure.value for figure in sheet.figures}
        for name in sorted({one for own in flags for one in own}):
            figures[f"flag: {name}"] = sum(name in own for own in flags) / len(flags)
        return figures

    def step(self, step: int, accelerator: Any = None) -> dict[str, float] | None:
        """Measure where a measurement is due at this step, on the main process, and log it through accelerate.

        Returns:
            the figures; None where nothing was due.
        """
        if not self.every or step % self.every or not getattr(accelerator, "is_main_process", True):
            return None
        figures = self.measure()
        self.history.append((step, figures))
        if accelerator is not None:
            accelerator.log({f"evaluation/{name}": value for name, value in figures.items()}, step=step)
        return figures

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """transformers calls this after every step."""
        if state.is_world_process_zero:
            self.step(state.global_step)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """transformers calls this after an evaluation; the figures are added to its metrics as `eval_NAME`."""
        if not state.is_world_process_zero:
            return
        figures = self.history[-1][1] if self.history and self.history[-1][0] == state.global_step else self.measure()
        if not self.history or self.history[-1][0] != state.global_step:
            self.history.append((state.global_step, figures))
        if metrics is not None:
            metrics.update({f"eval_{name}": value for name, value in figures.items()})


def _photo(picture: ImageLike, name: str, person: int) -> Photo:
    source = picture if isinstance(picture, Path | np.ndarray) else load_array(picture)
    return Photo(source, name, person)
