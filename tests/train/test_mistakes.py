"""What a user may get wrong, by the scripts themselves as they are run: status 2, one line, no traceback, and nothing lost.

The scripts run in this process, so that a tiny family with a detector that finds something can stand in for the mini one.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from idgen.models.mini_detector import MiniDetector
from idgen.train.checkpoints import damage, newest_first
from tests.tiny_family import face_in_the_middle, tiny_family

REPO = Path(__file__).parents[2]
SHORT = {
    "max_train_steps": 1, "train_batch_size": 2, "num_threads": 1, "mixed_precision": "no", "report_to": "none",
    "validation_at_start": "false", "lr_warmup_steps": 0,
}  # fmt: skip
ADAPTER = SHORT | {"settings.rank": 2, "check.people": 2, "check.steps": 1}
LORA = SHORT | {"data.caption": "a face", "num_inference_steps": 1, "num_validation_images": 1, "condition": "text"}

Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def run(family: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a script of train/ and gives its status and the lines that it said."""
    monkeypatch.setenv("IDGEN_MINI", str(family))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)

    def one(script: str, settings: dict[str, Any], *words: str) -> tuple[int, list[str]]:
        given = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", [script, *given, *words])
        capsys.readouterr()
        status = 0
        try:
            runpy.run_path(str(REPO / "train" / script), run_name="__main__")
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else 1
        return status, capsys.readouterr().err.splitlines()

    return one


def photos(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (64, 64), (40 * number + 60, 90, 120)).save(folder / f"{number}.png")
    return folder


def fails(outcome: tuple[int, list[str]], *says: str) -> None:
    status, lines = outcome
    told = [line for line in lines if line.startswith("idgen: ")]
    assert status == 2 and len(told) == 1 and lines[-1] == told[0] and not any("Traceback" in line for line in lines)
    assert all(one in told[0] for one in says), told[0]


@pytest.mark.parametrize(
    ("settings", "words", "says"),
    [
        ({"learning_rat": 1}, (), ("unknown setting 'learning_rat'", "did you mean 'learning_rate'")),
        ({}, ("--set", "check.poeple=3"), ("unknown setting 'check.poeple'", "did you mean 'check.people'")),
        ({"people": 3}, (), ("unknown setting 'people'", "did you mean 'check.people'")),
        ({"resume_from_checkpoint": "latest"}, (), ("did you mean 'resume'?",)),
        ({"train_batch_size": "many"}, (), ("'train_batch_size'", "integer", "'many'")),
        ({"identity_schedule": "windowed"}, (), ("'identity_schedule'", "'scaled', 'naive' or 'window'")),
        ({"data": "nowhere"}, (), ("no metadata.jsonl in nowhere", "idgen synth --out nowhere")),
        ({"config": "nowhere.yaml"}, (), ("cannot read the config nowhere.yaml",)),
        ({"report_to": "wandbb"}, (), ("report_to names 'wandbb'",)),
        ({"start_from": "nowhere"}, (), ("start_from: no such file or folder: nowhere",)),
    ],
)
def test_settings(run: Run, people_folder: Path, tmp_path: Path, settings: Any, words: Any, says: Any) -> None:
    given = ADAPTER | {"output_dir": tmp_path / "out", "data": people_folder, "validation": people_folder} | settings
    fails(run("adapter.py", given, *words), *says)
    assert not (tmp_path / "out").exists(), "nothing is left of what never began"


