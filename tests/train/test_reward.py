"""Training by reward on a random tiny family: every subject, algorithm and way to decode; guards; what is saved."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

import idgen.configs
from idgen.checkpoint import load_metadata, load_weights, save_weights
from idgen.errors import IdgenError
from idgen.evaluation.judge import declared_rewards
from idgen.models.mini_detector import MiniDetector
from idgen.models.registry import build_recogniser
from idgen.pipelines import Arc2FacePipeline
from idgen.rewards.guards import Guards
from idgen.train.config import parse_config
from idgen.train.loop import fit
from idgen.train.preference import PreferenceConfig, PreferenceStage
from idgen.train.recogniser import RecogniserConfig
from idgen.train.reward import RewardStage, RewardTrainConfig, load_tiny
from idgen.train.reward_checks import _alike
from idgen.train.tiny_decoder import TinyDecoderConfig, TinyDecoderStage
from tests.tiny_family import face_in_the_middle, tiny_family

IDENTITY = {"identity": {"kind": "identity", "source": "mini"}}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(autouse=True)
def tiny(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDGEN_MINI", str(family))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)


def config(out: Path, people: Path, **changes: Any) -> RewardTrainConfig:
    values: dict[str, Any] = {
        "output_dir": out,
        "subject": "arc2face",
        "data": people,
        "validation": people,
        "rewards": IDENTITY,
        "algorithm": {"name": "draft", "steps": 2},
        "check": {"people": 2, "images": 2, "steps": 2},
        "guards": {"act": False},
        "max_train_steps": 2,
        "train_batch_size": 2,
        "validation_steps": 2,
        "checkpointing_steps": 1,
        "log_steps": 1,
        "num_threads": 1,
        "mixed_precision": "no",
        "lr_warmup_steps": 0,
    }
    return RewardTrainConfig(**(values | changes))


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def losses(settings: RewardTrainConfig, seed: int = 0) -> tuple[RewardStage, dict[str, torch.Tensor]]:
    """One step's losses and, on the stage, their gradients."""
    stage = RewardStage(settings, torch.device("cpu"))
    torch.manual_seed(seed)
    made = stage.losses(stage.module, stage.batch(np.random.default_rng(seed)), 0.0)
    made["loss"].backward()
    return stage, made


def moved(stage: RewardStage) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in stage.module.parameters())


def test_arc2face_learns_by_reward_and_its_weights_load_into_the_pipeline(tmp_path: Path, people_folder: Path) -> None:
    settings = config(tmp_path / "out", people_folder, denoising_weight=0.1, anchor_weight=0.1, learning_rate=0.01)
    weights = fit(RewardStage, settings)
    step, checks = (row for row in rows(tmp_path / "out") if row["step"] == 2)
    assert {"loss", "reward", "identity", "faces", "denoising", "anchor"} <= set(step)
    figures = checks["validation"]
    assert {"reward", "detection", "diversity", "reward_gain", "diversity_gain"} <= set(figures)
    assert figures["detection"] == 1 and "adherence" not in figures
    assert declared_rewards(weights) == ["mini"]
    pipe = Arc2FacePipeline.from_pretrained("mini")
    generate = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "np"}
    people = torch.nn.functional.normalize(torch.randn(1, 512))
    before = pipe(people, generator=torch.Generator().manual_seed(0), **generate).images
    pipe.load_lora_weights(weights, weight_name="adapter.safetensors")
    after = pipe(people, generator=torch.Generator().manual_seed(0), **generate).images
    assert np.abs(before - after).max() > 0
    assert (tmp_path / "out" / "grids" / "000002.png").exists()
    # A training by reward keeps what learns, not the model around it.
    assert (tmp_path / "out" / "checkpoint-2" / "state.pt").stat().st_size < 2_000_000


