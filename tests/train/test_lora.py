"""Personalisation trains on every base that it names, holds to the prior, and tells what it left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import idgen.configs
from idgen import agreement
from idgen.checkpoint import load_training_state, load_weights
from idgen.errors import IdgenError
from idgen.evaluation.judge import declared_rewards
from idgen.faces import FaceEncoder
from idgen.faces.align_torch import norm_crop_torch
from idgen.finetune import active_adapters, load_adapter
from idgen.losses.diffusion import add_noise
from idgen.models.mini_detector import Detections, MiniDetector
from idgen.rewards.views import vae_decoder
from idgen.train.checkpoints import STATE, newest_first
from idgen.train.config import parse_config
from idgen.train.denoisers import PersonalDenoiser, open_pipeline
from idgen.train.loop import fit
from idgen.train.lora import FILE, LoraConfig, LoraStage
from idgen.train.priors import prior_pictures
from tests.tiny_family import face_in_the_middle, tiny_family
from tests.tiny_sdxl import sdxl_folder

NOBODY = Detections(torch.zeros(0, 4), torch.zeros(0, 5, 2), torch.zeros(0))
RECIPES = Path(idgen.configs.__file__).parent


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_family(tmp_path_factory.mktemp("family") / "mini")


@pytest.fixture
def photos(tmp_path: Path, family: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures in each of which the detector sees a face, and the mini family that goes with them."""
    monkeypatch.setenv("IDGEN_MINI", str(family))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(random.integers(0, 255, (48, 40, 3), np.uint8)).save(folder / f"{name}.png")
    return folder


def settings(photos: Path, **changes: Any) -> LoraConfig:
    words = {
        "output_dir": photos.parent / "run",
        "data.photos": photos,
        "max_train_steps": 2,
        "train_batch_size": 2,
        "validation_steps": 2,
        "checkpointing_steps": 1,
        "num_validation_images": 2,
        "num_inference_steps": 2,
        "num_threads": 1,
        "log_steps": 1,
        "resolution": 32,
        "adapter.rank": 2,
        "adapter.block_size": 4,
        "prior.folder": photos.parent / "prior",
        "mixed_precision": '"no"',
        **changes,
    }
    return parse_config(LoraConfig, [word for name, value in words.items() for word in ("--set", f"{name}={value}")])