def test_a_typo_in_a_file_names_the_nearest_and_the_file_is_not_touched(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("output_dir: out\nmax_trian_steps: 5\n")
    fails(run("adapter.py", {"config": file}), "'max_trian_steps'", "'max_train_steps'")


@pytest.mark.parametrize("other", [{"freeze_encoder": True}, {"adversarial_weight": 0.5}])
def test_an_autoencoder_of_which_nothing_is_left_to_train(
    run: Run, people_folder: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    given = SHORT | {"output_dir": tmp_path / "out", "data": people_folder, "validation": people_folder} | other
    fails(run("autoencoder.py", given | {"freeze_decoder": True}), "freeze_decoder trains the encoder alone")


def test_weights_to_start_from_that_are_none(run: Run, people_folder: Path, tmp_path: Path) -> None:
    given = SHORT | {"output_dir": tmp_path / "out", "data": people_folder, "validation": people_folder}
    fails(run("autoencoder.py", given | {"start_from": tmp_path / "nowhere"}), "start_from: no such file or folder")
    (tmp_path / "empty").mkdir()
    fails(run("autoencoder.py", given | {"start_from": tmp_path / "empty"}), "config.json", "empty")
    assert not (tmp_path / "out").exists()


def test_people_of_one_photo_each(run: Run, people_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = [json.loads(line) for line in (people_folder / "metadata.jsonl").read_text().splitlines()]
    alone = {row["person"]: row for row in rows}.values()
    for row in alone:
        for name in ("file_name", "mask_file_name"):
            (data / row[name]).parent.mkdir(parents=True, exist_ok=True)
            (data / row[name]).write_bytes((people_folder / row[name]).read_bytes())
    (data / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in alone))
    given = ADAPTER | {"output_dir": tmp_path / "out", "data": data, "validation": people_folder}
    fails(run("adapter.py", given), "nobody in", "has two photos")
    rewards = ("--set", "rewards.identity.kind=identity", "--set", "rewards.identity.source=mini")
    given = SHORT | {"output_dir": tmp_path / "out", "data": data, "validation": people_folder, "subject": "ip_faceid"}
    fails(run("reward.py", given, *rewards), "nobody in", "has two photos")


def test_photos_that_cannot_be_used(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photos(tmp_path / "photos")
    given = LORA | {"output_dir": tmp_path / "out", "data.photos": folder}
    fails(run("lora.py", given | {"data.photos": tmp_path / "nowhere"}), "cannot read the folder", "nowhere")
    fails(run("lora.py", given | {"data.caption": '""'}), "0.png has an empty caption: write one into 0.txt")
    monkeypatch.setattr(MiniDetector, "detect", lambda self, images, threshold=0.5: [
        found._replace(boxes=found.boxes[:0], landmarks=found.landmarks[:0], scores=found.scores[:0])
        for found in face_in_the_middle(self, images)
    ])  # fmt: skip
    fails(run("lora.py", given), "no face found in any of the 3 photos in")
    given = ADAPTER | {"output_dir": tmp_path / "out", "photos.path": folder, "photos.cache": tmp_path / "cache"}
    fails(run("adapter.py", given), "no face found in any of the 3 photos in")
    fails(run("adapter.py", given | {"photos.faceless": "error"}), "no face found in 0.png", "photos.faceless")


def test_going_on_with_another_configuration(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = LORA | {"output_dir": out, "data.photos": photos(tmp_path / "photos"), "adapter.rank": 2}
    assert run("lora.py", given)[0] == 0
    before = (newest_first(out)[0] / "state.pt").read_bytes()
    more = given | {"max_train_steps": 2}
    fails(run("lora.py", more | {"adapter.rank": 4}), "adapter.rank: 2 -> 4", "--resume_changed true", "--resume false")
    # Whoever insists is told what does not fit.
    fails(
        run("lora.py", more | {"adapter.rank": 4, "resume_changed": "true"}),
        "does not fit this training",
        "size mismatch",
    )
    assert damage(newest_first(out)[0]) is None and (newest_first(out)[0] / "state.pt").read_bytes() == before
    status, lines = run("lora.py", more | {"learning_rate": 0.5, "resume_changed": "true"})
    assert status == 0 and any("goes on with changed settings: learning_rate: " in line for line in lines)
    assert newest_first(out)[0].name == "checkpoint-2"


def test_an_output_that_cannot_be_written(run: Run, people_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    given = ADAPTER | {"output_dir": tmp_path / "file" / "out", "data": people_folder, "validation": people_folder}
    fails(run("adapter.py", given), "cannot write", "choose another place")
