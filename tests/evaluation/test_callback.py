"""Measuring while training: by hand, in accelerate's loops, under transformers' Trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from idgen.errors import IdgenError
from idgen.evaluation import EvaluationCallback
from tests.evaluation import toys

PHOTOS = {toys.name_of(person): [toys.photo(person, shot) for shot in range(5)] for person in range(5)}


@pytest.fixture(autouse=True)
def _encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.with_toys(monkeypatch)


class Model:
    """Draws what it has learned: strangers at first, the people after three steps."""

    steps = 0

    def __call__(self, people: Sequence[str]) -> Iterator[tuple[str, Any]]:
        for person, name in enumerate(people):
            for image in range(2):
                who = person if self.steps >= 3 else 500 + person
                yield name, Image.fromarray(toys.photo(who, 100 + image + 10 * self.steps))


@pytest.fixture
def model() -> Model:
    return Model()


def callback(model: Model, **options: Any) -> EvaluationCallback:
    return EvaluationCallback(model, PHOTOS, made_with="mini", references=2, device="cpu", **options)


def test_figures_follow_what_the_model_has_learned(model: Model) -> None:
    measure = callback(model)
    before = measure.measure()
    model.steps = 3
    after = measure.measure()
    assert before["id_score"] < 0.3 < 0.8 < after["id_score"]
    assert before["flag: wrong person"] > 0.5 and "flag: wrong person" not in after
    assert after["faces_found"] == 1 and 0.5 < after["sharpness_face"] < 1.5


def test_photos_are_read_once_and_made_pictures_are_forgotten(model: Model) -> None:
    measure = callback(model)
    measure.measure()
    network = measure._who.encoder._network
    kept, read = len(measure._cache._digests), network.embedded
    model.steps = 1
    measure.measure()
    assert network.embedded - read == 10 and len(measure._cache._digests) == kept == 25


def test_accelerates_loops_log_what_is_due(model: Model) -> None:
    logged = []
    accelerator = SimpleNamespace(is_main_process=True, log=lambda values, step: logged.append((step, values)))
    measure = callback(model, every=2, measures=("identity",))
    for step in range(1, 5):
        model.steps = step
        assert (measure.step(step, accelerator) is None) == bool(step % 2)
    assert [step for step, _ in logged] == [2, 4] == [step for step, _ in measure.history]
    assert logged[1][1]["evaluation/id_score"] > logged[0][1]["evaluation/id_score"] + 0.5
    other = SimpleNamespace(is_main_process=False, log=lambda *_: pytest.fail("only the main process logs"))
    assert measure.step(6, other) is None


def test_transformers_trainer_takes_it(model: Model, tmp_path: Any) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            out = self.layer(x)
            return {"loss": (out[:, 0] - labels).square().mean(), "logits": out}

    class Learns(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            model.steps = state.global_step

    rows = [{"x": np.ones(2, np.float32), "labels": np.float32(1)} for _ in range(8)]
    settings = TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=2, eval_strategy="steps", eval_steps=4, report_to=[],
        use_cpu=True, disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    measure = callback(model, every=2, measures=("identity",))
    trainer = Trainer(Tiny(), settings, train_dataset=rows, eval_dataset=rows, callbacks=[Learns(), measure])
    trainer.train()
    assert [step for step, _ in measure.history] == [2, 4]
    model.steps = 3
    assert trainer.evaluate()["eval_id_score"] > 0.8


def test_mistakes_are_named(model: Model) -> None:
    with pytest.raises(IdgenError, match="at least 2"):
        EvaluationCallback(model, {"a": PHOTOS["toy00"]})
    with pytest.raises(IdgenError, match="--same-judge"):
        EvaluationCallback(model, PHOTOS, made_with="judge")
    wrong = EvaluationCallback(lambda people: [("nobody", toys.photo(0, 0))], PHOTOS, device="cpu")
    with pytest.raises(IdgenError, match="'nobody'"):
        wrong.measure()
    few = EvaluationCallback(lambda people: [(people[0], toys.photo(0, 0))], PHOTOS, device="cpu")
    with pytest.raises(IdgenError, match="some of the people"):
        few.measure()
