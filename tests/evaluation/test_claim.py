"""Which pictures of an earlier evaluation are taken for those of this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch

from idgen.checkpoint import load_weights, save_weights
from idgen.errors import IdgenError
from idgen.evaluation.claim import claim, settings_of
from idgen.evaluation.fingerprints import weights_fingerprint
from idgen.evaluation.generate import load_source
from idgen.evaluation.judge import declared_rewards
from idgen.evaluation.layouts import read_references
from idgen.evaluation.processes import Processes
from idgen.evaluation.protocol import load_protocol
from idgen.evaluation.runner import Request
from idgen.pipelines import Arc2FacePipeline
from tests.evaluation import toys
from tests.evaluation.test_protocols import write_ffhq_ref
from tests.tiny_family import tiny_family


def others(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name in after if before[name] != after[name]]


def test_other_photos_are_another_evaluation(tmp_path: Path) -> None:
    people = toys.write_people(tmp_path / "people", 3, 6)
    protocol, request = load_protocol("mini", ["layout=folders", "shown=2"]), Request("mini", tmp_path / "out")

    def settings() -> dict[str, Any]:
        return settings_of(request, protocol, read_references(people, protocol), "weights")

    before = settings()
    toys.save(people / "toy01" / "3.png", toys.photo(1, 50))  # a reference that is not shown
    assert settings() == before
    claim(request.out, before, Processes())
    claim(request.out, settings(), Processes())
    toys.save(people / "toy01" / "1.png", toys.photo(1, 50))
    assert others(before, settings()) == ["photos"]
    with pytest.raises(IdgenError, match=r"another photos\): choose another --out"):
        claim(request.out, settings(), Processes())
    (people / "toy01" / "1.png").write_bytes((people / "toy00" / "1.png").read_bytes())
    (people / "toy00" / "1.png").write_bytes((people / "toy02" / "1.png").read_bytes())
    assert others(before, settings()) == ["photos"]


def test_what_another_version_began_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps({"weights": "w", "seed": 0}))
    with pytest.raises(IdgenError, match="begun by another version of idgen"):
        claim(tmp_path, {"weights": "w", "seed": 0, "photos": "p"}, Processes())


def test_other_degraded_pictures_masks_bases_and_pipelines_are_another_evaluation(tmp_path: Path) -> None:
    data = write_ffhq_ref(tmp_path / "ffhq")
    degraded = data / "test_images" / "severe_degrad"
    for person in range(4):
        toys.save(degraded / f"{person:03d}00.png", toys.photo(person, 9))
    (tmp_path / "base").mkdir()

    def settings(*words: str, base: Any = None) -> dict[str, Any]:
        protocol = load_protocol("refldm_severe", list(words))
        request = Request("mini", tmp_path / "out", base=base)
        return settings_of(request, protocol, read_references(data, protocol), "weights")

    before = settings()
    assert others(before, settings("pipeline=FACTPipeline")) == ["protocol"]
    assert others(before, settings("masks=eyes")) == ["protocol"]
    assert others(before, settings(base="someone/Model")) == ["base"]
    with_base = settings(base=str(tmp_path / "base"))
    (tmp_path / "base" / "unet.safetensors").write_bytes(b"other weights")
    assert others(with_base, settings(base=str(tmp_path / "base"))) == ["base"]
    toys.save(degraded / "00200.png", toys.photo(2, 10))
    assert others(before, settings()) == ["photos"]
    toys.save(degraded / "00200.png", toys.photo(2, 9))
    assert settings() == before
    toys.save(data / "images512x512" / "00201.png", np.full((112, 112, 3), 9, np.uint8))
    assert others(before, settings()) == ["photos"]


def test_a_weights_file_is_known_by_its_content_and_read_for_rewards(tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    save_weights(file, {"w": torch.zeros(2)}, {"reward_recognisers": ["judge"]})
    before = weights_fingerprint(file)
    assert declared_rewards(file) == ["judge"]
    save_weights(file, {"w": torch.ones(2)})
    assert weights_fingerprint(file) != before and declared_rewards(file) == []
    (tmp_path / "adapter.bin").write_bytes(b"no header")
    assert declared_rewards(tmp_path / "adapter.bin") == []


def test_weights_of_the_hub_are_known_by_their_commit_and_read_for_rewards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDGEN_MINI", str(tiny_family(tmp_path / "mini")))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--someone--Model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    snapshot = repo / "snapshots" / ("a" * 40)
    Arc2FacePipeline.from_pretrained("mini").save_pretrained(snapshot)
    unet = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    save_weights(unet, load_weights(unet), {"reward_recognisers": json.dumps(["judge"])})
    source = load_source("someone/Model", load_protocol("mini"), torch.device("cpu"), torch.float32)
    assert source.rewards == ("judge",) and source.fingerprint == f"someone/Model, commit {'a' * 40}"
