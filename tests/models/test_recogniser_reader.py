"""The reader that looks through the recogniser: small, frozen where it should be, and only with the recogniser it knows."""

import json
from pathlib import Path

import pytest
import torch

from idgen.checkpoint import save_weights
from idgen.errors import IdgenError
from idgen.models.probe import AttributeProbe, load_probe
from idgen.models.recogniser_reader import RecogniserReader, load_reader, open_recogniser
from idgen.weights import find_mini

CLASSES = {"glasses": ["glasses", "none"], "head": ["left", "right", "straight"]}


@pytest.fixture
def reader() -> RecogniserReader:
    torch.manual_seed(0)
    return RecogniserReader(CLASSES, *open_recogniser(find_mini("recogniser"))).eval()


def save(reader: RecogniserReader | AttributeProbe, folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(reader.config | changes))
    save_weights(folder / "model.safetensors", reader.own_state())
    return folder


def pictures(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 128, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_saved_reader_reads_the_same_and_its_file_is_without_the_recogniser(
    reader: RecogniserReader, tmp_path
) -> None:
    folder = save(reader, tmp_path / "reader")
    again = load_reader(folder)
    assert torch.allclose(again.read(pictures(3)).pose, reader.read(pictures(3)).pose)
    assert (folder / "model.safetensors").stat().st_size < 300_000
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_gradients_pass_to_the_picture_and_training_leaves_the_recogniser(reader: RecogniserReader) -> None:
    image = torch.randn(2, 3, 128, 128, requires_grad=True)
    before = {name: value.clone() for name, value in reader.recogniser.state_dict().items()}
    logits, pose = reader.train()(image)
    (logits["head"].sum() + pose.sum()).backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    after = reader.recogniser.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())  # not its running means either
    assert {name.split(".")[0] for name, p in reader.named_parameters() if p.grad is not None} == {
        "take_low",
        "take_middle",
        "look",
        "heads",
        "pose",
    }


def test_pictures_of_another_size_are_read_at_its_own(reader: RecogniserReader) -> None:
    logits, pose = reader(torch.zeros(1, 3, 256, 192))
    assert pose.shape == (1, 3) and logits["glasses"].shape == (1, 2)


def test_a_reader_of_another_recogniser_is_refused(reader: RecogniserReader, tmp_path: Path) -> None:
    with pytest.raises(IdgenError, match="trained with another recogniser"):
        load_reader(save(reader, tmp_path / "reader", recogniser_sha256="0" * 64))
    with pytest.raises(IdgenError, match="no mini recogniser"):
        open_recogniser(find_mini("judge"))


def test_what_is_no_reader_is_named_and_a_probe_is_one(reader: RecogniserReader, tmp_path: Path) -> None:
    with pytest.raises(IdgenError, match="no reader of attributes"):
        load_reader(save(reader, tmp_path / "other", architecture="judge"))
    damaged = save(reader, tmp_path / "damaged")
    (damaged / "config.json").write_text('{"architecture": "recogniser_reader", "classes": {}, "size": 128}')
    with pytest.raises(IdgenError, match="does not say recogniser_sha256, channels"):
        load_reader(damaged)
    with pytest.raises(IdgenError, match="of an older kind: train it anew"):
        load_reader(save(reader, tmp_path / "older", channels=[16, 20]))
    with pytest.raises(IdgenError, match="no attribute probe"):
        load_probe(str(save(reader, tmp_path / "reader")))
    probe = save(AttributeProbe(CLASSES, widths=(8, 12, 16)), tmp_path / "probe")
    assert isinstance(load_reader(probe), AttributeProbe)
