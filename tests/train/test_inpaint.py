"""The training of inpainting: two steps on real renders, and what it is made of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

import idgen.configs
from idgen.adapters.pva.training import PVADenoiser, make_holes, stratified_times
from idgen.data.portraits import as_tensor
from idgen.errors import IdgenError
from idgen.faces import FaceEncoder
from idgen.losses.diffusion import noised_at
from idgen.models.inpainting import inpainting_unet
from idgen.models.mini_family import build_scheduler
from idgen.pipelines import PVAInpaintPipeline
from idgen.train.config import parse_config
from idgen.train.inpaint import InpaintStage, InpaintTrainConfig
from tests.tiny import tiny_unet

CONFIGS = Path(idgen.configs.__file__).parent
MINI = Path(idgen.__file__).parent / "assets" / "mini"


def arguments(people: Path, out: Path) -> list[str]:
    values = {
        "output_dir": out,
        "data": people,
        "validation": people,
        "base": MINI,
        "recogniser": MINI / "recogniser",
        "max_train_steps": 2,
        "log_steps": 1,
        "validation_steps": 2,
        "num_threads": 1,
        "max_minutes": "null",
        "train_batch_size": 2,
        "time_bins": 2,
    }
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return ["--config", str(CONFIGS / "mini" / "inpaint.yaml"), *flags]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, people_folder: Path) -> Path:
    """Trained for two steps, as a user would."""
    out = tmp_path_factory.mktemp("inpaint")
    command = [sys.executable, "-m", "idgen.train.inpaint", *arguments(people_folder, out)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "cosine_person" in (out / "log.jsonl").read_text()
    assert list((out / "grids").glob("*.png"))
    return out / "weights"


@pytest.fixture
def stage(people_folder: Path, tmp_path: Path) -> InpaintStage:
    config = parse_config(InpaintTrainConfig, arguments(people_folder, tmp_path))
    return InpaintStage(config, torch.device("cpu"))


def test_the_weights_make_a_pipeline_beside_their_base(weights: Path, portrait) -> None:
    for file in weights.rglob("*.safetensors"):
        assert file.stat().st_size <= 16 * 2**20, "the mini family's limit"
    pipe = PVAInpaintPipeline.from_pretrained(weights, base=MINI)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.in_channels == 17 and pipe.pva.config.recogniser == "mini"
    identity = FaceEncoder.from_pretrained("mini", device="cpu")(portrait)
    picture = portrait.resize((128, 128))
    mask = np.zeros((128, 128), np.uint8)
    mask[40:100, 30:98] = 255
    made = pipe(identity, image=picture, mask_image=mask[..., None] / 255.0, num_inference_steps=2, composite=True)
    known = np.asarray(made.images[0])[mask == 0]
    assert np.array_equal(known, np.asarray(picture)[mask == 0])


def test_finished_weights_are_taken_up_again(stage: InpaintStage, weights: Path) -> None:
    stage.load(weights)
    saved = PVAInpaintPipeline.from_pretrained(weights, base=MINI)
    assert torch.equal(stage.adapter.modifier, saved.pva.modifier)
    assert torch.equal(stage.module.unet.conv_in.weight, saved.unet.conv_in.weight)


def test_a_batch_never_shows_the_picture_itself_as_its_reference(stage: InpaintStage) -> None:
    for seed in range(10):
        batch = stage.batch(np.random.default_rng(seed))
        assert batch["references"].shape[0] == 2 and 1 <= batch["references"].shape[1] <= 3
        own = torch.from_numpy(stage.embeddings[batch["photos"]])
        assert not (batch["references"] == own[:, None]).all(-1).any()
        holes = batch["holes"]
        assert holes.shape == (2, 1, 128, 128) and set(holes.unique().tolist()) == {0.0, 1.0}
    people = stage.data.people
    assert all(index not in stage._others(index) for numbers in people for index in numbers.tolist())


def test_the_loss_of_identity_looks_at_the_photo_as_it_was_before_mirroring(stage: InpaintStage) -> None:
    stage.config = stage.config.model_copy(
        update={"identity_weight": 1.0, "identity_schedule": "naive", "identity_batch": 4, "condition_dropout": 0.0}
    )
    batch = stage.batch(np.random.default_rng(4)) | {"mirrored": torch.tensor([True, False])}
    batch["pictures"][0] = as_tensor(stage.data.picture(int(batch["photos"][0]))[None, :, ::-1], stage.device)[0]
    batch["pictures"][1] = as_tensor(stage.data.picture(int(batch["photos"][1]))[None], stage.device)[0]
    # Each photo is asked for itself: only then is nothing lost by drawing it.
    batch["people"] = torch.from_numpy(stage.embeddings[batch["photos"].numpy()])
    latents, _, _ = make_holes(stage.vae, batch["pictures"], batch["holes"])
    noised = noised_at(
        stage.scheduler, latents.repeat(2, 1, 1, 1), torch.randn(4, 8, 16, 16), torch.tensor([9, 9, 99, 99])
    )
    right = stage._identity(latents.repeat(2, 1, 1, 1), noised, batch)
    wrong = stage._identity(latents.repeat(2, 1, 1, 1), noised, batch | {"mirrored": torch.tensor([False, True])})
    assert 0 < right < 0.3 and right < wrong - 0.03
    losses = stage.losses(stage.module, stage.batch(np.random.default_rng(0)), 1.0)
    assert torch.isclose(losses["loss"], losses["denoising"] + losses["identity"])


def test_the_loss_of_words_is_of_the_pictures_whose_caption_was_given(people_folder: Path, tmp_path: Path) -> None:
    words = ["--words_weight", "0.5", "--words_probe", str(MINI / "probe"), "--words_batch", "8"]
    flags = [*arguments(people_folder, tmp_path), *words, "--caption_share", "1", "--identity_weight", "0"]
    stage = InpaintStage(parse_config(InpaintTrainConfig, flags), torch.device("cpu"))
    batch = stage.batch(np.random.default_rng(2))
    losses = stage.losses(stage.module, batch, 1.0)
    assert losses["words"] > 0
    assert torch.isclose(losses["loss"], losses["denoising"] + 0.5 * losses["words"])
    untold = stage.losses(stage.module, batch | {"told": torch.zeros(2, dtype=torch.bool)}, 1.0)
    assert untold["words"] == 0


def test_what_is_frozen_is_no_part_of_a_checkpoint(stage: InpaintStage) -> None:
    names = {name.split(".")[0] for name in stage.module.state_dict()}
    assert names == {"unet", "adapter"}
    trained = sum(len(group["params"]) for group in stage.groups())
    assert trained == len([p for p in stage.module.parameters() if p.requires_grad])


def test_the_person_that_is_dropped_changes_nothing(stage: InpaintStage) -> None:
    batch = stage.batch(np.random.default_rng(1))
    given, times = torch.randn(2, 17, 16, 16), torch.tensor([300, 600])
    with torch.no_grad():
        hidden = stage.module(given, times, batch["prompts"], batch["references"], torch.zeros(2, dtype=torch.bool))
        other = stage.module(given, times, batch["prompts"], -batch["references"], torch.zeros(2, dtype=torch.bool))
        seen = stage.module(given, times, batch["prompts"], batch["references"], torch.ones(2, dtype=torch.bool))
    assert torch.allclose(hidden, other, atol=1e-5) and not torch.allclose(hidden, seen, atol=1e-4)


def test_a_text_to_image_unet_must_be_trained_to_inpaint(people_folder: Path, tmp_path: Path) -> None:
    config = parse_config(InpaintTrainConfig, [*arguments(people_folder, tmp_path), "--train_unet", "false"])
    with pytest.raises(IdgenError, match="none of an inpainting model"):
        InpaintStage(config, torch.device("cpu"))


def test_a_frozen_unet_can_compute_its_activations_again(stage: InpaintStage) -> None:
    frozen = PVADenoiser(
        stage.module.part("unet").requires_grad_(False), stage.adapter, stage.module.part("text_encoder")
    )
    trained, stage.module = stage.module, frozen
    try:
        assert any(isinstance(model, UNet2DConditionModel) for model in stage.models())
    finally:
        stage.module = trained


def test_the_widened_unet_starts_as_the_one_it_was() -> None:
    unet = tiny_unet(32)
    wide = inpainting_unet(unet)
    latents, context = torch.randn(1, 8, 4, 4), torch.randn(1, 5, 32)
    with torch.no_grad():
        expected = unet(latents, 100, context).sample
        found = wide(torch.cat([latents, torch.randn(1, 9, 4, 4)], 1), 100, context).sample
    assert torch.allclose(found, expected, atol=1e-6)
    again = inpainting_unet(wide)
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), wide.parameters(), strict=True))


def test_every_picture_is_seen_in_every_stratum() -> None:
    times = stratified_times(build_scheduler(), 50, 4, torch.device("cpu"))
    assert times.shape == (4, 50) and torch.equal(times // 250, torch.arange(4)[:, None].expand(4, 50))


def test_the_published_recipe_is_valid() -> None:
    config = parse_config(InpaintTrainConfig, ["--config", str(CONFIGS / "sd2_inpaint" / "pva.yaml")])
    assert config.layout == "celebahq_idi" and not config.train_unet
    assert config.learning_rate * config.transform_rate == pytest.approx(3.2e-5)
    assert config.learning_rate * config.modifier_rate == pytest.approx(1e-3)
