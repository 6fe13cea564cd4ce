"""IResNet from published checkpoints: what is read off the weights, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file

from idgen.errors import IdgenError
from idgen.models.iresnet import IResNet, from_state, load_iresnet
from tests.faces.packs import random_iresnet


def test_depth_widths_and_input_size_are_read_off_the_weights():
    network = IResNet((2, 1, 3, 1), (4, 8, 8, 16), size=64, embedding_dim=32).eval()
    again = from_state(network.state_dict(), "test")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images), network(images))
    assert again(images).shape == (2, 32) and not again.training


@pytest.mark.parametrize("container", ["backbone.pth", "model.pt", "model.safetensors"])
def test_every_container_gives_the_same_network(tmp_path, container):
    network = random_iresnet()
    path = tmp_path / container
    state = network.state_dict()
    save_file(state, path) if container.endswith("safetensors") else torch.save({"state_dict": state}, path)
    images = torch.rand(1, 3, 112, 112)
    with torch.no_grad():
        assert torch.equal(load_iresnet(path)(images), network(images))


def test_the_prefix_of_a_distributed_training_is_dropped():
    state = {f"module.{key}": value for key, value in random_iresnet().state_dict().items()}
    assert isinstance(from_state(state, "test"), IResNet)


def test_half_precision_weights_become_float32():
    state = {k: v.half() if v.is_floating_point() else v for k, v in random_iresnet().state_dict().items()}
    assert from_state(state, "test").fc.weight.dtype == torch.float32


def test_other_and_incomplete_weights_are_refused_by_name():
    state = random_iresnet().state_dict()
    with pytest.raises(IdgenError, match="other: not the weights of an IResNet"):
        from_state({"conv.weight": torch.ones(1)}, "other")
    for change, words in (
        ({"layer2.1.bn2.weight": None}, r"1 missing: layer2\.1\.bn2\.weight"),
        ({"head.weight": torch.ones(1)}, r"1 unexpected: head\.weight"),
        ({"prelu.weight": torch.ones(3)}, r"1 misshapen: prelu\.weight \[3\] instead of \[8\]"),
    ):
        changed = {key: value for key, value in {**state, **change}.items() if value is not None}
        with pytest.raises(IdgenError, match=words):
            from_state(changed, "changed")


def test_sizes_that_make_no_iresnet_are_refused():
    for arguments in ({"layers": (1, 1)}, {"size": 100}, {"widths": (8, 8)}):
        with pytest.raises(IdgenError, match="four stages"):
            IResNet(**arguments)
