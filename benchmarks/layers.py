"""Linear layers and convolutions, dense and sparse, of ours and of others: what the benchmark of kernels compares."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sparse.compute import SparseLinear


class OneDNN(torch.autograd.Function):
    """The three products of a linear layer by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        product = torch.ops.mkldnn._linear_pointwise
        gx = product(grad, weight.t(), None, "none", [], "") if ctx.needs_input_grad[0] else None
        return gx, product(grad.t().contiguous(), x.t().contiguous(), None, "none", [], ""), grad.sum(0)


class OneDNNLinear(nn.Linear):
    """A dense layer by oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        return OneDNN.apply(x, self.weight, self.bias)


class MaskedLinear(nn.Linear):
    """A dense layer whose weight is multiplied by its mask: how most libraries train sparse networks."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "mask"):
            self.mask = (self.weight.detach() != 0).float()
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


def same(dense: nn.Linear, kind: type[nn.Linear]) -> nn.Linear:
    """A layer of another class with the same weights."""
    other = kind(dense.in_features, dense.out_features)
    other.load_state_dict(dense.state_dict())
    return other


def linear_kinds() -> dict[str, Callable[[nn.Linear], nn.Module]]:
    """What a masked dense layer becomes, by name; peers where they are installed."""
    kinds: dict[str, Callable[[nn.Linear], nn.Module]] = {
        "dense MKL": lambda m: same(m, nn.Linear),
        "dense oneDNN": lambda m: same(m, OneDNNLinear),
        "dense bf16": lambda m: same(m, nn.Linear),
        "masked dense": lambda m: same(m, MaskedLinear),
        "ours": SparseLinear.from_dense,
        "ours bf16": SparseLinear.from_dense,
        "torch operators": SparseLinear.from_dense,
    }
    try:
        from sparselab.nn import SparseLinear as Lab

        kinds["sparselab"] = lambda m: Lab(
            m.in_features, m.out_features, sparsity=1 - float((m.weight != 0).float().mean())
        )
    except ImportError:
        print("sparselab is not installed")
    try:
        from sparseprop.modules import SparseLinear as Prop

        kinds["sparseprop"] = Prop.from_dense
    except ImportError:
        print("sparseprop is not installed")
    return kinds


def masked_mlp(sizes: tuple[int, ...], density: float) -> list[nn.Linear]:
    """Layers with random non-zeros."""
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    for layer in layers:
        thin(layer, density)
    return layers


def thin(layer: nn.Linear | nn.Conv2d, density: float) -> None:
    """Only that share of its weights, at random places."""
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) < density)


def chain(layers: list[nn.Module], between: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """With activations between."""
    parts = [part for layer in layers for part in (layer, between())]
    return nn.Sequential(*parts[:-1])


def onnx_linear(weight: Tensor, int8: bool) -> Any:
    """A dense linear layer in ONNX Runtime, with static int8 weights and inputs if asked for."""
    from onnx import TensorProto, helper

    outputs = len(weight)
    nodes, constants = [], [_constant(weight.t().contiguous(), "w")]
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    if int8:
        scale = weight.abs().amax(1) / 127
        rounded = (weight / scale[:, None]).round().to(torch.int8).t().contiguous()
        constants = [
            _constant(rounded, "q"), _constant(scale, "s"), _constant(torch.zeros(outputs, dtype=torch.int8), "z"),
            _constant(torch.tensor(8 / 255), "xs"), _constant(torch.tensor(128, dtype=torch.uint8), "xz"),
        ]  # fmt: skip
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=1),
        ]
        product = helper.make_node("MatMul", ["xd", "w"], ["y"])
    ends = [
        helper.make_tensor_value_info(key, TensorProto.FLOAT, ["B", n])
        for key, n in (("x", weight.shape[1]), ("y", outputs))
    ]
    return _session([*nodes, product], ends, constants)


def onnx_conv(weight: Tensor) -> Any:
    """A dense 3x3 convolution in ONNX Runtime."""
    from onnx import TensorProto, helper

    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
    ends = [
        helper.make_tensor_value_info(key, TensorProto.FLOAT, ["B", n, "H", "W"])
        for key, n in (("x", weight.shape[1]), ("y", weight.shape[0]))
    ]
    return _session([node], ends, [_constant(weight, "w")])


def _constant(value: Tensor, key: str) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(value.numpy(), key)


def _session(nodes: list[Any], ends: list[Any], constants: list[Any]) -> Any:
    import onnxruntime
    from onnx import helper

    graph = helper.make_graph(nodes, "g", [ends[0]], [ends[1]], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options)
