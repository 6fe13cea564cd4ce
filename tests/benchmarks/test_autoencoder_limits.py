"""Latents that a gradient improves draw a nearer copy, and the table says by how much."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import autoencoder_limits as limits


def test_latents_go_where_the_copy_is_nearer_and_more_alike() -> None:
    start, images = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5)
    made = dict(limits.improved(lambda z: z, start, images, lambda p: F.mse_loss(p, images), 20))
    assert list(made) == list(range(1, 21)) and not start.any()
    errors = [float(F.mse_loss(made[step], images)) for step in (1, 10, 20)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.1 * 0.25


def test_the_table_of_the_shipped_autoencoder(tmp_path: Path, capsys) -> None:
    words = ["--people", "2", "--steps", "2", "4", "--device", "cpu", "--workers", "1", "--cache", str(tmp_path)]
    limits.main([*words, "--json", str(tmp_path / "limits.json")])
    stored = json.loads((tmp_path / "limits.json").read_text())
    start, later = stored["the encoder's latents"], stored["after 4 steps of gradient"]
    assert start["moved"] == 0 < later["moved"] < 0.2 and later["psnr"] > start["psnr"]
    assert "after 2 steps of gradient" in capsys.readouterr().out
