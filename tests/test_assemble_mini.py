"""tools/assemble_mini.py: what it makes of the stages' folders is a family that does everything."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny

from idgen.pipelines import Arc2FacePipeline, PVAInpaintPipeline, ReferenceRestorePipeline
from tests.tiny_inpainting import tiny_inpainting_family
from tests.tiny_restore import tiny_restorer
from tools import assemble_mini
from tools.assemble_mini import assemble

BASE = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "model_index.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUNS, as the trainings leave it."""
    family = tiny_inpainting_family(tmp_path_factory.mktemp("family"))
    runs = tmp_path_factory.mktemp("runs")
    stages = {name: (name,) for name in ("recogniser", "judge", "detector", "probe")}
    for stage, names in (stages | {"base": BASE, "arc2face": ("arc2face", "encoder")}).items():
        for name in names:
            target = runs / stage / "weights" / (name if len(names) > 1 else "")
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (family / name).is_dir() else shutil.copy)(family / name, target)
    shutil.copytree(family / "inpaint", runs / "inpaint" / "weights")
    pipe = tiny_restorer()
    pipe.vq = type(pipe.vq).from_pretrained(family / "vae").half()
    pipe.save_pretrained(runs / "restore" / "weights")
    return runs


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def test_the_family_does_everything(runs, tmp_path, monkeypatch, capsys):
    family = tmp_path / "family"
    (family / "judge").mkdir(parents=True)
    (family / "README.md").write_text("the card")
    (family / "old").write_text("of the family before")
    assemble(runs, family)
    assert "MB" in capsys.readouterr().out
    assert (family / "README.md").read_text() == "the card" and not (family / "old").exists()
    assert not (family / "restore" / "vq").exists()
    monkeypatch.setenv("IDGEN_MINI", str(family))
    for kind in (Arc2FacePipeline, ReferenceRestorePipeline, PVAInpaintPipeline):
        assert kind.from_pretrained("mini").unet.config.in_channels in (8, 16, 17)


def test_restoration_and_inpainting_may_be_missing(runs, tmp_path):
    shutil.rmtree(runs / "restore")
    shutil.rmtree(runs / "inpaint")
    assemble(runs, tmp_path / "family")
    assert not {"restore", "inpaint"} & {path.name for path in (tmp_path / "family").iterdir()}


def test_a_decoder_that_was_trained_on_ships_and_keeps_the_latents(runs, tmp_path):
    decoder = runs / "decoder" / "weights"
    vae = AutoencoderTiny.from_pretrained(runs / "base" / "weights" / "vae")
    with torch.no_grad():
        vae.decoder.layers[-1].bias += 1
    vae.half().save_pretrained(decoder)
    assemble(runs, tmp_path / "family")
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "family" / "vae" / name).read_bytes() == (decoder / name).read_bytes()
    vae.register_to_config(scaling_factor=2.0)
    vae.save_pretrained(decoder)
    with pytest.raises(SystemExit, match="scales its latents by 2"):
        assemble(runs, tmp_path / "family")
    with torch.no_grad():
        vae.encoder.layers[-1].bias += 1
    vae.save_pretrained(decoder)
    with pytest.raises(SystemExit, match=r"decoder.*makes other latents"):
        assemble(runs, tmp_path / "family")


def test_what_is_missing_foreign_or_too_large_is_refused_and_nothing_replaced(runs, tmp_path, monkeypatch):
    family = tmp_path / "family"
    assemble(runs, family)
    before = sorted(family.rglob("*"))

    def refuse(words: str) -> None:
        with pytest.raises(SystemExit, match=words):
            assemble(runs, family)
        assert sorted(family.rglob("*")) == before

    monkeypatch.setattr(assemble_mini, "LIMIT_FAMILY", 10_000)
    refuse(r"more than 10000: .*safetensors .* MB")
    monkeypatch.setattr(assemble_mini, "LIMIT_FILE", 1000)
    refuse("more than 1000")
    tiny_restorer(seed=4).save_pretrained(runs / "restore" / "weights")
    refuse("restore.*makes other latents")
    shutil.rmtree(runs / "probe")
    refuse("no weights of probe")
