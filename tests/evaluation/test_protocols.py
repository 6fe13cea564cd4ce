"""The papers' protocols on data in their authors' layouts, and figures against originals."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from idgen.cli import main
from idgen.evaluation.layouts import read_generated, read_references
from idgen.evaluation.protocol import load_protocol
from idgen.metrics import psnr, ssim
from tests.evaluation import toys
from tests.renders import Refused


@pytest.fixture(autouse=True)
def _encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.with_toys(monkeypatch)


OURS = ["--judge", "judge", "--made-with", "mini", "--set", "features=judge", "--json", "--device", "cpu"]


def evaluate(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    status = main(["evaluate", *map(str, words), *OURS])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


def write_ffhq_ref(folder: Path) -> Path:
    """Four test pictures with two or three references each."""
    (folder / "reference_mapping").mkdir(parents=True)
    with (folder / "reference_mapping" / "test_references.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["gt_image", "ref_image"])
        for person in range(4):
            names = [f"{person:03d}{shot:02d}.png" for shot in range(4)]
            for shot, name in enumerate(names):
                toys.save(folder / "images512x512" / name, toys.photo(person, shot))
            rows.writerow([names[0], str(names[1 : 3 + person % 2])])
    return folder


def test_refldm_on_ffhq_ref(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_ffhq_ref(tmp_path / "ffhq")
    for person in range(4):
        noise = np.random.default_rng(person).normal(0, 6, (112, 112, 3))
        restored = np.clip(toys.photo(person, 0) + noise, 0, 255).astype(np.uint8)
        toys.save(tmp_path / "restored" / f"{person:03d}00.png", restored)
    words = ["--protocol", "refldm_severe", "--references", data, "--out", tmp_path / "out"]
    result = evaluate(capsys, tmp_path / "restored", *words)
    figures = result["metrics"]
    assert figures["cosine_to_others"]["value"] > 0.95 > figures["cosine_to_references"]["value"]
    pairs = [
        torch.stack([torch.from_numpy(np.array(Image.open(folder / f"{person:03d}00.png"))) for person in range(4)])
        for folder in (tmp_path / "restored", data / "images512x512")
    ]
    assert figures["psnr"]["value"] == pytest.approx(float(psnr(*pairs).mean()), abs=1e-4)
    assert figures["ssim"]["value"] == pytest.approx(float(ssim(*pairs).mean()), abs=1e-5)
    assert figures["landmark_distance"]["value"] == 0
    assert "pip install lpips" in result["not_run"]["lpips"] and "pip install pyiqa" in result["not_run"]["niqe"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "CodeFormer" in page and "0.676" in page and "very recogniser" in page
    rows = list(csv.DictReader((tmp_path / "out" / "metrics.csv").open()))
    assert float(rows[2]["psnr"]) > 25


def write_shared_ffhq_ref(folder: Path) -> Path:
    """Three people of three pictures with the same names in folders of their own, each restored from the next one(s)."""
    (folder / "reference_mapping").mkdir(parents=True)
    with (folder / "reference_mapping" / "test_references.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["gt_image", "ref_image"])
        for shot in range(3):
            for person in range(3):
                toys.save(folder / "images512x512" / f"p{person}" / f"s{shot}.png", toys.photo(person, shot))
                shown = [f"p{person}/s{(shot + 1) % 3}.png", f"p{person}/s{(shot + 2) % 3}.png"][: 1 + person % 2]
                rows.writerow([f"p{person}/s{shot}.png", str(shown)])
    return folder


def test_rows_that_share_a_picture_are_of_one_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_shared_ffhq_ref(tmp_path / "ffhq")
    material = read_references(data, load_protocol("refldm_severe"))
    assert material.people == ["p0/s0", "p1/s0", "p2/s0"]
    assert [(job.person, job.result) for job in material.jobs][:4] == [
        (0, "p0/s0"),
        (1, "p1/s0"),
        (2, "p2/s0"),
        (0, "p0/s1"),
    ]
    assert [photo.name for photo in material.jobs[4].references] == ["p1/s2.png", "p1/s0.png"]
    assert material.jobs[0].references[0] is material.jobs[3].target and len(material.photos) == 9
    for person in range(3):
        for shot in range(3):
            noise = np.random.default_rng(shot).normal(0, 2, (112, 112, 3))
            restored = np.clip(toys.photo(person, shot) + noise, 0, 255).astype(np.uint8)
            toys.save(tmp_path / "restored" / f"p{person}" / f"s{shot}.png", restored)
    words = ["--protocol", "refldm_severe", "--references", data, "--out", tmp_path / "out"]
    result = evaluate(capsys, tmp_path / "restored", *words)
    assert result["people"] == 3 and result["images"] == 9
    figures = result["metrics"]
    assert figures["psnr"]["value"] > 35  # each was held against its own original
    assert figures["cosine_to_original"]["value"] > 0.99 > figures["cosine_to_others"]["value"]
    # A restoration must be like its original: that makes no copy of it, while one of another photo is one.
    assert result["flags"] == []
    toys.save(tmp_path / "restored" / "p1" / "s2.png", toys.photo(1, 0))
    evaluate(capsys, tmp_path / "restored", *words)
    rows = {row["image"]: row["flags"] for row in csv.DictReader((tmp_path / "out" / "metrics.csv").open())}
    assert [name for name, flags in rows.items() if "reference pasted in" in flags] == ["p1/s2.png"]


def test_originals_without_a_result_or_of_one_name_are_named(refused: Refused, tmp_path: Path) -> None:
    data = write_shared_ffhq_ref(tmp_path / "ffhq")
    for person in range(3):
        toys.save(tmp_path / "restored" / f"p{person}" / "s0.png", toys.photo(person, 0))
    words = ["--protocol", "refldm_severe", "--references", data, "--out", tmp_path / "out", "--judge", "judge"]
    assert "no result of 6 of the 9 originals (p0/s1" in refused("evaluate", tmp_path / "restored", *words)
    table = data / "reference_mapping" / "test_references.csv"
    whole = table.read_text()
    table.write_text(whole + "p0/s0.jpg,\"['p0/s1.png']\"\n")
    assert "lists p0/s0 twice" in refused("evaluate", tmp_path / "restored", *words)
    table.write_text(whole + "../s0.png,\"['p0/s1.png']\"\n")
    assert "outside the folder" in refused("evaluate", tmp_path / "restored", *words)


def test_results_of_another_size_or_name_are_named(refused: Refused, tmp_path: Path) -> None:
    data = write_ffhq_ref(tmp_path / "ffhq")
    for person in range(4):
        toys.save(tmp_path / "restored" / f"{person:03d}00.png", toys.photo(person, 0)[:96, :96])
    words = ["--protocol", "refldm_severe", "--references", data, "--out", tmp_path / "out", "--judge", "judge"]
    line = refused("evaluate", tmp_path / "restored", *words, "--device", "cpu", "--set", "features=judge")
    assert "00000.png is 96 x 96" in line and "112 x 112" in line
    toys.save(tmp_path / "restored" / "extra.png", toys.photo(0, 0)[:96, :96])
    assert "extra.png is named after none of the 4 originals" in refused("evaluate", tmp_path / "restored", *words)


def test_pva_on_celebahq_idi(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "celebahq"
    parts: dict[str, Any] = {}
    for person in range(3):
        names = [f"{10 * person + shot}.png" for shot in range(7)]
        for shot, name in enumerate(names):
            toys.save(data / "image" / name, toys.photo(person, shot))
        parts[str(person)] = {"ref": names[:5], "infer": names[5:]}
    (data / "annotation").mkdir()
    (data / "annotation" / "idi-5.json").write_text(json.dumps({"test_ids": [0, 1, 2], "id2image": parts}))
    for person in range(3):
        for name in parts[str(person)]["infer"]:
            for region in ("lowerface", "eyebrow"):
                filled = toys.photo(person, 50 + len(region))
                toys.save(tmp_path / "filled" / f"{Path(name).stem}_{region}.png", filled)
    words = ["--protocol", "pva", "--references", data, "--out", tmp_path / "out"]
    result = evaluate(capsys, tmp_path / "filled", *words)
    assert result["images"] == 12 and result["people"] == 3
    assert result["metrics"]["rank_one_pooled"]["value"] == 1 and result["metrics"]["id_score"]["value"] > 0.8
    assert 10 < result["metrics"]["psnr"]["value"] < 30


def test_arc2face_on_agedb(tmp_path: Path) -> None:
    for index, name in enumerate(("1_Anna_20_f", "2_Anna_40_f", "3_BenNo_30_m", "4_Anna_60_f")):
        toys.save(tmp_path / "agedb" / f"{name}.jpg", toys.photo(index, 0))
    material = read_references(tmp_path / "agedb", load_protocol("arc2face"))
    assert material.people == ["Anna", "BenNo"]
    assert [photo.name for photo in material.references] == ["1_Anna_20_f.jpg", "3_BenNo_30_m.jpg"]
    assert [photo.name for photo in material.others] == ["2_Anna_40_f.jpg", "4_Anna_60_f.jpg"]
    for name in ("Anna_1", "BenNo-2"):
        toys.save(tmp_path / "made" / f"{name}.png", toys.photo(0, 1))
    assert [photo.person for photo in read_generated(tmp_path / "made", material)] == [0, 1]


def test_portraits_with_prompts_of_which_there_is_one_photo_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for person in range(4):
        toys.save(tmp_path / "portraits" / f"{toys.name_of(person)}.png", toys.photo(person, 0))
        for prompt in range(2):
            toys.save(tmp_path / "made" / f"{person}{prompt}.png", toys.photo(person, 10 + prompt))
            rows.append({"file_name": f"{person}{prompt}.png", "person": toys.name_of(person), "prompt": f"p {prompt}"})
    (tmp_path / "made" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["--protocol", "id_aligner", "--references", tmp_path / "portraits", "--out", tmp_path / "out"]
    result = evaluate(capsys, tmp_path / "made", *words)
    assert "besides the references" in result["not_run"]["id_score"]
    assert result["metrics"]["cosine_to_references"]["value"] > 0.5
    assert "rank-1 among 4 people, the references" in result["metrics"]["rank_one_pooled"]["title"]
    assert "--clip" in result["not_run"]["clip_t"]
    table = list(csv.DictReader((tmp_path / "out" / "metrics.csv").open()))
    assert table[1]["prompt"] == "p 1"


def tiny_clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    from tests.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 16}, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def test_clip_scores_and_features_of_a_model_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = tiny_clip(tmp_path / "clip")
    people = toys.write_people(tmp_path / "people", 5, 8)
    rows = []
    for person in range(5):
        for image in range(4):
            toys.save(tmp_path / "made" / f"{person}{image}.png", toys.photo(person, 10 + image))
            rows.append(
                {"file_name": f"{person}{image}.png", "person": toys.name_of(person), "prompt": "photo of a man"}
            )
    (tmp_path / "made" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["--references", people, "--out", tmp_path / "out", "--clip", clip, "--measures", "clip_t", "fid", "kid"]
    arguments = ["evaluate", tmp_path / "made", *words, "--set", "probe=false", "--set", f"features={clip}"]
    assert main([*map(str, arguments), "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert -100 <= result["metrics"]["clip_t"]["value"] <= 100
    assert result["metrics"]["fid"]["value"] > 0 and str(clip) in result["metrics"]["fid"]["title"]


def test_lpips_and_ratings_are_taken_where_their_packages_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins with the packages' interfaces: what is passed to them, and where their answers go."""
    seen = []

    class Lpips(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            seen.append((float(a.min()), float(a.max()), tuple(a.shape)))
            return (a - b).square().mean((1, 2, 3), keepdim=True)

    def create_metric(name: str, device: torch.device) -> Any:
        return lambda image: image.mean().reshape(1, 1) * (10 if name == "niqe" else 100)

    lpips, pyiqa = ModuleType("lpips"), ModuleType("pyiqa")
    lpips.LPIPS, pyiqa.create_metric = Lpips, create_metric  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", lpips)
    monkeypatch.setitem(sys.modules, "pyiqa", pyiqa)
    data = write_ffhq_ref(tmp_path / "ffhq")
    for person in range(4):
        toys.save(tmp_path / "restored" / f"{person:03d}00.png", toys.photo(person, 0))
    words = ["--protocol", "refldm_moderate", "--references", data, "--out", tmp_path / "out"]
    result = evaluate(capsys, tmp_path / "restored", *words)
    assert result["metrics"]["lpips"]["value"] == 0
    assert seen[0][0] < 0 and seen[0][1] > 0 and seen[0][2] == (1, 3, 112, 112)  # LPIPS takes [-1, 1]
    assert 3 < result["metrics"]["niqe"]["value"] < 7 and 30 < result["metrics"]["musiq"]["value"] < 70
    assert result["metrics"]["niqe"]["beside"]["real photos"] == pytest.approx(5, abs=1.5)


def test_weights_that_a_package_can_not_fetch_are_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: Any, **__: Any) -> Any:
        raise OSError("Name or service not known")

    fidelity = SimpleNamespace(FeatureExtractorInceptionV3=no_network)
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", fidelity)
    people = toys.write_people(tmp_path / "people", 3, 6)
    made = toys.write_generated(tmp_path / "made", 3, 2)
    words = ["--references", people, "--out", tmp_path / "out", "--set", "probe=false", "--set", "features=inception"]
    assert main(["evaluate", *map(str, [made, *words]), "--json", "--device", "cpu"]) == 0
    why = json.loads(capsys.readouterr().out)["not_run"]["fid"]
    assert "no weights on this machine" in why and "Name or service" in why