def log(config: LoraConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.output_dir / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("family_name", ["mini", "sd15", "sdxl"])
def test_every_recipe_that_ships_is_valid(family_name: str) -> None:
    config = parse_config(LoraConfig, ["--config", str(RECIPES / family_name / "personalise.yaml")])
    assert config.output_dir == Path(f"runs/{family_name}/personalise")
    assert (
        parse_config(
            LoraConfig,
            [
                "--config",
                str(RECIPES / family_name / "personalise.yaml"),
                "--set",
                "adapter.kind=oft",
                "--set",
                "data.photos=x",
            ],
        ).adapter.kind
        == "oft"
    )


@pytest.mark.parametrize("kind", ["lora", "oft"])
def test_arc2face_learns_a_person_from_the_zero_shot_start(kind: str, photos: Path) -> None:
    config = settings(photos, **{"adapter.kind": kind, "judge": "judge"})
    weights = fit(LoraStage, config)
    pipe = open_pipeline("mini", identity=True)
    assert load_adapter(weights / FILE, pipe).kind == kind and active_adapters(pipe) == ["default"]
    figures = log(config)[-1]["validation"]
    assert figures["photos"] == 3 and figures["faces_found"] == 0 and -1 <= figures["judge_cosine_to_photos"] <= 1
    # A face of 19 px in a picture of 32: too small to be measured, and no reason to stop.
    assert Image.open(config.output_dir / "grids" / "000002.png").size == (64, 64)
    assert json.loads((config.output_dir / "photos.json").read_text())["used"] == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_an_adapter_that_a_recogniser_trained_names_it(photos: Path, weight: float) -> None:
    # Where the encoder only finds faces, its recogniser may judge.
    config = settings(photos, condition="text", identity_weight=weight, judge="judge" if weight else "mini")
    stage = LoraStage(config, torch.device("cpu"))
    stage.save(config.output_dir / "weights")
    assert declared_rewards(config.output_dir / "weights") == (["mini"] if weight else [])
    load_adapter(config.output_dir / "weights" / FILE, open_pipeline("mini", identity=False))


def test_a_loss_of_identity_reads_the_predicted_photos_upright(photos: Path) -> None:
    config = settings(
        photos,
        **{"identity_weight": 0.5, "identity_schedule": "naive", "identity_batch": 16, "train_batch_size": 16},
        **{"data.random_flip": "true"},
    )
    stage = LoraStage(config, torch.device("cpu"))
    batch = stage.batch(np.random.default_rng(0))
    assert set(batch["mirrored"].tolist()) == {False, True} and bool(batch["faces"].all())
    noised = add_noise(stage.module.scheduler, batch["latents"])
    # The right answer: what is decoded are the photos, as the autoencoder keeps them.
    told = stage._identity(noised.target, noised, batch)
    pictures = vae_decoder(stage.module.pipe.vae)(batch["latents"])
    upright = torch.stack(
        [one.flip(2) if turned else one for one, turned in zip(pictures, batch["mirrored"], strict=True)]
    )
    seen = FaceEncoder.from_pretrained("mini", device="cpu").encode_aligned(
        norm_crop_torch(upright, batch["landmarks"])
    )
    cosines = torch.nn.functional.cosine_similarity(seen, stage.identity)
    assert told.item() == pytest.approx((1 - cosines.mean()).item(), abs=1e-3)
    torch.manual_seed(0)
    losses = stage.losses(stage.module, batch, 0.0)
    assert losses["loss"].item() == pytest.approx((losses["person"] + 0.5 * losses["identity"]).item())
    losses["identity"].backward()
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in stage.module.weights)


def test_photos_without_a_face_have_no_part_in_the_loss_of_identity(photos: Path, monkeypatch) -> None:
    find = MiniDetector.detect
    calls = []

    def blind_to_the_first(self, images, threshold=0.5):
        calls.append(1)
        return find(self, images, threshold) if len(calls) > 1 else [NOBODY for _ in images]

    monkeypatch.setattr(MiniDetector, "detect", blind_to_the_first)
    config = settings(photos, **{"identity_weight": 1.0, "data.faceless": "mask", "train_batch_size": 3})
    batch = LoraStage(config, torch.device("cpu")).batch(np.random.default_rng(0))
    assert dict(zip(batch["ids"], batch["faces"].tolist(), strict=True)) == {
        "a.png": False,
        "b.png": True,
        "c.png": True,
    }


@pytest.mark.parametrize("kind", ["dora", "oft", "boft", "hra"])
def test_every_kind_learns_in_bf16(kind: str, photos: Path) -> None:
    config = settings(photos, **{"adapter.kind": kind, "mixed_precision": "bf16", "num_inference_steps": 1})
    fit(LoraStage, config)
    assert all(np.isfinite(row["loss"]) for row in log(config) if "loss" in row)
    assert log(config)[-1]["skipped_steps"] == 0


@pytest.mark.parametrize("modules", ["[unet]", "[unet, text_encoder]"])
def test_words_bind_to_a_person(modules: str, photos: Path) -> None:
    (photos / "a.txt").write_text("smiling")
    config = settings(
        photos,
        **{
            "condition": "text",
            "adapter.modules": modules,
            "data.caption": '"photo of a id person, {}"',
            "data.random_flip": True,
            "data.background_weight": 0.2,
            "prior.weight": 1.0,
            "prior.images": 3,
            "prior.num_inference_steps": 1,
        },
    )
    weights = fit(LoraStage, config)
    steps = [row for row in log(config) if "prior" in row]
    assert len(steps) == 2 and all(
        row["loss"] == pytest.approx(row["person"] + row["prior"], rel=1e-3) for row in steps
    )
    parts = {key.split(".")[0] for key in load_weights(weights / FILE)}
    assert parts == {part.strip() for part in modules.strip("[]").split(",")}
    assert len(list((photos.parent / "prior").rglob("*.png"))) == 3


