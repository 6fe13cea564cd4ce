"""Every stage of the mini family trains for two steps on real renders and writes weights that its consumer loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from idgen.errors import IdgenError
from idgen.models.registry import load_detector, load_recogniser
from idgen.train.arc2face import Arc2FaceStage, Arc2FaceTrainConfig
from idgen.train.base import BaseConfig, BaseStage
from idgen.train.detector import DetectorConfig, DetectorStage
from idgen.train.landmarks import LandmarksConfig, LandmarksStage
from idgen.train.loop import fit
from idgen.train.text_encoder import TextEncoderConfig, TextEncoderStage
from idgen.weights import mini_root

REPO = Path(__file__).parents[2]
SHORT = [
    "--max_train_steps",
    "2",
    "--log_steps",
    "1",
    "--validation_steps",
    "2",
    "--num_threads",
    "1",
    "--max_minutes",
    "null",
]


def _train(stage: str, config: str, out: Path, people: Path, *more: str) -> Path:
    command = [
        sys.executable,
        "-m",
        f"idgen.train.{stage}",
        "--config",
        str(REPO / "configs" / "mini" / f"{config}.yaml"),
    ]
    paths = ["--output_dir", str(out), "--data", str(people), "--validation", str(people)]
    done = subprocess.run(
        [*command, *paths, *SHORT, *more], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return out / "weights"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, people_folder: Path) -> dict[str, Path]:
    """All stages one after the other, each on the weights of those before."""
    root = tmp_path_factory.mktemp("runs")
    out: dict[str, Path] = {}
    out["recogniser"] = _train("recogniser", "recogniser", root / "r", people_folder, "--train_batch_size", "8")
    out["judge"] = _train("recogniser", "judge", root / "j", people_folder, "--train_batch_size", "8")
    out["detector"] = _train("detector", "detector", root / "d", people_folder, "--train_batch_size", "4")
    detector = ["--detector", str(out["detector"])]
    out["landmarks"] = _train("landmarks", "landmarks", root / "l", people_folder, "--train_batch_size", "4", *detector)
    recogniser = ["--recogniser", str(out["recogniser"])]
    out["vae"] = _train("autoencoder", "autoencoder", root / "v", people_folder, "--train_batch_size", "2", *recogniser)
    vae = ["--train_batch_size", "4", "--vae", str(out["vae"])]
    out["text_encoder"] = _train("text_encoder", "text_encoder", root / "t", people_folder, *vae)
    seen = ["--recogniser", str(mini_root() / "recogniser")]
    out["reader"] = _train("probe", "reader", root / "w", people_folder, *vae, *seen)
    out["own_reader"] = _train("probe", "probe", root / "o", people_folder, "--train_batch_size", "4")
    half = ["--train_batch_size", "2", "--start_from", str(out["vae"]), "--reader", str(out["own_reader"]), *recogniser]
    for name in ("decoder", "encoder"):
        out[name] = _train("autoencoder", name, root / name, people_folder, *half)
    words = ["--text_encoder", str(out["text_encoder"]), "--text_encoder_rate", "0"]
    words += ["--words_weight", "0.1", "--words_probe", str(out["reader"])]
    out["base"] = _train("base", "base", root / "b", people_folder, *vae, *words)
    arc = ["--train_batch_size", "8", "--base", str(out["base"]), "--identity_start", "0", *recogniser]
    out["arc2face"] = _train("arc2face", "arc2face", root / "a", people_folder, *arc)
    return out


def test_recogniser_and_judge_load_and_differ_in_architecture(trained: dict[str, Path]) -> None:
    mini, judge = load_recogniser(trained["recogniser"]), load_recogniser(trained["judge"])
    crops = torch.rand(2, 3, 112, 112) * 2 - 1
    assert mini(crops).shape == judge(crops).shape == (2, 512)
    assert type(mini) is not type(judge)


def test_detector_loads_and_looks_at_a_picture_of_any_shape(trained: dict[str, Path]) -> None:
    detector = load_detector(trained["detector"])
    found = detector.detect([torch.zeros(90, 301, 3, dtype=torch.uint8)], threshold=0.99)[0]  # type: ignore[operator]
    assert found.boxes.shape[1:] == (4,) and found.landmarks.shape[1:] == (5, 2)


def test_the_landmark_network_goes_into_the_detector_and_nothing_else_of_it_changes(trained: dict[str, Path]) -> None:
    before, after = (load_detector(trained[name]) for name in ("detector", "landmarks"))
    assert before.landmarks is None and after.landmarks is not None
    state = after.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in before.state_dict().items())
    picture = torch.zeros(90, 301, 3, dtype=torch.uint8)
    assert after.detect([picture], threshold=0.0)[0].landmarks.isfinite().all()  # type: ignore[operator]


def test_detector_and_landmarks_go_on_from_weights_of_either(
    trained: dict[str, Path], people_folder: Path, tmp_path
) -> None:
    cpu = torch.device("cpu")
    common = {"output_dir": tmp_path, "data": people_folder, "validation": people_folder}
    stage = DetectorStage(DetectorConfig(**common), cpu)
    for name in ("detector", "landmarks"):
        stage.load(trained[name])
    landmarks = LandmarksStage(LandmarksConfig(detector=trained["landmarks"], **common), cpu)
    landmarks.load(trained["landmarks"])
    with pytest.raises(IdgenError, match="no landmark network to go on from"):
        landmarks.load(trained["detector"])


@pytest.mark.parametrize("half", ["decoder", "encoder"])
def test_a_half_trained_on_leaves_the_other_and_the_scale_of_the_latents(half: str, trained: dict[str, Path]) -> None:
    before, after = (load_file(trained[name] / "diffusion_pytorch_model.safetensors") for name in ("vae", half))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and all(name.startswith(f"{half}.") for name in changed)
    scales = [json.loads((trained[name] / "config.json").read_text())["scaling_factor"] for name in ("vae", half)]
    assert scales[0] == scales[1]


def test_base_is_a_stable_diffusion_pipeline_of_plain_diffusers(trained: dict[str, Path]) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(trained["base"], torch_dtype=torch.float32)
    made = pipe("a smiling woman", num_inference_steps=2, output_type="np").images
    assert made.shape == (1, 128, 128, 3)


def test_base_keeps_the_words_of_the_text_encoder_that_it_is_given(trained: dict[str, Path]) -> None:
    given, kept = (
        load_file(folder / "text_encoder" / "model.safetensors")
        for folder in (trained["text_encoder"], trained["base"])
    )
    assert given.keys() == kept.keys() and all(torch.equal(value, kept[name]) for name, value in given.items())
    vocabularies = [(trained[name] / "tokenizer" / "tokenizer.json").read_text() for name in ("text_encoder", "base")]
    assert vocabularies[0] == vocabularies[1]


def test_base_with_a_text_encoder_that_learns_beside_it(
    trained: dict[str, Path], people_folder: Path, tmp_path: Path
) -> None:
    cpu = torch.device("cpu")
    common = {"output_dir": tmp_path, "data": people_folder, "validation": people_folder, "vae": trained["vae"]}
    fresh = BaseStage(BaseConfig(**common), cpu)
    assert [group["rate"] for group in fresh.groups()] == [1.0, 0.2]
    assert len(fresh.groups()[1]["params"]) > 0
    fresh.load(trained["base"])
    given = load_file(trained["text_encoder"] / "text_encoder" / "model.safetensors")
    loaded = fresh.module.text_encoder.state_dict()
    assert all(torch.equal(value.float(), loaded[name]) for name, value in given.items())


def test_text_encoder_learns_which_caption_belongs_to_which_picture(people_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = mini_root() / "vae"  # latents of one that has learned to draw
    common = {"output_dir": tmp_path, "data": people_folder, "validation": people_folder, "vae": vae}
    stage = TextEncoderStage(TextEncoderConfig(train_batch_size=8, **common), torch.device("cpu"))
    optimiser = torch.optim.AdamW(stage.module.parameters(), 3e-4)
    told = []
    for _ in range(24):
        losses = stage.losses(stage.module, stage.batch(np.random.default_rng(0)), 0.0)
        losses["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        told.append({name: float(value.detach()) for name, value in losses.items()})
    assert told[-1]["found"] > 0.8 and told[-1]["loss"] < 0.5 * told[0]["loss"], (told[0], told[-1])
    figures, _ = stage.validate()
    assert 0 <= figures["found"] <= 1 and 0 < figures["spread"] < 1
    stage.save(tmp_path / "weights")
    stage.load(tmp_path / "weights")


def test_arc2face_writes_the_published_layout_in_half_precision(trained: dict[str, Path]) -> None:
    from idgen.adapters.arc2face import load_encoder, load_unet

    unet, encoder = load_unet(trained["arc2face"] / "arc2face"), load_encoder(trained["arc2face"] / "encoder")
    assert unet.config.cross_attention_dim == encoder.config.hidden_size == 512
    for file in trained["arc2face"].rglob("*.safetensors"):
        assert file.stat().st_size <= 16_000_000


def test_a_missing_data_folder_is_one_line_and_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "idgen.train.detector", "--output_dir", str(tmp_path / "o"), "--data", "nowhere"]
    done = subprocess.run([*command, "--validation", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "idgen synth --out nowhere" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("stage", "setting", "words"),
    [
        ("base", "vae", "vae: no such file or folder: nowhere; give --vae"),
        ("base", "text_encoder", "text_encoder: no such file or folder: nowhere"),
        ("base", "words_probe", "words_probe: no such file or folder: nowhere"),
        ("text_encoder", "vae", "vae: no such file or folder: nowhere"),
        ("arc2face", "base", "base: no such file or folder: nowhere"),
        ("base", "tokenizer", "no tokenizer in"),
    ],
)
def test_weights_that_are_not_there_are_one_line(
    stage: str, setting: str, words: str, people_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kinds = {
        "base": (BaseStage, BaseConfig),
        "text_encoder": (TextEncoderStage, TextEncoderConfig),
        "arc2face": (Arc2FaceStage, Arc2FaceTrainConfig),
    }
    given = {"output_dir": "out", "data": people_folder, "validation": people_folder, "vae": mini_root() / "vae"}
    if stage == "arc2face":
        given = {k: v for k, v in given.items() if k != "vae"} | {"recogniser": mini_root() / "recogniser"}
    given[setting] = tmp_path if setting == "tokenizer" else "nowhere"
    run, config = kinds[stage]
    with pytest.raises(IdgenError, match=words) as caught:
        fit(run, config(**given))
    assert "\n" not in str(caught.value)
