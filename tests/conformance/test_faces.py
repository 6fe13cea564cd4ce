"""Alignment and recognisers against the originals, through the containers in which they are published."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from idgen.faces.align import ARCFACE_TEMPLATE, ffhq_crop, norm_crop, similarity_matrix
from idgen.faces.align_torch import ffhq_crop_torch, norm_crop_torch, similarity_matrix_torch
from idgen.models.iresnet import LAYERS, load_iresnet
from tests.conformance.golden import Golden, goldens


@pytest.mark.parametrize("folder", goldens("arcface_align"), ids=lambda folder: folder.name)
def test_alignment_equals_the_original(folder):
    golden = Golden(folder)
    inputs = golden.inputs()
    assert np.allclose(ARCFACE_TEMPLATE, golden.config["template"], atol=1e-4)
    image = inputs["image"].numpy()
    results = {}
    for index, size in enumerate(golden.config["crop_sizes"]):
        landmarks = inputs[f"landmarks.{index}"].numpy()
        results[f"matrix.{index}"] = torch.from_numpy(similarity_matrix(landmarks, size))
        results[f"crop.{index}"] = torch.from_numpy(norm_crop(image, landmarks, size))
    for name, case in golden.config["ffhq"].items():
        landmarks = inputs[f"landmarks68.{case['landmarks']}"].numpy()
        results[f"ffhq.{name}"] = torch.from_numpy(ffhq_crop(image, landmarks, **case["kwargs"]).copy())
    golden.check(results)


@pytest.mark.parametrize("folder", goldens("arcface_align"), ids=lambda folder: folder.name)
@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
def test_differentiable_alignment_equals_the_original(folder, value_range):
    golden = Golden(folder)
    inputs = golden.inputs()
    low, high = value_range
    image = inputs["image"].permute(2, 0, 1)[None].float() / 255 * (high - low) + low

    def to_bytes(crop):
        return ((crop[0].permute(1, 2, 0) - low) * (255 / (high - low))).round().clamp(0, 255).to(torch.uint8)

    results = {}
    for index, size in enumerate(golden.config["crop_sizes"]):
        landmarks = inputs[f"landmarks.{index}"][None]
        results[f"matrix.{index}"] = similarity_matrix_torch(landmarks, size)[0]
        results[f"crop.{index}"] = to_bytes(norm_crop_torch(image, landmarks, size, value_range))
    for name, case in golden.config["ffhq"].items():
        landmarks = inputs[f"landmarks68.{case['landmarks']}"][None]
        results[f"ffhq.{name}"] = to_bytes(ffhq_crop_torch(image, landmarks, value_range=value_range, **case["kwargs"]))
    golden.check(results)


@pytest.mark.slow
@pytest.mark.parametrize("folder", goldens("iresnet_arcface"), ids=lambda folder: folder.name)
def test_iresnet_equals_the_original(folder, tmp_path):
    golden = Golden(folder)
    inputs, every_key = golden.inputs(), golden.meta["weights"]["keys"]
    results = {}
    for index, arch in enumerate(golden.config["archs"]):
        # One network's weights at a time: all of them together take a gigabyte.
        golden.meta["weights"]["keys"] = [spec for spec in every_key if spec[0].startswith(f"{arch}.")]
        weights = golden.weights(f"{arch}.")
        torch.save(weights, tmp_path / "backbone.pth")
        network = load_iresnet(tmp_path / "backbone.pth")
        assert tuple(len(network.get_submodule(f"layer{stage}")) for stage in (1, 2, 3, 4)) == LAYERS[arch]
        results |= run(network, arch, inputs, golden.meta["outputs"])
        if index == 0:
            save_file(weights, tmp_path / "model.safetensors")
            assert_same_state(load_iresnet(tmp_path / "model.safetensors"), network)
    golden.check(results)


def assert_same_state(network, other):
    state = other.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@torch.no_grad()
def run(network, arch, inputs, wanted):
    """Every output of one network that the golden holds: `<arch>.<quantity>.<input>`."""
    stages: dict[str, torch.Tensor] = {}

    def keep(name):
        return lambda module, arguments, out: stages.update({name: out.mean((2, 3))})

    for stage in (1, 2, 3, 4):
        network.get_submodule(f"layer{stage}").register_forward_hook(keep(f"layer{stage}_spatial_mean"))
    results = {}
    for name, value in inputs.items():
        images = (value.permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5 if value.dtype == torch.uint8 else value
        raw = network(images)
        found = {"raw": raw, "normalized": F.normalize(raw)} | stages
        results |= {f"{arch}.{key}.{name}": value for key, value in found.items()}
    return {key: value for key, value in results.items() if key in wanted}
