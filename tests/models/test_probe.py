"""The attribute probe: shapes, reading, and that its config makes it again."""

import json
from pathlib import Path

import pytest
import torch

from idgen.checkpoint import save_weights
from idgen.errors import IdgenError
from idgen.models.probe import AttributeProbe, load_probe

CLASSES = {"glasses": ["glasses", "none"], "head": ["left", "right", "straight"]}


@pytest.fixture
def probe() -> AttributeProbe:
    torch.manual_seed(0)
    return AttributeProbe(CLASSES, widths=(8, 12, 16))


def pictures(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_reading_has_a_value_of_each_attribute_for_each_picture(probe: AttributeProbe) -> None:
    reading = probe.read(pictures(5), batch=2)
    assert reading.pose.shape == (5, 3)
    assert {name: tuple(p.shape) for name, p in reading.probabilities.items()} == {"glasses": (5, 2), "head": (5, 3)}
    assert reading.probabilities["head"].sum(-1) == pytest.approx(torch.ones(5), abs=1e-5)
    assert set(reading.values("head")) <= set(CLASSES["head"])


def test_the_batch_size_changes_no_reading(probe: AttributeProbe) -> None:
    assert torch.allclose(probe.read(pictures(6), batch=6).pose, probe.read(pictures(6), batch=4).pose, atol=1e-4)


def test_a_saved_probe_reads_the_same_when_loaded(probe: AttributeProbe, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(probe.config))
    save_weights(tmp_path / "model.safetensors", probe.state_dict())
    assert torch.equal(load_probe(str(tmp_path)).read(pictures(3)).pose, probe.read(pictures(3)).pose)


def test_weights_of_another_probe_are_refused(probe: AttributeProbe, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(probe.config | {"widths": [8, 12, 20]}))
    save_weights(tmp_path / "model.safetensors", probe.state_dict())
    with pytest.raises(IdgenError, match="attribute probe"):
        load_probe(str(tmp_path))


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(IdgenError, match="nowhere has no config"):
        load_probe(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"architecture": "judge"}')
    with pytest.raises(IdgenError, match="no attribute probe"):
        load_probe(str(tmp_path))


def test_a_probe_learns_a_picture_s_attribute() -> None:
    torch.manual_seed(0)
    probe = AttributeProbe(CLASSES, widths=(8, 12, 16)).train()
    labels = torch.arange(32) % 2
    images = torch.randn(32, 3, 32, 32) * 0.1
    images[labels == 1, 0, 8:16, 8:16] += 1
    optimiser = torch.optim.Adam(probe.parameters(), 5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(probe(images)[0]["glasses"], labels).backward()
        optimiser.step()
    probe.eval()
    assert (probe(images)[0]["glasses"].argmax(-1) == labels).all()
