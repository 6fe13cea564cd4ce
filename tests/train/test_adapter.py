"""Identity adapters beside a text-to-image model, on a random tiny family: what they learn from, and what is saved."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

import idgen.configs
from idgen.adapters.registry import adapter_class
from idgen.checkpoint import load_metadata, load_weights
from idgen.data.faces import FaceFolder
from idgen.errors import IdgenError
from idgen.identity import Identity
from idgen.models.mini_detector import MiniDetector
from idgen.train.adapter import AdapterStage, AdapterTrainConfig
from idgen.train.config import parse_config
from idgen.train.loop import fit
from idgen.train.reward import RewardStage, RewardTrainConfig
from idgen.train.reward_checks import photo_embeddings
from idgen.train.train_log import read_log
from tests.tiny_family import face_in_the_middle, tiny_family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(autouse=True)
def tiny(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDGEN_MINI", str(family))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)


def config(out: Path, people: Path, **changes: Any) -> AdapterTrainConfig:
    values: dict[str, Any] = {
        "output_dir": out, "data": people, "validation": people, "settings": {"rank": 2}, "max_train_steps": 2,
        "train_batch_size": 4, "validation_steps": 2, "log_steps": 1, "num_threads": 1, "mixed_precision": "no",
        "lr_warmup_steps": 0, "learning_rate": 0.01, "report_to": "none", "check": {"people": 2, "images": 2, "steps": 2},
    }  # fmt: skip
    return AdapterTrainConfig(**(values | changes))


def one_step(settings: AdapterTrainConfig, progress: float = 1.0) -> tuple[AdapterStage, dict[str, torch.Tensor]]:
    stage = AdapterStage(settings, torch.device("cpu"))
    batch = stage.batch(np.random.default_rng(0))
    torch.manual_seed(0)
    made = stage.losses(stage.module, batch, progress)
    made["loss"].backward()
    return stage, {name: value.detach() for name, value in made.items()}


@pytest.mark.parametrize("method", ["ip_faceid", "instantid"])
def test_an_adapter_learns_and_is_saved_as_the_method_loads_it(
    tmp_path: Path, people_folder: Path, method: str
) -> None:
    settings = {"rank": 2} if method == "ip_faceid" else {"projection": {"dim": 32, "depth": 1, "heads": 2}}
    weights = fit(AdapterStage, config(tmp_path / "out", people_folder, method=method, settings=settings))
    file = weights / "adapter.safetensors"
    assert load_metadata(file)["method"] == method and json.loads(load_metadata(file)["reward_recognisers"]) == []
    again = AdapterStage(config(tmp_path / "two", people_folder, method=method, adapter=file), torch.device("cpu"))
    assert isinstance(again.module.adapter, adapter_class(method))  # type: ignore[attr-defined]
    stored = load_weights(file)
    assert all(torch.equal(value, stored[name]) for name, value in again.module.adapter.state_dict().items())
    checks = [row["validation"] for row in read_log(tmp_path / "out" / "log.jsonl") if "validation" in row]
    assert len(checks) == 2 and {"identity", "detection", "diversity", "adherence"} <= set(checks[0])
    # What learns is the adapter alone.
    assert (tmp_path / "out" / "checkpoint-2" / "state.pt").stat().st_size < 20 * file.stat().st_size


INSTANTID = {"method": "instantid", "settings": {"projection": {"dim": 32, "depth": 1, "heads": 2}}}


@pytest.mark.parametrize(("changes", "most"), [({}, 4), (INSTANTID, 1)])
def test_what_an_adapter_is_trained_on_is_what_it_reads_of_an_identity_later(
    tmp_path: Path, people_folder: Path, changes: dict[str, Any], most: int
) -> None:
    whole = {"face_dropout": 0, "prompt_dropout": 0, "condition_dropout": 0}
    settings = config(tmp_path, people_folder, **changes, **whole, most_references=most, train_batch_size=3)
    stage = AdapterStage(settings, torch.device("cpu"))
    batch = stage.batch(np.random.default_rng(0))
    data, raw = stage.samples.data, photo_embeddings(stage.samples.data, "mini", torch.device("cpu"))
    assert not torch.allclose(raw.norm(dim=1), torch.ones(len(raw)), atol=0.05)
    adapter, noise = stage.module.adapter, torch.randn(1, *stage.subject.noise_shape)
    with torch.no_grad():
        for place, vector in enumerate(batch["vectors"]):
            condition = stage.subject.condition(vector[None], batch["prompts"][place : place + 1])
            made = stage.module(noise, torch.tensor([500]), condition)
            shots = next(shots for shots in data.shots if batch["ids"][place] in map(data.name, shots))
            others = [int(shot) for shot in shots if data.name(shot) != batch["ids"][place]]
            groups = [rows for count in range(1, most + 1) for rows in combinations(others, count)]
            later = [
                stage.subject.policy.unet(
                    noise,
                    torch.tensor([500]),
                    condition.context,
                    cross_attention_kwargs=adapter.condition(Identity(raw[list(rows)], "mini"), guidance=False).kwargs,
                ).sample
                for rows in groups
            ]
            assert min(float((one - made).abs().max()) for one in later) < 1e-5
            assert max(float((one - made).abs().max()) for one in later) > 1e-5


@pytest.mark.parametrize("sampler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_what_a_model_is_sampled_with_changes_nothing_of_the_training(
    tmp_path: Path, people_folder: Path, sampler: Any
) -> None:
    stage = AdapterStage(config(tmp_path, people_folder, identity_weight=1.0), torch.device("cpu"))
    batch, told = stage.batch(np.random.default_rng(0)), []
    for scheduler in (stage.subject.pipe.scheduler, sampler.from_config(stage.subject.pipe.scheduler.config)):
        stage.subject.pipe.scheduler = scheduler
        torch.manual_seed(0)
        told.append(stage.losses(stage.module, batch, 1.0))
    assert all(torch.allclose(value, told[1][name], atol=1e-4) for name, value in told[0].items())


@pytest.mark.parametrize("photos", [False, True])
def test_raw_embeddings_stay_raw_wherever_they_come_from(tmp_path: Path, people_folder: Path, photos: bool) -> None:
    given = on_photos if photos else config
    more = {"photos": {"caption": "a face"}} if photos else {}
    settings = given(tmp_path / "out", people_folder, **INSTANTID, most_references=1, **more)
    stage = AdapterStage(settings, torch.device("cpu"))
    if photos:
        raw = torch.stack([photo.vector.float() for photo in stage.samples.photos])
    else:
        raw = photo_embeddings(stage.samples.data, "mini", torch.device("cpu"))
    drawn = stage.samples.draw(np.random.default_rng(0), 4, 1)
    assert bool((torch.cdist(drawn.vectors, raw).amin(1) < 1e-4).all())
    assert drawn.targets is None or bool((drawn.targets.norm(dim=1) <= 1.001).all())
    assert bool((torch.cdist(stage.checks.vectors, photo_embeddings(
        FaceFolder.open(people_folder), "mini", torch.device("cpu"))).amin(1) < 1e-4).all())  # fmt: skip


@pytest.mark.parametrize("schedule", ["naive", "window", "scaled"])
def test_a_loss_of_identity_acts_after_its_start_and_reaches_the_adapter(tmp_path, people_folder, schedule) -> None:
    changes = {"identity_weight": 1.0, "identity_schedule": schedule, "identity_max_timestep": 900, "face_dropout": 0}
    settings = config(tmp_path, people_folder, **changes, prompt_dropout=0, condition_dropout=0)
    _, before = one_step(settings, 0.4)
    stage, after = one_step(settings, 0.5)
    assert "identity" not in before and 0 < float(after["identity"]) < 2
    assert float(after["loss"]) == pytest.approx(float(after["denoising"] + after["identity"]), rel=1e-5)
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in stage.module.parameters())


def test_an_adapter_that_a_recogniser_trained_names_it(tmp_path: Path, people_folder: Path) -> None:
    settings = config(tmp_path, people_folder, identity_weight=0.1, identity_start=0.0)
    header = load_metadata(fit(AdapterStage, settings) / "adapter.safetensors")
    assert json.loads(header["reward_recognisers"]) == ["mini"]


def test_who_and_what_are_each_left_out_of_some_samples(tmp_path: Path, people_folder: Path) -> None:
    shares = {"face_dropout": 0.2, "prompt_dropout": 0.3, "condition_dropout": 0.1}
    stage = AdapterStage(config(tmp_path, people_folder, **shares, train_batch_size=2000), torch.device("cpu"))
    batch = stage.batch(np.random.default_rng(0))
    face = batch["vectors"].abs().sum(1) > 0
    words = torch.tensor([bool(prompt) for prompt in batch["prompts"]])
    assert torch.equal(face, batch["told_who"])
    seen = [
        float((face & ~words).float().mean()),
        float((~face & words).float().mean()),
        float((~face & ~words).float().mean()),
    ]
    assert seen == pytest.approx([0.3, 0.2, 0.1], abs=0.04)


def test_gradients_with_and_without_checkpointing_are_the_same(tmp_path: Path, people_folder: Path) -> None:
    fit(AdapterStage, config(tmp_path / "plain", people_folder))
    fit(AdapterStage, config(tmp_path / "again", people_folder, gradient_checkpointing=True))
    plain, again = (load_weights(tmp_path / name / "weights" / "adapter.safetensors") for name in ("plain", "again"))
    assert all(torch.allclose(value, again[name], atol=1e-5) for name, value in plain.items())


def test_a_training_by_reward_goes_on_from_it(tmp_path: Path, people_folder: Path) -> None:
    weights = fit(AdapterStage, config(tmp_path / "plain", people_folder, max_train_steps=1))
    rewards = {"identity": {"kind": "identity", "source": "mini"}}
    settings = RewardTrainConfig(
        output_dir=tmp_path / "reward", subject="ip_faceid", adapter=weights / "adapter.safetensors", data=people_folder,
        validation=people_folder, rewards=rewards, algorithm={"name": "draft", "steps": 2}, train_batch_size=2,
        check={"people": 2, "images": 2, "steps": 2}, mixed_precision="no", num_threads=1, report_to="none",
        dry_run=True,
    )  # fmt: skip
    fit(RewardStage, settings)
    assert not (tmp_path / "reward").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "ip_faceidd"}, "no method 'ip_faceidd': did you mean 'ip_faceid'"),
        ({"method": "pulid"}, "pulid reads more of a person than a face embedding: here ip_faceid, instantid can be"),
        ({"method": "arc2face"}, "arc2face is a model of its own and no adapter"),
        ({"settings": {"rnk": 3}}, "ip_faceid has no setting 'rnk': there are "),
        ({"settings": {"projection": {"nonsense": 3}}}, "settings of ip_faceid: "),
        ({"model": "nowhere/at-all"}, "nowhere/at-all is neither a folder nor"),
        ({"face_dropout": 0.5, "prompt_dropout": 0.6}, "are shares of one whole"),
        ({"conditioning": "mnii"}, "mnii"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, people_folder: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(IdgenError) as caught:
        AdapterStage(config(tmp_path, people_folder, **changes), torch.device("cpu"))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("recipe", ["mini", "sd15"])
def test_recipes_are_valid(recipe: str) -> None:
    file = Path(idgen.configs.__file__).parent / recipe / "adapter.yaml"
    assert parse_config(AdapterTrainConfig, ["--config", str(file)]).output_dir == Path(f"runs/{recipe}/adapter")


def on_photos(out: Path, people: Path, **changes: Any) -> AdapterTrainConfig:
    photos = {"path": str(people), "cache": out.parent / "cache"} | changes.pop("photos", {})
    return config(out, people, data=None, photos=photos, **changes)


def test_photos_of_a_folder_are_trained_on_and_what_is_left_out_is_in_the_report(tmp_path, people_folder) -> None:
    data = tmp_path / "photos"
    for number, row in enumerate(
        json.loads(line) for line in (people_folder / "metadata.jsonl").read_text().splitlines()
    ):
        file = data / f"person {row['person']}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((people_folder / row["file_name"]).read_bytes())
        file.with_suffix(".txt").write_text(row["caption"])
    (data / "person 950000" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not really")
    settings = on_photos(tmp_path / "out", data, validation=None, identity_weight=0.1, identity_start=0.0)
    fit(AdapterStage, settings)
    figures = json.loads((tmp_path / "out" / "report" / "figures.json").read_text())
    assert figures["data"]["photos"] == 24 and figures["data"]["people"] == 6
    assert list(figures["data"]["unreadable"]) == ["person 950000/broken.png"]
    assert "broken.png" in (tmp_path / "out" / "report" / "README.md").read_text()
    assert (tmp_path / "out" / "grids" / "000000.png").exists()
    # The second training finds latents, embeddings and prompts, and sees the very same samples.
    again = settings.model_copy(update={"output_dir": tmp_path / "again"})
    assert fit(AdapterStage, again) and list((tmp_path / "cache" / "prompts").rglob("*.safetensors"))
    one, other = (
        load_weights(run / "weights" / "adapter.safetensors") for run in (tmp_path / "out", tmp_path / "again")
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert json.loads((tmp_path / "again" / "report" / "figures.json").read_text())["data"]["from_cache"] == 24


def test_what_is_cached_is_what_is_computed_without_a_cache(tmp_path: Path, people_folder: Path) -> None:
    batches = []
    for cached in (True, False):
        photos = {"cache_latents": cached, "caption": "a face"}
        stage = AdapterStage(on_photos(tmp_path / "out", people_folder, photos=photos), torch.device("cpu"))
        batch = stage.batch(np.random.default_rng(1))
        condition = stage.subject.condition(batch["vectors"], batch["prompts"])
        batches.append((batch["ids"], batch["latents"], batch["vectors"], condition.context))
    assert batches[0][0] == batches[1][0]
    for cached, fresh in zip(batches[0][1:], batches[1][1:], strict=True):
        assert torch.allclose(cached, fresh, atol=5e-3)


def test_buckets_give_batches_of_one_shape(tmp_path: Path, people_folder: Path) -> None:
    from PIL import Image

    data = tmp_path / "photos"
    for number, (width, height) in enumerate([(128, 128), (128, 128), (128, 72), (128, 72), (72, 128)]):
        file = data / "anna" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (90 + number, 80, 70)).save(file)
    photos = {"aspect_ratio_buckets": True, "caption": "a face", "crops": 2}
    settings = on_photos(tmp_path / "out", data, photos=photos, resolution=128, validation=None)
    stage = AdapterStage(settings, torch.device("cpu"))
    shapes = {tuple(stage.batch(np.random.default_rng(seed))["latents"].shape[2:]) for seed in range(20)}
    assert len(shapes) == 3 and all(len(shape) == 2 for shape in shapes)


def test_photos_of_one_a_person_are_one_line_or_tell_of_themselves(tmp_path: Path, people_folder: Path) -> None:
    data = tmp_path / "photos"
    data.mkdir()
    for number, file in enumerate(sorted(people_folder.rglob("*.png"))[:3]):
        (data / f"{number}.png").write_bytes(file.read_bytes())
    photos = {"caption": "a face"}
    with pytest.raises(IdgenError, match=r"nobody in .* has two photos with a face: .* own_photo true") as caught:
        AdapterStage(on_photos(tmp_path / "out", data, photos=photos, validation=None), torch.device("cpu"))
    assert "\n" not in str(caught.value)
    fit(AdapterStage, on_photos(tmp_path / "out", data, photos=photos, own_photo=True, validation=None))


def test_either_renders_or_photos_are_to_be_given(tmp_path: Path, people_folder: Path) -> None:
    for changes in ({"data": None}, {"photos": {"path": str(people_folder)}}):
        with pytest.raises(IdgenError, match=r"give either data, .* or photos\.path"):
            AdapterStage(config(tmp_path, people_folder, **changes), torch.device("cpu"))
