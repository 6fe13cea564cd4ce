"""insightface's ONNX recognisers become IResNets with the same weights."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from idgen.errors import IdgenError
from idgen.faces.onnx_import import iresnet_from_onnx
from idgen.models.iresnet import IResNet
from tests.faces.packs import WIDTHS, export, random_iresnet, scrfd


def crops(n=3):
    return torch.rand(n, 3, 112, 112, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("layers", [(1, 1, 1, 1), (2, 2, 2, 2), (3, 4, 2, 3)])
def test_an_exported_iresnet_comes_back_with_its_outputs(tmp_path, fold, layers):
    network = random_iresnet(layers)
    export(network, tmp_path / "r.onnx", fold=fold)
    imported = iresnet_from_onnx(tmp_path / "r.onnx")
    assert set(imported.state_dict()) == set(network.state_dict())
    with torch.no_grad():
        expected, got = network(crops()), imported(crops())
    assert torch.allclose(got, expected, atol=1e-5)
    session = onnxruntime.InferenceSession(tmp_path / "r.onnx", providers=["CPUExecutionProvider"])
    assert np.allclose(session.run(None, {"data": crops().numpy()})[0], got.numpy(), atol=1e-4)


def test_unfolded_weights_come_back_bit_for_bit(tmp_path):
    network = random_iresnet()
    export(network, tmp_path / "r.onnx", fold=False)
    state = iresnet_from_onnx(tmp_path / "r.onnx").state_dict()
    for key, value in network.state_dict().items():
        assert torch.equal(state[key], value), key


def test_layers_that_share_one_constant_come_back(tmp_path):
    network = IResNet((2, 2, 2, 2), WIDTHS).eval()  # fresh: all PReLUs, all BatchNorms alike; the exporter stores one
    export(network, tmp_path / "r.onnx")
    with torch.no_grad():
        assert torch.allclose(iresnet_from_onnx(tmp_path / "r.onnx")(crops()), network(crops()), atol=1e-5)


def test_another_eps_and_a_plain_matrix_product_are_understood(tmp_path):
    network = random_iresnet()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.eps = 2e-5  # insightface's MXNet models
    export(network, tmp_path / "r.onnx", fold=False)
    model = onnx.load(tmp_path / "r.onnx")
    index = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Gemm")
    gemm = model.graph.node[index]
    weight = next(item for item in model.graph.initializer if item.name == gemm.input[1])
    model.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(weight).T.copy(), "wt"))
    model.graph.node.remove(gemm)
    model.graph.node.insert(index, helper.make_node("Add", [gemm.input[2], "product"], list(gemm.output)))
    model.graph.node.insert(index, helper.make_node("MatMul", [gemm.input[0], "wt"], ["product"]))
    onnx.save(model, tmp_path / "r.onnx")
    with torch.no_grad():
        assert torch.allclose(iresnet_from_onnx(tmp_path / "r.onnx")(crops()), network(crops()), atol=1e-5)


def test_the_imported_network_has_gradients(tmp_path):
    export(random_iresnet(), tmp_path / "r.onnx")
    images = crops(1).requires_grad_()
    iresnet_from_onnx(tmp_path / "r.onnx")(images).sum().backward()
    assert images.grad.abs().sum() > 0


class WithActivation(IResNet):
    def forward(self, images):
        return super().forward(images).relu()


class WiderStem(IResNet):
    def __init__(self):
        super().__init__((1, 1, 1, 1), WIDTHS)
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=2, bias=False)
        self.fc = nn.Linear(WIDTHS[3] * 64, 512)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 112 * 112, 4)),
        WithActivation((1, 1, 1, 1), WIDTHS),
        WiderStem(),
    ],
)
def test_other_networks_are_refused(tmp_path, network):
    export(network.eval(), tmp_path / "other.onnx")
    with pytest.raises(IdgenError, match=r"other\.onnx is not an IResNet") as error:
        iresnet_from_onnx(tmp_path / "other.onnx")
    assert "\n" not in str(error.value)


def test_a_detector_is_refused(tmp_path):
    onnx.save(scrfd(), tmp_path / "det.onnx")
    with pytest.raises(IdgenError, match="not an IResNet"):
        iresnet_from_onnx(tmp_path / "det.onnx")