@pytest.mark.parametrize("name", ["refl", "draft_lv", "alignprop", "drtune", "drpo", "dpo", "winners", "losers", "mse"])
def test_every_algorithm_moves_what_learns(tmp_path: Path, people_folder: Path, name: str) -> None:
    algorithm = {"name": name, "steps": 2, "candidates": 4, "copies": 1}
    stage, made = losses(config(tmp_path, people_folder, algorithm=algorithm))
    assert torch.isfinite(made["loss"]) and moved(stage)
    assert ("reward" in made) == (name != "mse")


def test_a_batch_of_which_nothing_can_be_told_teaches_nothing(tmp_path, people_folder, monkeypatch) -> None:
    def nobody(self, images, threshold=0.5):
        return [found._replace(boxes=found.boxes[:0], landmarks=found.landmarks[:0], scores=found.scores[:0])
                for found in face_in_the_middle(self, images)]  # fmt: skip

    monkeypatch.setattr(MiniDetector, "detect", nobody)
    for name in ("draft", "dpo"):
        algorithm = {"name": name, "steps": 2, "candidates": 2}
        stage, made = losses(config(tmp_path, people_folder, algorithm=algorithm))
        assert made["faces"] == 0 and not moved(stage)


@pytest.mark.parametrize("name", ["drpo", "dpo", "winners", "losers"])
def test_a_process_that_saw_nobody_passes_the_model_as_often_as_the_others(
    tmp_path: Path, people_folder: Path, name: str
) -> None:
    algorithm = {"name": name, "steps": 2, "candidates": 4}
    stage = RewardStage(config(tmp_path, people_folder, algorithm=algorithm), torch.device("cpu"))
    passes: list[list[bool]] = []

    def model(*inputs: Any, **settings: Any) -> torch.Tensor:
        passes[-1].append(torch.is_grad_enabled())
        return stage.module(*inputs, **settings)

    look, batch = stage.look, stage.batch(np.random.default_rng(0))
    for faces in (True, False):
        passes.append([])
        stage.look = lambda latents, faces=faces: replace(look(latents), seen=torch.full((len(latents),), faces))
        made = stage.losses(model, batch, 0.0)
        made["loss"].backward()
        assert made["ranked"].requires_grad and (faces or made["ranked"] == 0)
        assert moved(stage) == faces
        stage.module.zero_grad()
    assert passes[0] == passes[1] and any(passes[0])


def test_nothing_is_drawn_to_pictures_without_a_face(tmp_path: Path, people_folder: Path) -> None:
    algorithm = {"name": "drpo", "steps": 2, "candidates": 4, "chosen": 2}
    for faces, learns in ((1, False), (2, True)):
        stage = RewardStage(config(tmp_path, people_folder, algorithm=algorithm), torch.device("cpu"))
        look = stage.look
        stage.look = lambda latents, look=look, faces=faces: replace(
            look(latents), seen=torch.arange(len(latents)) % 4 < faces
        )
        stage.losses(stage.module, stage.batch(np.random.default_rng(0)), 0.0)["loss"].backward()
        assert moved(stage) == learns


@pytest.mark.parametrize("decode", ["tiny", "crop"])
def test_the_gradient_passes_a_small_decoder_or_the_face_alone(tmp_path, people_folder, family, decode) -> None:
    stage, made = losses(config(tmp_path, people_folder, decode=decode, tiny=str(family / "vae")))
    assert moved(stage) and made["faces"] == 1
    with pytest.raises(IdgenError, match="cannot load the small decoder nowhere"):
        load_tiny("nowhere", torch.device("cpu"))


def test_an_autoencoder_of_another_class_is_no_small_decoder(tmp_path: Path) -> None:
    AutoencoderKL(norm_num_groups=8, block_out_channels=(8,)).save_pretrained(tmp_path / "vae")
    with pytest.raises(IdgenError, match="cannot load the small decoder"):
        load_tiny(str(tmp_path / "vae"), torch.device("cpu"))


