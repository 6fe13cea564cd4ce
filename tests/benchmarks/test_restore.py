"""The benchmarks of restoration, on tiny random weights: they run, and what they compare is the same computation."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import UNet2DModel, VQModel

from benchmarks import repaired, restore, restore_speed
from benchmarks.memory import peak_memory
from idgen.adapters.cachekv.concat import with_channels
from idgen.metrics.optional import MissingExtra
from idgen.models.mini_detector import MiniDetector
from tests.tiny_family import face_in_the_middle, tiny_family
from tests.tiny_restore import add_restorer, tiny_restorer


def tiny() -> restore_speed.Restorer:
    torch.manual_seed(0)
    attends = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    unet = UNet2DModel(
        in_channels=8,
        out_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=attends[0],
        up_block_types=attends[1],
        attention_head_dim=16,
    )
    vq = VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        num_vq_embeddings=16,
    )
    return restore_speed.Restorer(unet.eval(), vq.eval(), 32)


def test_the_authors_way_and_ours_predict_the_same():
    model = tiny()
    timing = restore_speed.Timing(steps=2, repeats=1)
    shared = restore_speed.shared_parts(model, timing)
    for references in (1, 3):
        found = restore_speed.compare(model, references, timing, shared)
        assert found["relative_error"] < 1e-5
        assert set(found["seconds"]) == {"original", "exact", "stored"}
        ours, stored = found["parts"]["exact"], found["parts"]["stored"]
        assert stored.items() <= ours.items() and ours.keys() - stored.keys() == {"references", "passes", "null"}
        assert set(found["parts"]["original"]) == {"photo", "references", "passes", "decoding", "step"}


def test_the_speed_tables(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(restore_speed, "MECHANISMS", ("CacheKV",))
    monkeypatch.setattr(restore_speed, "ProcessPoolExecutor", lambda count, mp_context: ThreadPoolExecutor(count))
    restore_speed.main(
        ["--references", "2", "--steps", "2", "--repeats", "1", "--json", str(tmp_path / "s.json")], tiny
    )
    out = capsys.readouterr().out
    assert "2 references, exact: faster" in out and "five references by CacheKV" in out
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["mechanisms"]["CacheKV"]["bytes"] > 1e6 and content["restorations"][0]["references"] == 2


@pytest.mark.parametrize("name", [one for one in restore_speed.MECHANISMS if one != "CacheKV"])
def test_every_mechanism_runs(name):
    seconds, memory = restore_speed.mechanism(name, tiny, 2, restore_speed.Timing(repeats=1))
    assert seconds > 0 and memory > 0


def test_the_table_of_the_bars(capsys, tmp_path, monkeypatch):
    family = add_restorer(tiny_family(tmp_path / "mini"), size=128, references=5)
    for conditioning in ("channel", "spatial"):
        pipe = tiny_restorer(size=128, references=5)
        if conditioning == "channel":
            pipe.unet = with_channels(pipe.unet, 5)
        pipe.register_to_config(conditioning=conditioning)
        pipe.save_pretrained(tmp_path / conditioning)
    monkeypatch.setenv("IDGEN_MINI", str(family))
    monkeypatch.setattr(MiniDetector, "detect", face_in_the_middle)
    monkeypatch.setattr(restore, "ProcessPoolExecutor", lambda count, mp_context: ThreadPoolExecutor(count))
    words = ["--people", "2", "--steps", "1", "--counts", "1", "5", "--presets", "severe", "--workers", "1"]
    words += ["--also", str(tmp_path / "channel"), str(tmp_path / "spatial"), "--device", "cpu"]
    files = [
        "--json",
        str(tmp_path / "r.json"),
        "--cache",
        str(tmp_path / "photos"),
        "--sheet",
        str(tmp_path / "r.png"),
    ]
    restore.main([*words, *files])
    out = capsys.readouterr().out
    also = [f"5 references, {name} ({tmp_path / name})" for name in ("channel", "spatial")]
    repaired = ["0 references", "1 references", "5 references", "the next person's references", *also]
    for row in ("damaged photo", *repaired):
        assert f"severe: {row} | id_score" in out
    assert "id_score over that with none" in out and "distance better than with none" in out
    content = json.loads((tmp_path / "r.json").read_text())
    assert set(content["severe"]["5 references"]["id_score"]) == {"value", "low", "high"}
    assert set(content["costs"]) == {"0 references", "5 references", *also}
    assert all(cost["seconds"] > 0 and cost["bytes"] >= 0 for cost in content["costs"].values())
    assert (tmp_path / "r-severe.png").is_file()


def test_the_perceptual_distance_grows_with_damage(tmp_path, monkeypatch):
    monkeypatch.setenv("IDGEN_MINI", str(tiny_family(tmp_path / "mini")))
    monkeypatch.setattr(repaired, "load_lpips", lambda device: (_ for _ in ()).throw(MissingExtra("lpips")))
    name, distance = repaired.perceptual_distance(torch.device("cpu"))
    assert "probe" in name
    photos = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    some, more = photos.clone(), photos.clone()
    some[:, :16], more[:, :48] = 128, 128
    assert distance(photos, photos) == 0 and 0 < distance(some, photos) < distance(more, photos)


def test_memory_is_what_a_block_took_at_its_most():
    device = torch.device("cpu")
    # Freed below something that is kept, in pieces that malloc does not map on their own: they stay with the process.
    for _ in range(3):
        freed = [torch.ones(30_000_000, dtype=torch.uint8) for _ in range(8)]
        kept = [torch.ones(20_000, dtype=torch.uint8) for _ in range(40)]
        del freed
    with peak_memory(device) as first:
        torch.ones(100_000_000, dtype=torch.uint8)
    with peak_memory(device) as nothing:
        pass
    assert len(kept) == 40 and 90e6 < first.bytes < 200e6 and nothing.bytes < 10e6
