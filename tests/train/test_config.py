"""Settings of the trainings: layers, and mistakes in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from idgen.errors import IdgenError
from idgen.train.config import dump, parse_config
from idgen.train.detector import DetectorConfig
from idgen.train.recogniser import RecogniserConfig
from tests.recipes import CONFIGS, config_class, plans, recipes, training_of
from tools.train_mini import _filled


@pytest.mark.parametrize("recipe", recipes(), ids=lambda file: file.relative_to(CONFIGS).with_suffix("").as_posix())
def test_every_recipe_that_ships_is_valid(recipe: Path) -> None:
    config = parse_config(config_class(training_of(recipe)), ["--config", str(recipe)])
    assert config.output_dir == Path("runs") / recipe.relative_to(CONFIGS).with_suffix("")


@pytest.mark.parametrize("plan", plans(), ids=lambda file: file.stem)
def test_every_job_of_a_plan_has_its_training_recipe_settings_and_needs(plan: Path) -> None:
    jobs = yaml.safe_load(plan.read_text())["jobs"]
    assert len(jobs) >= 5
    for name, job in jobs.items():
        assert set(job.get("needs", [])) <= jobs.keys() - {name}, name
        if "synth" in job:
            continue
        recipe = plan.parent / f"{job['config']}.yaml"
        assert training_of(recipe) == job["stage"] and job["minutes"] > 0, name
        for settings in (job.get("set", {}), job.get("rehearse", {})):
            words = [
                word for key, value in settings.items() for word in ("--set", f"{key}={_filled(value, Path('o'))}")
            ]
            parse_config(config_class(job["stage"]), ["--config", str(recipe), *words])


@pytest.mark.parametrize(
    "name", ["configs/mini/detector.yaml", "configs/mini/detector", "mini/detector.yaml", "mini/detector"]
)
def test_a_recipe_is_found_by_its_name_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_config(DetectorConfig, ["--config", name]).output_dir == Path("runs/mini/detector")
    # A file of one's own under that name comes first.
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("output_dir: mine\ndata: d\nvalidation: v\n")
    assert parse_config(DetectorConfig, ["--config", name]).output_dir == Path("mine")


def test_a_recipe_of_nearly_that_name_is_offered() -> None:
    for name in ("mini/detectr", "configs/mini/detectr.yaml"):
        with pytest.raises(IdgenError, match=rf"^there is no config {name}: did you mean mini/detector\?$"):
            parse_config(DetectorConfig, ["--config", name])
    with pytest.raises(IdgenError, match=r"cannot read the config nowhere\.yaml"):
        parse_config(DetectorConfig, ["--config", "nowhere.yaml"])


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        yaml.safe_dump({"output_dir": "o", "data": "d", "validation": "v", "seed": 7, "train_batch_size": 5})
    )
    config = parse_config(DetectorConfig, ["--config", str(file), "--set", "seed=8", "--learning-rate", "0.5"])
    assert (config.seed, config.train_batch_size, config.learning_rate, config.log_steps) == (8, 5, 0.5, 20)


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(IdgenError, match=r"'learning_rat'.*'learning_rate'"):
        parse_config(DetectorConfig, ["--output_dir", "o", "--data", "d", "--validation", "v", "--learning_rat", "1"])


def test_no_means_no_precision_in_yaml_and_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("output_dir: o\ndata: d\nvalidation: v\nmixed_precision: no\n")
    assert parse_config(DetectorConfig, ["--config", str(file)]).mixed_precision == "no"
    assert parse_config(DetectorConfig, ["--config", str(file), "--mixed_precision", "bf16"]).mixed_precision == "bf16"


def test_the_config_that_a_training_wrote_gives_the_same_settings_again(tmp_path: Path) -> None:
    first = parse_config(
        RecogniserConfig, ["--config", str(CONFIGS / "mini" / "recogniser.yaml"), "--mixed_precision", "no"]
    )
    (tmp_path / "config.yaml").write_text(dump(first))
    assert parse_config(RecogniserConfig, ["--config", str(tmp_path / "config.yaml")]) == first


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "/nowhere.yaml"], "cannot read the config /nowhere.yaml"),
        (
            ["--config", "configs/mini/detektor.yaml"],
            "no config configs/mini/detektor.yaml: did you mean mini/detector?",
        ),
        (["--output_dir", "o", "--validation", "v"], "'data' is missing"),
        (["--output_dir", "o", "--data", "d", "--validation", "v", "--seed", "many"], "'seed'"),
        (["--set", "seed"], "write it as name=value"),
        (["seed"], "unexpected argument 'seed'"),
        (["--seed"], "--seed lacks a value"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], says: str) -> None:
    with pytest.raises(IdgenError) as caught:
        parse_config(DetectorConfig, arguments)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_yaml_is_told_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("a: [1,\nb: {")
    with pytest.raises(IdgenError, match=r"broken\.yaml is not YAML") as caught:
        parse_config(DetectorConfig, ["--config", str(file)])
    assert "\n" not in str(caught.value)