def test_sdxl_learns_with_its_two_text_encoders(photos: Path) -> None:
    base = sdxl_folder(photos.parent / "sdxl")
    config = settings(
        photos,
        **{
            "base": base,
            "condition": "text",
            "adapter.modules": "[unet, text_encoder, text_encoder_2]",
            "gradient_checkpointing": True,
        },
    )
    weights = fit(LoraStage, config)
    assert {key.split(".")[0] for key in load_weights(weights / FILE)} == {"unet", "text_encoder", "text_encoder_2"}


def test_the_adapter_leaves_its_start_and_checkpoints_hold_nothing_else(photos: Path) -> None:
    config = settings(photos, **{"adapter.kind": "oft", "learning_rate": 0.1, "ema_decay": 0.0, "lr_warmup_steps": 0})
    weights = fit(LoraStage, config)
    learned = load_weights(weights / FILE)
    assert max(float(value.abs().max()) for value in learned.values()) > 1e-3
    state = load_training_state(newest_first(config.output_dir)[0] / STATE)
    assert sum(value.numel() for value in state["model"].values()) == sum(value.numel() for value in learned.values())


def test_a_training_goes_on_where_it_was_broken_off(photos: Path) -> None:
    whole = settings(photos, output_dir=photos.parent / "whole", max_train_steps=4)
    fit(LoraStage, whole)
    broken = settings(photos, output_dir=photos.parent / "broken", max_train_steps=4)

    class Killed(LoraStage):
        calls = 0

        def losses(self, *arguments: Any) -> dict[str, torch.Tensor]:
            Killed.calls += 1
            if Killed.calls == 3:
                raise RuntimeError("killed")
            return super().losses(*arguments)

    with pytest.raises(RuntimeError, match="killed"):
        fit(Killed, broken)
    fit(LoraStage, broken)
    one, other = (load_weights(config.output_dir / "weights" / FILE) for config in (whole, broken))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_training_starts_from_a_saved_adapter_of_the_same_kind(photos: Path) -> None:
    first = fit(LoraStage, settings(photos, ema_decay=0.0, learning_rate=0.01))
    again = {"output_dir": photos.parent / "again", "start_from": first, "learning_rate": 1e-12, "max_train_steps": 1}
    second = fit(LoraStage, settings(photos, **again))
    one, other = load_weights(first / FILE), load_weights(second / FILE)
    assert all(torch.allclose(value, other[key], atol=1e-6) for key, value in one.items())
    with pytest.raises(
        IdgenError, match=r"holds a lora adapter of unet: set adapter\.kind and adapter\.modules to that"
    ):
        fit(LoraStage, settings(photos, **again | {"adapter.kind": "oft", "output_dir": photos.parent / "third"}))


