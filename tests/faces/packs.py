"""Small insightface packs: a detector of SCRFD's shape and an IResNet recogniser, as ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from idgen.models.iresnet import IResNet

# What the detector says of a face: an 8 px cell that lights up, at 640 px, is the nose of a face of this shape.
BOX_SIDE = 96
LANDMARKS = np.array([[-18, -20], [18, -20], [0, 0], [-15, 21], [15, 21]], np.float32)
WIDTHS = (8, 12, 16, 24)


def write_pack(folder: Path, *, batch: int | None = None, recogniser: str = "w600k_r50.onnx") -> IResNet:
    """A pack such as buffalo_l unpacks to; returns the recogniser whose weights are in it."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(scrfd(), folder / "det_10g.onnx")
    network = random_iresnet()
    export(network, folder / recogniser, batch=batch)
    return network


def random_iresnet(layers: tuple[int, ...] = (1, 2, 1, 1), seed: int = 0) -> IResNet:
    """An IResNet with random weights and, as after a training, statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = IResNet(layers, WIDTHS)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            for tensor, centre in ((module.weight, 1.0), (module.bias, 0.0), (module.running_mean, 0.0)):
                tensor.data.copy_(centre + 0.2 * torch.randn(tensor.shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
        if isinstance(module, nn.PReLU):
            module.weight.data.copy_(0.5 * torch.rand(module.weight.shape, generator=generator))
    return network.eval()


def export(network: nn.Module, path: Path, *, fold: bool = True, batch: int | None = None) -> None:
    """As arcface_torch's torch2onnx.py does; without `fold` every BatchNorm stays a node of its own."""
    options = {} if fold else {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
    torch.onnx.export(
        network,
        (torch.zeros(batch or 1, 3, 112, 112),),
        str(path),
        input_names=["data"],
        dynamic_axes=None if batch else {"data": {0: "batch"}},
        opset_version=11,
        dynamo=False,
        **options,
    )


def scrfd(outputs: int = 9) -> onnx.ModelProto:
    """Three strides, two anchors; a cell of stride 8 fires as strongly as it is bright, the other strides never."""
    constants, nodes, heads = [], [], {"score": [], "box": [], "points": []}

    def conv(name: str, weight: np.ndarray, bias: np.ndarray, stride: int, width: int) -> str:
        constants.append(numpy_helper.from_array(weight.astype(np.float32), f"{name}.w"))
        constants.append(numpy_helper.from_array(bias.astype(np.float32), f"{name}.b"))
        constants.append(numpy_helper.from_array(np.array([-1, width]), f"{name}.shape"))
        inputs = ["input", f"{name}.w", f"{name}.b"]
        nodes.append(helper.make_node("Conv", inputs, [f"{name}.y"], strides=[stride] * 2, kernel_shape=[stride] * 2))
        nodes.append(helper.make_node("Transpose", [f"{name}.y"], [f"{name}.t"], perm=[0, 2, 3, 1]))
        nodes.append(helper.make_node("Reshape", [f"{name}.t", f"{name}.shape"], [name]))
        return name

    for stride in (8, 16, 32):
        kernel = (
            np.ones((2, 3, stride, stride)) / (3 * stride * stride) if stride == 8 else np.zeros((2, 3, stride, stride))
        )
        centre = (stride - 1) / 2  # distances count from the corner of the cell
        side = BOX_SIDE / 2
        box = np.tile([side - centre, side - centre, side + centre, side + centre], 2) / stride
        points = np.tile((LANDMARKS + centre).flatten(), 2) / stride
        heads["score"].append(conv(f"score{stride}", kernel, np.full(2, 0.0 if stride == 8 else -1.0), stride, 1))
        heads["box"].append(conv(f"box{stride}", np.zeros((8, 3, stride, stride)), box, stride, 4))
        heads["points"].append(conv(f"points{stride}", np.zeros((20, 3, stride, stride)), points, stride, 10))
    names = [*heads["score"], *heads["box"], *heads["points"]][:outputs]
    widths = [1] * 3 + [4] * 3 + [10] * 3
    graph = helper.make_graph(
        nodes,
        "scrfd",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"n{name}", width])
            for name, width in zip(names, widths, strict=False)
        ],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)


def photo(*faces: tuple[int, int, int], size: int = 640, seed: int = 0) -> np.ndarray:
    """A dark noisy square photo; each (column, row, brightness) in cells of 8 px at 640 px lights up as a face."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (640, 640, 3)).astype(np.uint8)
    for column, row, brightness in faces:
        pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = brightness
    return np.ascontiguousarray(pixels[:size, :size])
