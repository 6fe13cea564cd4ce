"""The training of restoration: two steps on real renders, what is read when, and what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel

import idgen.configs
from idgen.checkpoint import save_weights
from idgen.data.ffhq_ref import write_tables
from idgen.errors import IdgenError
from idgen.evaluation.judge import declared_rewards
from idgen.faces.align_torch import norm_crop_torch
from idgen.models.tiny_decoder import TinyDecoder
from idgen.pipelines import ReferenceRestorePipeline
from idgen.train.config import parse_config
from idgen.train.restore import MODELS, RestoreStage, RestoreTrainConfig, _several

CONFIGS = Path(idgen.configs.__file__).parent
MINI = Path(idgen.__file__).parent / "assets" / "mini"


def arguments(people: Path, out: Path, *more: str) -> list[str]:
    values = {
        "output_dir": out,
        "data": people,
        "validation": people,
        "vae": MINI / "vae",
        "recogniser": MINI / "recogniser",
        "references_start": 0,
        "identity_start": 0,
        "references": 2,
        "time_bins": 1,
        "max_train_steps": 2,
        "log_steps": 1,
        "validation_steps": 2,
        "num_threads": 1,
        "max_minutes": "null",
        "train_batch_size": 2,
    }
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return ["--config", str(CONFIGS / "mini" / "restore.yaml"), *flags, *more]


def stage(people: Path, out: Path, *more: str) -> RestoreStage:
    return RestoreStage(parse_config(RestoreTrainConfig, arguments(people, out, *more)), torch.device("cpu"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, people_folder: Path) -> Path:
    """Trained for two steps, as a user would."""
    out = tmp_path_factory.mktemp("restore")
    command = [sys.executable, "-m", "idgen.train.restore", *arguments(people_folder, out)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    log = (out / "log.jsonl").read_text()
    assert "cosine_references" in log and "psnr_alone" in log and '"identity"' in log
    assert list((out / "grids").glob("*.png"))
    return out / "weights"


def test_it_writes_a_pipeline_that_restores(weights):
    pipe = ReferenceRestorePipeline.from_pretrained(weights)
    assert declared_rewards(weights) == ["mini"]
    assert (pipe.config.size, pipe.config.references, pipe.config.ref_encoding) == (128, 2, "independent")
    assert isinstance(pipe.vq, AutoencoderTiny) and pipe.unet.config.in_channels == 16
    assert (weights / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size < 16_000_000
    photo = np.zeros((128, 128, 3), np.uint8)
    assert pipe(photo, [photo, photo], num_inference_steps=1).images[0].size == (128, 128)


def test_a_training_goes_on_from_finished_weights(weights, people_folder, tmp_path):
    fresh = stage(people_folder, tmp_path)
    fresh.load(weights)
    saved = ReferenceRestorePipeline.from_pretrained(weights).unet.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in fresh.module.unet.state_dict().items())


def test_a_recogniser_that_only_measures_is_not_declared(people_folder, tmp_path):
    stage(people_folder, tmp_path, "--identity_weight", "0").save(tmp_path / "weights")
    assert declared_rewards(tmp_path / "weights") == []


def test_the_stage_that_restores_photos_alone_reads_no_references(people_folder, tmp_path):
    training = stage(people_folder, tmp_path, "--references", "0")
    batch = training.batch(np.random.default_rng(0))
    assert batch["references"].shape[1] == 0
    assert training.losses(training.module, batch, progress=1.0)["identity"].isfinite()
    figures, _ = training.validate()
    assert set(figures) == {"psnr_alone", "cosine_alone"}


def test_it_begins_with_a_text_to_image_unet(people_folder, tmp_path):
    begun = stage(people_folder, tmp_path, "--unet", str(MINI / "arc2face")).module.unet.state_dict()
    given = UNet2DConditionModel.from_pretrained(MINI / "arc2face", torch_dtype=torch.float32).state_dict()
    shared = [name for name in given if name in begun and name != "conv_in.weight"]
    assert len(shared) > 90 and all(torch.equal(begun[name], given[name]) for name in shared)
    assert torch.equal(begun["conv_in.weight"][:, :8], given["conv_in.weight"])
    assert not begun["conv_in.weight"][:, 8:].any()


@pytest.mark.parametrize("conditioning", ["cachekv", "channel", "spatial"])
def test_a_photo_at_several_times_reads_its_own_references(conditioning, people_folder, tmp_path):
    trained = stage(people_folder, tmp_path, "--conditioning", conditioning, "--time_bins", "3")
    trained.recogniser = None
    batch = trained.batch(np.random.default_rng(0))
    assert trained.losses(trained.module, batch, 1.0)["loss"].isfinite()
    references = batch["references"]
    noisy, times = torch.randn(6, 8, 16, 16), torch.tensor([1, 500, 900, 3, 400, 800])
    lq = batch["lq"].repeat(3, 1, 1, 1)
    with torch.no_grad():
        trained.module.unet.conv_in.weight += 0.1 * torch.randn_like(trained.module.unet.conv_in.weight)
        together = trained.module(noisy, times, lq, references)
        each = trained.module(noisy, times, lq, references.repeat(3, 1, 1, 1, 1))
        mixed = trained.module(noisy, times, lq, references.flip(0))
    assert torch.allclose(together, each, atol=1e-5)
    assert not torch.allclose(together, mixed, atol=1e-5)


def test_references_are_read_from_their_start_and_trained_through(people_folder, tmp_path):
    training = stage(people_folder, tmp_path, "--references_start", "0.5", "--identity_weight", "0")
    batch = training.batch(np.random.default_rng(0))
    assert batch["latents"].shape == batch["lq"].shape == (2, 8, 16, 16) and batch["references"].shape[0] == 2
    rows = []
    training.module.unet.conv_in.register_forward_hook(lambda module, given, made: rows.append(len(given[0])))
    training.losses(training.module, batch, progress=0.1)
    assert rows == [2], "the photo alone"
    rows.clear()
    batch["references"] = batch["references"].requires_grad_()
    batch["references_dropped"][:] = False
    training.losses(training.module, batch, progress=0.6)["loss"].backward()
    assert rows == [2 * batch["references"].shape[1], 2]
    assert batch["references"].grad.abs().amax((2, 3, 4)).min() > 0


def test_what_is_left_out_is_zero_and_a_batch_follows_from_its_number(people_folder, tmp_path):
    training = stage(people_folder, tmp_path, "--condition_dropout", "1")
    seen = []
    training.module.forward = lambda noisy, times, lq, references: seen.append((lq, references)) or noisy  # type: ignore
    first, again = (training.batch(np.random.default_rng(5)) for _ in range(2))
    training.losses(training.module, first, progress=1)
    assert not seen[0][0].any() and not seen[0][1].any()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("target", ["photo", "person"])
def test_the_loss_of_identity_looks_at_aligned_faces(target, people_folder, tmp_path, monkeypatch):
    training = stage(people_folder, tmp_path, "--identity_target", target, "--time_bins", "2", "--identity_batch", "4")
    batch = training.batch(np.random.default_rng(0))
    batch["references_dropped"][:] = False
    shown = []
    inner = training.recogniser.forward
    monkeypatch.setattr(training.recogniser, "forward", lambda crops: (shown.append(crops), inner(crops))[1])

    def model(noisy, times, lq, references):
        # The velocity that stands for the photo's own latents.
        alpha = training.scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
        latents = batch["latents"].repeat(2, 1, 1, 1)
        return (alpha.sqrt() * noisy - latents) / (1 - alpha).sqrt().clamp_min(1e-4)

    losses = training.losses(model, batch, progress=1.0)
    with torch.no_grad():
        whole = training.decode(batch["latents"]).float()
        crops = norm_crop_torch(whole, torch.from_numpy(training.data.landmarks[batch["photos"].numpy()]))
    assert torch.allclose(shown[-1], crops.repeat(2, 1, 1, 1), atol=2e-2)
    if target == "photo":
        assert losses["identity"] < 1e-3, "the photo itself is what is wanted"
    else:
        others = [training._person(row) for row in _rows(training, batch)]
        with torch.no_grad():
            cosine = torch.nn.functional.cosine_similarity(inner(crops), torch.from_numpy(np.stack(others)))
        assert 0 < losses["identity"] < float((1 - cosine).max()) + 1e-2


def test_a_person_is_the_mean_of_the_other_photos_or_the_only_one(people_folder, tmp_path):
    training = stage(people_folder, tmp_path, "--identity_target", "person")
    others = training.data.references[1]
    assert training.data.targets[1] not in others and len(others) >= 2
    assert np.allclose(training._person(1), training.identities[others].mean(0))
    training.data.references[1] = others[:0]
    assert np.allclose(training._person(1), training.identities[training.data.targets[1]])


def test_a_small_decoder_shows_the_loss_of_identity_its_pictures(people_folder, tmp_path):
    decoder = TinyDecoder(8, width=16, blocks=(1, 1))
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(decoder.config))
    save_weights(tmp_path / "tiny" / "model.safetensors", decoder.state_dict(), {"format": "pt"})
    training = stage(people_folder, tmp_path, "--tiny", str(tmp_path / "tiny"))
    latents = torch.randn(1, 8, 16, 16)
    assert torch.allclose(training.decode(latents), decoder(latents), atol=1e-5)
    losses = training.losses(training.module, training.batch(np.random.default_rng(0)), 1.0)
    assert losses["identity"].isfinite() and losses["identity"] > 0


def test_who_is_told_nothing_is_not_asked_for_anybody(people_folder, tmp_path):
    training = stage(people_folder, tmp_path, "--identity_target", "person", "--condition_dropout", "1")
    assert training.losses(training.module, training.batch(np.random.default_rng(0)), progress=1.0)["identity"] == 0


def _rows(training, batch):
    return [int(np.flatnonzero(training.data.targets == photo)[0]) for photo in batch["photos"].numpy()]


def test_damage_may_be_that_of_real_photos(people_folder, tmp_path):
    training = stage(people_folder, tmp_path, "--degradation", "real_world")
    pictures = torch.zeros(2, 3, 128, 128)
    first, again = (training._damaged(pictures, np.random.default_rng(3)) for _ in range(2))
    assert first.shape == pictures.shape and torch.equal(first, again) and not torch.equal(first[0], first[1])
    assert training.batch(np.random.default_rng(0))["lq"].isfinite().all()


def test_the_authors_recipe_on_a_folder_in_their_layout(people_folder, tmp_path, monkeypatch):
    files = sorted((people_folder / "images").glob("*/*.png"))
    people = [[str(file) for file in files[start : start + 4]] for start in range(0, len(files), 4)]
    write_tables(tmp_path / "ref", people)
    for name in ("train", "val"):
        assert (tmp_path / "ref" / "reference_mapping" / f"{name}_references.csv").is_file()
    monkeypatch.setitem(MODELS, "refldm", (MODELS["mini"][0], MODELS["refldm"][1]))
    values = {"output_dir": tmp_path / "o", "data": tmp_path / "ref", "validation": tmp_path / "ref", "size": 128}
    values |= {"vae": MINI / "vae", "recogniser": MINI / "recogniser", "train_batch_size": 2, "identity_batch": 1}
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    config = parse_config(RestoreTrainConfig, ["--config", str(CONFIGS / "ffhq" / "refldm.yaml"), *flags])
    training = RestoreStage(config, torch.device("cpu"))
    assert training.latents is None and training.scheduler.config.prediction_type == "epsilon"
    batch = training.batch(np.random.default_rng(0))
    assert batch["references"].shape == (2, 5, 8, 16, 16)
    losses = training.losses(training.module, batch, progress=0.0)
    assert all(value.isfinite() for value in losses.values()) and losses["identity"] > 0
    alone = RestoreStage(config.model_copy(update={"references": 0}), torch.device("cpu"))
    assert "references" not in alone.batch(np.random.default_rng(0))
    assert alone.losses(alone.module, alone.batch(np.random.default_rng(0)), 0.0)["loss"].isfinite()


@pytest.mark.parametrize(("conditioning", "channels", "width"), [("channel", 32, 16), ("spatial", 16, 48)])
def test_the_other_ways_of_reading_references_train_from_the_same_weights(
    conditioning, channels, width, weights, people_folder, tmp_path
):
    more = ["--conditioning", conditioning, "--min_references", "2", "--identity_weight", "0"]
    training = stage(people_folder, tmp_path, *more)
    training.load(weights)
    shapes = []
    training.module.unet.conv_in.register_forward_hook(lambda module, given, made: shapes.append(given[0].shape))
    batch = training.batch(np.random.default_rng(0))
    batch["references"] = batch["references"].requires_grad_()
    batch["references_dropped"][:] = False
    training.losses(training.module, batch, progress=1.0)["loss"].backward()
    assert shapes == [(2, channels, 16, width)]
    assert training.module.unet.conv_in.weight.grad[:, -8:].abs().sum() > 0 or conditioning == "spatial"
    own = training.held_out.references
    own[0] = own[0][:1]  # somebody with fewer photos than the others
    assert training.validate()[0]["psnr_references"] > 0
    training.save(tmp_path / "w")
    again = ReferenceRestorePipeline.from_pretrained(tmp_path / "w")
    assert again.config.conditioning == conditioning and again.unet.config.in_channels == channels
    training.load(tmp_path / "w")  # also from its own


def test_few_references_come_again():
    drawn = _several(np.array([4, 7]), 5, np.random.default_rng(0))
    assert len(drawn) == 5 and set(drawn) == {4, 7}
    assert _several(np.array([4, 7]), 0, np.random.default_rng(0)).dtype == np.int64


def test_a_missing_data_folder_is_one_line(tmp_path):
    with pytest.raises(IdgenError, match=r"idgen synth --out .*nowhere") as caught:
        stage(tmp_path / "nowhere", tmp_path)
    assert "\n" not in str(caught.value)