def test_photos_of_several_people_raise_a_doubt(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(LoraStage, settings(photos))
    assert "different people" not in capsys.readouterr().err
    monkeypatch.setattr(agreement, "SAME_PERSON", 0.99999)
    fit(LoraStage, settings(photos, resume=False))
    assert "note: the references may show different people (" in capsys.readouterr().err


def test_broken_photos_are_left_out_and_named(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "d.jpg").write_bytes(b"\xff\xd8 not a photo")
    config = settings(photos)
    fit(LoraStage, config)
    report = json.loads((config.output_dir / "photos.json").read_text())
    assert list(report["unreadable"]) == ["d.jpg"] and len(report["used"]) == 3
    assert "d.jpg is left out: " in capsys.readouterr().err
    assert log(config)[-1]["validation"]["photos_unreadable"] == 1


def test_prior_pictures_are_drawn_once_and_finished_after_a_kill(photos: Path) -> None:
    pipe = open_pipeline("mini", identity=False)
    made: dict[str, Any] = {"steps": 1, "guidance": 2.0, "size": 32, "seed": 0}
    first = prior_pictures(pipe, ["a", "b", "c"], photos.parent / "p", **made)
    files = sorted((photos.parent / "p").rglob("*.png"))
    assert len(files) == 3 and first.shape == (3, 32, 32, 3)
    kept = files[0].stat().st_mtime_ns
    files[1].unlink()
    again = prior_pictures(pipe, ["a", "b", "c"], photos.parent / "p", **made)
    assert np.array_equal(first, again) and files[0].stat().st_mtime_ns == kept
    prior_pictures(pipe, ["a", "b", "d"], photos.parent / "p", **made)
    assert len(list((photos.parent / "p").iterdir())) == 2


def test_captions_are_read_once_where_the_text_encoder_does_not_learn(photos: Path) -> None:
    pipe = open_pipeline("mini", identity=False)
    module = PersonalDenoiser(pipe, settings(photos).adapter)
    calls = []
    encode = pipe.encode_prompt
    pipe.encode_prompt = lambda **words: calls.append(words["prompt"]) or encode(**words)
    noisy, times = torch.randn(2, 8, 4, 4), torch.tensor([10, 500])
    first = module(noisy, times, ["a face", "a man"])
    second = module(noisy, times, ["a face", "a man"])
    assert calls == [["a face", "a man"]] and torch.equal(first, second)
    alone = module(noisy[:1], times[:1], ["a face"])
    assert torch.allclose(alone, first[:1], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data.photos": "/nowhere"}, r"cannot read the folder /nowhere"),
        ({"adapter.kind": "oft", "adapter.targets": "all"}, r"peft's OFT computes wrongly"),
        ({"adapter.modules": "[unet, text_encoder_2]"}, r"no component 'text_encoder_2' to finetune"),
        ({"judge": "mini"}, r"judge 'mini' is the recogniser that takes part in the training \(encoder 'mini'\)"),
        (
            {"judge": "mini", "condition": "text", "identity_weight": 0.1},
            r"judge 'mini' is the recogniser that takes part in the training",
        ),
        ({"encoder": "judge"}, r"was trained with faces read by 'mini', and encoder 'judge' is 'judge'"),
        ({"base": "/nowhere", "condition": "text"}, r"cannot load the base /nowhere"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], says: str, photos: Path) -> None:
    with pytest.raises(IdgenError, match=says) as caught:
        fit(LoraStage, settings(photos, **changes))
    assert "\n" not in str(caught.value)


def test_a_typo_names_the_nearest_setting(photos: Path) -> None:
    with pytest.raises(IdgenError, match=r"unknown setting 'adapter\.rnk': did you mean 'adapter.rank'"):
        settings(photos, **{"adapter.rnk": 3})


def test_no_face_in_any_photo_is_one_line(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from idgen.models.mini_detector import Detections

    nothing = Detections(torch.zeros(0, 4), torch.zeros(0, 5, 2), torch.zeros(0))
    monkeypatch.setattr(MiniDetector, "detect", lambda self, images, threshold=0.5: [nothing for _ in images])
    with pytest.raises(IdgenError, match=r"no face found in any of the 3 photos in "):
        fit(LoraStage, settings(photos))


def test_inpainting_models_are_refused(photos: Path) -> None:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    parts = open_pipeline("mini", identity=False).components
    parts["unet"] = UNet2DConditionModel.from_config(parts["unet"].config, in_channels=17)
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    with pytest.raises(IdgenError, match=r"reads 17 channels, as for inpainting"):
        PersonalDenoiser(pipe, settings(photos).adapter)