def test_a_recogniser_outside_the_loop_gives_an_id_score(tmp_path: Path, people_folder: Path) -> None:
    network = build_recogniser({"architecture": "slim_iresnet", "embedding_dim": 512})
    description = {"architecture": "slim_iresnet", "name": "held_out", "embedding_dim": 512}
    (tmp_path / "held_out").mkdir()
    (tmp_path / "held_out" / "config.json").write_text(json.dumps(description))
    save_weights(tmp_path / "held_out" / "model.safetensors", network.state_dict())
    check = {"people": 2, "images": 2, "steps": 2, "held_out": str(tmp_path / "held_out")}
    stage = RewardStage(config(tmp_path / "out", people_folder, check=check), torch.device("cpu"))
    figures, _ = stage.checks()
    same, different = stage.checks.alike
    assert different < same <= 1
    assert figures["held_out_id_score"] == pytest.approx((figures["held_out"] - different) / (same - different))


def test_the_ends_of_the_id_score_are_photos_of_one_person_and_of_two() -> None:
    photos = torch.tensor([[1.0, 0, 0], [1, 0.2, 0], [0, 1, 0], [0, 1, 0.2]])
    same, different = _alike(photos, np.array([0, 0, 1, 1]))
    assert same == pytest.approx(1 / 1.04**0.5, abs=1e-5)
    others = [
        torch.nn.functional.normalize(photos[2:], dim=1).sum(0),
        torch.nn.functional.normalize(photos[:2], dim=1).sum(0),
    ]
    wanted = [torch.cosine_similarity(photo, others[place // 2], dim=0) for place, photo in enumerate(photos)]
    assert different == pytest.approx(float(sum(wanted)) / 4, abs=1e-5)


def test_guided_pictures_can_be_rewarded(tmp_path: Path, people_folder: Path) -> None:
    stage, _ = losses(config(tmp_path, people_folder, guidance_scale=2.0))
    assert moved(stage)


def test_an_identity_adapter_learns_beside_a_text_model_and_is_saved_as_one(tmp_path, people_folder) -> None:
    settings = config(tmp_path / "out", people_folder, subject="ip_faceid", adapter_rank=2, learning_rate=0.01)
    weights = fit(RewardStage, settings)
    assert "adherence" in rows(tmp_path / "out")[-1]["validation"]
    header = load_metadata(weights / "adapter.safetensors")
    assert header["method"] == "ip_faceid" and json.loads(header["reward_recognisers"]) == ["mini"]
    again = config(tmp_path / "two", people_folder, subject="ip_faceid", adapter=weights / "adapter.safetensors")
    stage, made = losses(again.model_copy(update={"anchor_weight": 1.0}))
    assert moved(stage) and made["anchor"] == 0  # its base is the adapter that it started from


def test_one_persons_lora_is_asked_for_by_prompt_and_compared_with_the_mean_photo(tmp_path, people_folder) -> None:
    number = json.loads((people_folder / "metadata.jsonl").read_text().splitlines()[0])["person"]
    settings = config(tmp_path, people_folder, subject="text", person=number)
    stage, _ = losses(settings)
    assert moved(stage) and len(stage.photos) == 4
    figures, pictures = stage.checks()
    assert {"adherence", "diversity"} <= set(figures) and len(pictures) == 4
    for wrong in ({"person": None}, {"person": 1}, {"subject": "arc2face"}):
        with pytest.raises(IdgenError, match=r"needs `person`|no person 1"):
            RewardStage(settings.model_copy(update=wrong), torch.device("cpu"))


def test_training_ends_when_a_guard_says_so_and_stays_ended(tmp_path, people_folder, monkeypatch) -> None:
    asked = []

    def check(self: Guards, figures: dict[str, float]) -> str | None:
        self.history.append(dict(figures))
        asked.append(len(self.history))
        return "detection fell" if len(self.history) == 3 else None

    monkeypatch.setattr(Guards, "check", check)
    out = tmp_path / "out"
    settings = config(out, people_folder, max_train_steps=10, validation_steps=1, guards={})
    fit(RewardStage, settings)
    assert max(row["step"] for row in rows(out)) == 2 and asked == [1, 2, 3]
    stored = json.loads((out / "guards.json").read_text())
    assert stored["stopped"] == "detection fell" and [row["step"] for row in stored["history"]] == [0, 1, 2]
    fit(RewardStage, settings)
    assert asked == [1, 2, 3]


def test_weights_of_a_check_that_cost_too_much_are_not_kept(tmp_path: Path, people_folder: Path) -> None:
    stage = RewardStage(config(tmp_path, people_folder, guards={}), torch.device("cpu"))
    stage.begun = 1
    stage.guards.history = [
        {"step": 0, "reward": 0.1, "detection": 1.0},
        {"step": 1, "reward": 0.5, "detection": 0.5},
    ]
    with torch.no_grad():
        for parameter in stage.module.parameters():
            parameter += 1
    stage.save(tmp_path / "weights")
    tensors = load_weights(tmp_path / "weights" / "adapter.safetensors")
    assert all(not value.any() for name, value in tensors.items() if "lora_B" in name), "the base was not kept"
    assert all(bool((p == p0 + 1).all()) for p, p0 in zip(stage.module.parameters(), stage.start, strict=True))


def out_of_memory(base: bool = False) -> None:
    raise RuntimeError("CUDA out of memory.")


def test_weights_whose_check_did_not_fit_into_memory_are_not_kept(tmp_path: Path, people_folder: Path) -> None:
    stage = RewardStage(config(tmp_path, people_folder, guards={}), torch.device("cpu"))
    stage.checks = out_of_memory  # type: ignore[assignment]
    stage.begun = 1
    with pytest.raises(RuntimeError, match="out of memory"):
        stage.validate()
    stage.save(tmp_path / "weights")
    assert not (tmp_path / "weights").exists()  # not even the base's were measured
    stage.guards.history = [{"step": 0, "reward": 0.1}, {"step": 1, "reward": 0.5}]
    stage.save(tmp_path / "weights")
    measured = load_weights(tmp_path / "weights" / "adapter.safetensors")
    stage.begun = 2
    with torch.no_grad():
        for parameter in stage.module.parameters():
            parameter += 1
    with pytest.raises(RuntimeError, match="out of memory"):
        stage.validate()
    stage.save(tmp_path / "weights")
    kept = load_weights(tmp_path / "weights" / "adapter.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in measured.items())
    stage.config.guards.act = False  # who only watches wants the newest
    stage.save(tmp_path / "weights")
    newest = load_weights(tmp_path / "weights" / "adapter.safetensors")
    assert not all(torch.equal(value, newest[name]) for name, value in measured.items())


def test_a_longer_training_remembers_every_check_that_its_checkpoint_has_seen(tmp_path, people_folder) -> None:
    out = tmp_path / "out"
    changes: dict[str, Any] = {"validation_steps": 1, "checkpoints_total_limit": 9, "gradient_accumulation_steps": 2}
    settings = config(out, people_folder, max_train_steps=2, **changes)

    def steps() -> list[int]:
        return [row["step"] for row in json.loads((out / "guards.json").read_text())["history"]]

    fit(RewardStage, settings)
    assert steps() == [0, 1, 2]
    longer = config(out, people_folder, max_train_steps=4, **changes)
    fit(RewardStage, longer)
    assert steps() == [0, 1, 2, 3, 4]
    for newer in (3, 4):
        shutil.rmtree(out / f"checkpoint-{newer}")
    assert [row["step"] for row in RewardStage(longer, torch.device("cpu")).guards.history] == [0, 1, 2]


def test_why_a_training_ended_counts_only_while_guards_act(tmp_path: Path, people_folder: Path) -> None:
    stored = {"stopped": "detection fell", "history": [{"step": 0, "reward": 0.1}]}
    (tmp_path / "guards.json").write_text(json.dumps(stored))
    for act in (True, False):
        stage = RewardStage(config(tmp_path, people_folder, guards={"act": act}), torch.device("cpu"))
        assert stage.stopped == ("detection fell" if act else None) and len(stage.guards.history) == 1
    stored["history"].append({"step": 1, "reward": 0.2})  # seen after the newest checkpoint, of which there is none
    (tmp_path / "guards.json").write_text(json.dumps(stored))
    stage = RewardStage(config(tmp_path, people_folder, guards={}), torch.device("cpu"))
    assert stage.stopped is None and len(stage.guards.history) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"decode": "tiny"}, "tiny needs a small decoder"),
        ({"rewards": {}}, "no reward given"),
        ({"rewards": IDENTITY | {"two": IDENTITY["identity"]}}, "one identity reward is enough"),
        ({"check": {"held_out": "mini"}}, "check.held_out is 'mini', which is rewarded"),
        ({"check": {"held_out": "judge"}}, "which is the judge"),
        ({"model": "nowhere/at-all"}, "nowhere/at-all"),
        ({"subject": "ip_faceid", "model": "nowhere/at-all"}, "nowhere/at-all"),
    ],
)
def test_settings_that_do_not_go_together_are_told_in_one_line(tmp_path, people_folder, changes, says) -> None:
    with pytest.raises(IdgenError) as caught:
        RewardStage(config(tmp_path, people_folder, **changes), torch.device("cpu"))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_preference_head_and_a_small_decoder_train_and_serve_as_reward(tmp_path, people_folder, family) -> None:
    common = {"data": people_folder, "validation": people_folder, "max_train_steps": 2, "train_batch_size": 4}
    common |= {"validation_steps": 2, "num_threads": 1, "mixed_precision": "no"}
    head = fit(PreferenceStage, PreferenceConfig(output_dir=tmp_path / "p", **common))
    parts = {"vae": family / "vae", "recogniser": family / "recogniser"}
    decoder = fit(TinyDecoderStage, TinyDecoderConfig(output_dir=tmp_path / "d", **common, **parts))
    looks = {"looks": {"kind": "preference", "source": str(head), "weight": 0.1}}
    stage, made = losses(
        config(tmp_path / "r", people_folder, rewards=IDENTITY | looks, decode="tiny", tiny=str(decoder))
    )
    assert moved(stage) and {"identity", "looks"} <= set(made)
    with pytest.raises(IdgenError, match="'looks' must see whole pictures"):
        losses(config(tmp_path / "r", people_folder, rewards=looks, decode="crop", conditioning="mini"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("reward", RewardTrainConfig),
        ("reward_adapter", RewardTrainConfig),
        ("preference", PreferenceConfig),
        ("tiny_decoder", TinyDecoderConfig),
        ("held_out", RecogniserConfig),
    ],
)
def test_recipes_are_valid(name: str, kind: Any) -> None:
    recipe = Path(idgen.configs.__file__).parent / "mini" / f"{name}.yaml"
    settings = parse_config(kind, ["--config", str(recipe), "--seed", "3"])
    assert settings.output_dir == Path(f"runs/mini/{name}") and settings.seed == 3


def test_settings_of_a_reward_are_given_by_their_dotted_names() -> None:
    recipe = Path(idgen.configs.__file__).parent / "mini" / "reward.yaml"
    arguments = ["--config", str(recipe), "--set", "rewards.looks.weight=0.5", "--algorithm.name", "mse"]
    settings = parse_config(RewardTrainConfig, arguments)
    assert settings.rewards["looks"].weight == 0.5 and settings.algorithm.name == "mse"
    with pytest.raises(IdgenError, match=r"'rewards\.looks\.wieght'.*'rewards\.looks\.weight'"):
        parse_config(RewardTrainConfig, [*arguments, "--set", "rewards.looks.wieght=1"])


def test_the_held_out_recogniser_has_an_architecture_of_its_own() -> None:
    network = build_recogniser({"architecture": "slim_iresnet", "embedding_dim": 512}).eval()
    assert network(torch.zeros(1, 3, 112, 112)).shape == (1, 512)
