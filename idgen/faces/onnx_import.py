"""insightface's exported recognisers (`w600k_r50.onnx`, `glintr100.onnx`) as IResNet modules, which have gradients.

An exporter renames constants and folds most BatchNorms into the convolution before them, so constants are found by
walking the graph, not by name. A folded BatchNorm comes back as one that only adds the folded bias.
"""

from __future__ import annotations

import os
from typing import NoReturn

import torch

from idgen.checkpoint import OnnxGraph, OnnxNode, load_onnx
from idgen.errors import IdgenError
from idgen.models.iresnet import IResNet, from_state

# Constants that the exporter did not fold pass through these; what reads them flattens them anyway.
RESHAPING = ("Unsqueeze", "Squeeze", "Reshape")
# What an exporter may leave between two layers without changing a value at inference.
NEUTRAL = ("Identity", "Dropout", "Cast")
EPS = 1e-5  # of every BatchNorm in IResNet


def iresnet_from_onnx(path: str | os.PathLike[str]) -> IResNet:
    """The IResNet that an ONNX file computes, in eval mode.

    Raises:
        IdgenError: the file is damaged, or holds another network.
    """
    return from_state(_Walk(load_onnx(path), str(path)).state, str(path))


class _Walk:
    """One walk along an IResNet's graph from input to output; collects `state` in arcface_torch's naming."""

    def __init__(self, graph: OnnxGraph, what: str) -> None:
        self.graph, self.what = graph, what
        self.state: dict[str, torch.Tensor] = {}
        self.same: dict[str, str] = {}
        for node in graph.nodes:
            reshaped_constant = node.op in RESHAPING and self.origin(node.inputs[0]) in graph.tensors
            if node.op in NEUTRAL or reshaped_constant:
                self.same[node.outputs[0]] = node.inputs[0]
        self.readers: dict[str, list[OnnxNode]] = {}
        for node in graph.nodes:
            if node.op not in NEUTRAL:
                for name in {self.origin(name) for name in node.inputs}:
                    self.readers.setdefault(name, []).append(node)
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            self.refuse(f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs")
        self.network(graph.inputs[0])

    def network(self, x: str) -> None:
        x = self.prelu("prelu", self.conv("conv1", "bn1", self.only(x, "Conv"), stride=1))
        stage, block = 0, 0
        while True:
            bn = self.one_of(x, "BatchNormalization")
            if self.after(bn.outputs[0])[0].op != "Conv":
                break
            others = [node for node in self.after(x) if node is not bn]
            if len(others) != 1:
                self.refuse(f"{len(others)} ways around a block")
            stage, block = (stage, block + 1) if others[0].op == "Add" else (stage + 1, 0)
            x = self.block(f"layer{stage}.{block}.", bn, others[0])
        self.norm("bn2", bn)
        self.head(bn.outputs[0])

    def block(self, prefix: str, bn: OnnxNode, skip: OnnxNode) -> str:
        self.norm(prefix + "bn1", bn)
        stride = 1 if skip.op == "Add" else 2
        y = self.conv(prefix + "conv1", prefix + "bn2", self.only(bn.outputs[0], "Conv"), stride=1)
        y = self.prelu(prefix + "prelu", y)
        y = self.conv(prefix + "conv2", prefix + "bn3", self.only(y, "Conv"), stride=stride)
        end = self.only(y, "Add")
        if skip.op != "Add":
            names = (prefix + "downsample.0", prefix + "downsample.1")
            skip = self.only(self.conv(*names, skip, stride=2, kernel=1), "Add")
        if skip is not end:
            self.refuse("a block whose two branches do not meet")
        return end.outputs[0]

    def head(self, x: str) -> None:
        flatten = self.after(x)[0]
        if flatten.op not in ("Flatten", "Reshape"):
            self.refuse(f"{flatten.op} instead of the flattening")
        node = self.after(flatten.outputs[0])[0]
        if node.op == "Gemm":
            weight, bias = self.constant(node.inputs[1]), [self.constant(name) for name in node.inputs[2:]]
            if any(node.attributes.get(name, 1) != 1 for name in ("alpha", "beta")) or node.attributes.get("transA", 0):
                self.refuse("a scaled or transposed fully connected layer")
            weight = weight if node.attributes.get("transB", 0) else weight.T
        elif node.op == "MatMul":
            weight, bias = self.constant(node.inputs[1]).T, []
            if self.after(node.outputs[0]) and self.after(node.outputs[0])[0].op == "Add":
                node = self.after(node.outputs[0])[0]
                bias = [self.constant(next(name for name in node.inputs if self.origin(name) in self.graph.tensors))]
        else:
            self.refuse(f"{node.op} instead of the fully connected layer")
        self.state["fc.weight"] = weight.contiguous()
        self.state["fc.bias"] = bias[0].flatten() if bias else torch.zeros(len(weight))
        out = node.outputs[0]
        if self.after(out):
            features = self.only(out, "BatchNormalization")
            self.norm("features", features)
            out = features.outputs[0]
        else:
            self.folded("features", torch.zeros(len(weight)))
        if out != self.origin(self.graph.outputs[0]):
            self.refuse("more layers after the embedding")

    def conv(self, name: str, bn_name: str, node: OnnxNode, stride: int, kernel: int = 3) -> str:
        """Take a convolution and the BatchNorm after it, or the bias into which that was folded; the name of the result."""
        if node.op != "Conv":
            self.refuse(f"{node.op} instead of the convolution {name}")
        weight = self.constant(node.inputs[1])
        want = {"strides": [stride] * 2, "pads": [kernel // 2] * 4, "dilations": [1, 1], "group": 1}
        default = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": 1}
        got = {key: node.attributes.get(key, default[key]) for key in want}
        if {key: list(v) if key != "group" else v for key, v in got.items()} != want or weight.shape[-1] != kernel:
            self.refuse(f"another kind of convolution for {name}")
        self.state[name + ".weight"] = weight
        bias = self.constant(node.inputs[2]) if len(node.inputs) > 2 else torch.zeros(len(weight))
        readers = self.after(node.outputs[0])
        # A BatchNorm after the stem belongs to the first block when the stem's own was folded: PReLU stands between.
        if len(readers) == 1 and readers[0].op == "BatchNormalization":
            self.norm(bn_name, readers[0])
            self.state[bn_name + ".running_mean"] = self.state[bn_name + ".running_mean"] - bias
            return readers[0].outputs[0]
        self.folded(bn_name, bias)
        return node.outputs[0]

    def norm(self, name: str, node: OnnxNode) -> None:
        weight, bias, mean, variance = (self.constant(name) for name in node.inputs[1:5])
        self.state[name + ".weight"], self.state[name + ".bias"] = weight, bias
        self.state[name + ".running_mean"] = mean
        self.state[name + ".running_var"] = variance + (node.attributes.get("epsilon", 1e-5) - EPS)

    def folded(self, name: str, bias: torch.Tensor) -> None:
        """A BatchNorm that only adds `bias`: the variance takes the eps back out."""
        self.state[name + ".weight"], self.state[name + ".bias"] = torch.ones_like(bias), bias
        self.state[name + ".running_mean"] = torch.zeros_like(bias)
        self.state[name + ".running_var"] = torch.full_like(bias, 1 - EPS)

    def prelu(self, name: str, x: str) -> str:
        node = self.only(x, "PRelu")
        slope = self.constant(node.inputs[1]).flatten()
        channels = self.state[name.removesuffix("prelu") + ("bn1.weight" if name == "prelu" else "bn2.weight")]
        self.state[name + ".weight"] = slope.expand(len(channels)).clone()
        return node.outputs[0]

    def origin(self, name: str) -> str:
        while name in self.same:
            name = self.same[name]
        return name

    def constant(self, name: str) -> torch.Tensor:
        name = self.origin(name)
        if name not in self.graph.tensors:
            self.refuse(f"{name!r} is computed where a constant belongs")
        return self.graph.tensors[name].float()

    def after(self, name: str) -> list[OnnxNode]:
        """The operations that read a value."""
        return self.readers.get(self.origin(name), [])

    def only(self, name: str, op: str) -> OnnxNode:
        readers = self.after(name)
        if len(readers) != 1 or readers[0].op != op:
            self.refuse(f"{'+'.join(node.op for node in readers) or 'nothing'} instead of {op}")
        return readers[0]

    def one_of(self, name: str, op: str) -> OnnxNode:
        matching = [node for node in self.after(name) if node.op == op]
        if len(matching) != 1 or not self.after(matching[0].outputs[0]):
            self.refuse(f"{'+'.join(node.op for node in self.after(name)) or 'nothing'} where a block begins")
        return matching[0]

    def refuse(self, found: str) -> NoReturn:
        raise IdgenError(f"{self.what} is not an IResNet ({found}): it can embed faces, but has no gradients here")
