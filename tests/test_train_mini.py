"""The plan runner, and the turns of one recogniser or autoencoder towards another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity, normalize

from idgen.models.mini_recogniser import MiniRecogniser
from tools import align_autoencoder
from tools.align_recogniser import align, procrustes

REPO = Path(__file__).parents[1]


def _run(plan: dict, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "plan.yaml").write_text(yaml.safe_dump({"jobs": plan}))
    (folder / "preference.yaml").write_text((REPO / "configs/mini/preference.yaml").read_text())
    command = [sys.executable, str(REPO / "tools/train_mini.py"), str(folder / "plan.yaml")]
    return subprocess.run(
        [*command, "--out", str(folder / "out"), "--workers", "1", "--rehearse"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_jobs_run_when_what_they_need_is_done_and_not_again(tmp_path: Path) -> None:
    people = {"synth": {"people": 12, "shots": 2, "first_person": 950000}}
    stage = {"stage": "preference", "config": "preference", "minutes": 1, "needs": ["train"]}
    stage["set"] = {"validation": "{out}/data/train"}
    done = _run({"train": people, "head": stage}, tmp_path)
    assert done.returncode == 0, done.stdout + (tmp_path / "out/head.log").read_text()
    assert [line.split()[2:] for line in done.stdout.splitlines()] == [["train:", "done"], ["head:", "done"]]
    assert (tmp_path / "out/head/weights/model.safetensors").is_file()
    again = _run({"train": people, "head": stage}, tmp_path)
    assert again.returncode == 0 and again.stdout == ""


def test_what_a_failed_job_was_needed_for_does_not_run(tmp_path: Path) -> None:
    bad = {"stage": "preference", "config": "preference", "minutes": 1, "set": {"data": str(tmp_path / "nowhere")}}
    later = {"stage": "preference", "config": "preference", "minutes": 1, "needs": ["bad"]}
    done = _run({"bad": bad, "later": later}, tmp_path)
    assert done.returncode == 1
    assert "bad: FAILED" in done.stdout and "later: FAILED" in done.stdout
    assert "later needs bad, which failed" in (tmp_path / "out/later.log").read_text()


def test_a_job_that_the_plan_has_not_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"jobs": {"train": {}, "head": {}}}))
    command = [sys.executable, str(REPO / "tools/train_mini.py"), str(tmp_path / "plan.yaml")]
    done = subprocess.run([*command, "--out", str(tmp_path / "out"), "--only", "haed"], capture_output=True, text=True)
    assert done.returncode == 2 and "has no job 'haed': its jobs are head, train" in done.stderr


def test_a_turned_recogniser_keeps_every_cosine_and_points_where_the_old_one_did() -> None:
    torch.manual_seed(0)
    # Crops of few kinds: two untrained networks then agree on something.
    crops = (torch.randn(6, 3, 112, 112)[torch.arange(90) % 6] + 0.1 * torch.randn(90, 3, 112, 112)).clamp(-1, 1)
    old, new = (MiniRecogniser((8, 16, 24), (1, 1, 1), 32) for _ in range(2))
    with torch.no_grad():
        for network in (old, new):
            network.train()(crops)  # statistics for its norms
            network.eval()
            network.normalise.weight.uniform_(0.5, 1.5)
            network.normalise.bias.normal_(std=0.2)
        wanted, before = normalize(old(crops)), normalize(new(crops))
        align(new, procrustes(before, wanted))
        after = normalize(new(crops))
    assert torch.allclose(after @ after.T, before @ before.T, atol=1e-4)
    nearer, was = cosine_similarity(after, wanted).mean(), cosine_similarity(before, wanted).mean()
    assert nearer > was + 0.2


def test_an_autoencoder_takes_on_the_latents_of_another_and_still_decodes(monkeypatch):
    torch.manual_seed(0)
    settings = {"latent_channels": 4, "num_encoder_blocks": (0, 0, 0, 1), "num_decoder_blocks": (1, 0, 0, 0)}
    widths = {"encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (16,) * 4}
    vae = AutoencoderTiny(**settings, **widths)
    with torch.no_grad():
        vae.encoder.layers[-1].weight *= 20  # latents of a size at which their bending matters
    photos = torch.rand(40, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(photos).latents
        made = vae.decode(latents).sample
        mixture = torch.linalg.qr(torch.randn(4, 4)).Q
        wanted = torch.einsum("oc,nchw->nohw", mixture, latents)
    monkeypatch.setattr(align_autoencoder, "STEPS", 300)
    align_autoencoder.align(vae, latents, wanted[:20])
    with torch.no_grad():
        assert torch.allclose(vae.encode(photos).latents, wanted, atol=1e-3)
        error = (vae.decode(wanted).sample - made).pow(2).mean() / made.var()
    assert error < 0.02


def _mixed(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    files = [str(folder / f"{name}.safetensors") for name in ("start", "after", "before", "out")]
    command = [sys.executable, str(REPO / "tools/mix_weights.py"), *files, *more]
    return subprocess.run(command, capture_output=True, text=True)


def test_weights_take_the_change_of_a_sibling(tmp_path: Path) -> None:
    before = {"attn2.to_k.weight": torch.zeros(2, 3), "conv.weight": torch.zeros(2, 2, 1, 1), "bias": torch.ones(2)}
    after = {name: value + 1 for name, value in before.items()}
    start = {**before, "conv.weight": torch.full((2, 5, 1, 1), 4.0), "bias": torch.zeros(2).half()}
    for name, state in (("start", start), ("after", after), ("before", before)):
        save_file(state, tmp_path / f"{name}.safetensors")
    done = _mixed(tmp_path, "--factor", "0.5", "--names", "attn2=1.0")
    assert done.returncode == 0, done.stderr
    out = load_file(tmp_path / "out.safetensors")
    assert torch.equal(out["attn2.to_k.weight"], torch.ones(2, 3))
    assert out["conv.weight"].flatten().tolist() == [4.5, 4.5, 4, 4, 4] * 2
    assert out["bias"].dtype == torch.float16 and out["bias"].tolist() == [0.5, 0.5]


def test_weights_of_another_architecture_are_refused_by_name(tmp_path: Path) -> None:
    for name, size in (("start", 2), ("after", 3), ("before", 3)):
        save_file({"a.weight": torch.zeros(size, 2)}, tmp_path / f"{name}.safetensors")
    done = _mixed(tmp_path, "--factor", "1")
    assert (
        done.returncode == 2 and "not of one architecture: a.weight" in done.stderr and "Traceback" not in done.stderr
    )
    save_file({"b.weight": torch.zeros(3, 2)}, tmp_path / "after.safetensors")
    done = _mixed(tmp_path, "--factor", "1")
    assert "a.weight is not in all of them" in done.stderr
    assert not (tmp_path / "out.safetensors").exists()
